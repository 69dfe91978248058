package snapshotter

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unsafe"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Nothing in this file touches a path inside a mount: a mount whose server hangs would hang the caller too.

// mountedAt tells whether something is mounted on the directory, and whether its file system as a whole is read-only.
func mountedAt(path string) (mounted, readOnly bool, err error) {
	found, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(path))
	if err != nil {
		return false, false, fmt.Errorf("read mounts: %w", err)
	}
	if len(found) == 0 {
		return false, false, nil
	}
	return true, slices.Contains(strings.Split(found[0].VFSOptions, ","), "ro"), nil
}

// detach takes every mount off the directory. Whatever still uses one goes on.
func detach(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // no mount point; no such directory
			return nil
		case err != nil:
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// setReadOnly makes the file system that is mounted on the directory read-only in all its mounts, or writable again. Making it
// read-only writes its dirty pages back, and fails while a file is open for writing: nothing can be written afterwards.
//
// Errors: errdefs.ErrFailedPrecondition with EBUSY if files are open for writing; EINVAL if nothing is mounted there.
// Compare: fs/fsopen.c:SYSCALL_DEFINE3(fspick), fs/super.c:reconfigure_super() (Linux 6.18).
func setReadOnly(path string, readOnly bool) error {
	flag := "rw"
	if readOnly {
		flag = "ro"
	}
	fd, err := fspick(path)
	if err != nil {
		return fmt.Errorf("make %s %s: fspick: %w", path, flag, err)
	}
	defer func() { _ = unix.Close(fd) }() // a context, no file
	if err = unix.FsconfigSetFlag(fd, flag); err == nil {
		err = unix.FsconfigReconfigure(fd)
	}
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("make %s %s: files in it are open for writing: %w: %w", path, flag, err, errdefs.ErrFailedPrecondition)
	case err != nil:
		return fmt.Errorf("make %s %s: %w", path, flag, err)
	}
	return nil
}

// Flags of fspick(2), which golang.org/x/sys/unix has no function for (include/uapi/linux/mount.h).
const (
	fspickCloexec     = 0x1
	fspickNoAutomount = 0x4
)

func fspick(path string) (int, error) {
	p, err := unix.BytePtrFromString(path)
	if err != nil {
		return -1, err
	}
	at := unix.AT_FDCWD
	fd, _, errno := unix.Syscall(unix.SYS_FSPICK, uintptr(at), uintptr(unsafe.Pointer(p)), fspickCloexec|fspickNoAutomount)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}
