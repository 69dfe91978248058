package overlayfuse

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// The system calls on layers. All are relative to a descriptor, none follows a symlink of a layer: directories are
// entered with openat2 and resolveIn, and the last component is never followed.

// resolveIn keeps a walk inside the directory that it starts from, whatever the layer holds.
const resolveIn = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// openIn opens name below dir. name is one component, or "." for the directory itself.
//
// Errors: ELOOP where name is a symlink and flags lack O_PATH; those of openat2(2).
func openIn(dir int, name string, flags uint64, mode uint32) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: resolveIn}
	if flags&(unix.O_CREAT|unix.O_TMPFILE&^unix.O_DIRECTORY) != 0 {
		how.Mode = uint64(mode)
	}
	if flags&unix.O_PATH != 0 {
		// RESOLVE_NO_SYMLINKS would refuse a symlink as the last component, which O_PATH|O_NOFOLLOW names.
		how.Resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS
		if flags&unix.O_DIRECTORY != 0 {
			how.Resolve |= unix.RESOLVE_NO_SYMLINKS
		}
	}
	for try := 0; ; try++ {
		fd, err := -1, failed("openat2")
		if err == nil {
			fd, err = unix.Openat2(dir, name, &how)
		}
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN) && try < openTries: // a rename on the way (openat2(2)), or a lease that is being broken
			time.Sleep(time.Duration(try) * 10 * time.Microsecond)
		default:
			return fd, err
		}
	}
}

// openTries bounds the wait for what makes an open fail with EAGAIN: five seconds in all.
const openTries = 1000

// closeFD closes a descriptor of which nothing was written. The error of such a close carries nothing.
func closeFD(fd int) { _ = unix.Close(fd) }

// procFD is the path of an open descriptor: the way to read xattrs of, or to reopen, what was opened with O_PATH.
// It is a path of our own process and no part of a layer.
func procFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// procAt is the path of name in the directory open as dir. A call on it must not follow a last symlink.
func procAt(dir int, name string) string { return procFD(dir) + "/" + name }

// reopen opens what fd (O_PATH) names. It must not be a symlink, a socket or a device.
func reopen(fd, flags int) (*os.File, error) {
	for {
		n, err := -1, failed("open")
		if err == nil {
			n, err = unix.Open(procFD(fd), flags|unix.O_CLOEXEC, 0)
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(n), "overlay"), nil
	}
}

// statAt is the status of name in dir, of a symlink itself; with name "" that of dir.
func statAt(dir int, name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	if err := failed("newfstatat"); err != nil {
		return st, err
	}
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	err := unix.Fstatat(dir, name, &st, flags)
	return st, err
}

// isWhiteout tells the character device 0/0. Compare: fs/overlayfs/util.c:ovl_is_whiteout().
func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

func isDir(mode uint32) bool { return mode&unix.S_IFMT == unix.S_IFDIR }
func isReg(mode uint32) bool { return mode&unix.S_IFMT == unix.S_IFREG }

// xattrMax is the kernel's limit for a value and for a list of names (linux/limits.h: XATTR_SIZE_MAX, XATTR_LIST_MAX).
const xattrMax = 65536

// getXattr is the value of an object's xattr.
//
// Errors: ENODATA where there is none.
func getXattr(o objectAt, attr string) ([]byte, error) {
	buf := make([]byte, 256)
	for {
		n, err := o.read(attr, buf)
		if errors.Is(err, unix.ERANGE) && len(buf) < xattrMax {
			buf = make([]byte, xattrMax)
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}

// getXattrFD is getXattr for a descriptor, an O_PATH one too: there the link in /proc is followed, to the object itself.
func getXattrFD(fd int, attr string) ([]byte, error) {
	buf := make([]byte, 256)
	for {
		n, err := unix.Fgetxattr(fd, attr, buf)
		if errors.Is(err, unix.EBADF) {
			n, err = unix.Getxattr(procFD(fd), attr, buf)
		}
		if errors.Is(err, unix.ERANGE) && len(buf) < xattrMax {
			buf = make([]byte, xattrMax)
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}

// setXattrFD is fsetxattr(2), for an O_PATH descriptor too.
func setXattrFD(fd int, attr string, v []byte, flags int) error {
	if err := failed("fsetxattr"); err != nil {
		return err
	}
	err := unix.Fsetxattr(fd, attr, v, flags)
	if errors.Is(err, unix.EBADF) {
		err = unix.Setxattr(procFD(fd), attr, v, flags)
	}
	return err
}

// removeXattrFD is fremovexattr(2), for an O_PATH descriptor too.
func removeXattrFD(fd int, attr string) error {
	if err := failed("fremovexattr"); err != nil {
		return err
	}
	err := unix.Fremovexattr(fd, attr)
	if errors.Is(err, unix.EBADF) {
		err = unix.Removexattr(procFD(fd), attr)
	}
	return err
}

// linkFD gives what fd names, an O_PATH descriptor or an unnamed file, another name.
func linkFD(fd, dir int, name string) error {
	if err := failed("linkat"); err != nil {
		return err
	}
	err := unix.Linkat(fd, "", dir, name, unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.ENOENT) { // also: without CAP_DAC_READ_SEARCH (open(2), O_TMPFILE)
		err = unix.Linkat(unix.AT_FDCWD, procFD(fd), dir, name, unix.AT_SYMLINK_FOLLOW)
	}
	return err
}

// moveName is renameat2(2).
func moveName(from int, old string, to int, name string, flags uint) error {
	if err := failed("renameat2"); err != nil {
		return err
	}
	return unix.Renameat2(from, old, to, name, flags)
}

// truncateFD is ftruncate(2).
func truncateFD(fd int, size int64) error {
	if err := failed("ftruncate"); err != nil {
		return err
	}
	return unix.Ftruncate(fd, size)
}

// listXattrFD are the names of a descriptor's xattrs, an O_PATH one's too; none where the file system has no xattrs.
func listXattrFD(fd int) ([]string, error) {
	return listXattrs(func(buf []byte) (int, error) {
		n, err := unix.Flistxattr(fd, buf)
		if errors.Is(err, unix.EBADF) {
			n, err = unix.Listxattr(procFD(fd), buf)
		}
		return n, err
	})
}

func listXattrs(list func(buf []byte) (int, error)) ([]string, error) {
	buf := make([]byte, 1024)
	for {
		n, err := list(buf)
		if errors.Is(err, unix.ERANGE) && len(buf) < xattrMax {
			buf = make([]byte, xattrMax)
			continue
		}
		if noXattr(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return splitNames(buf[:n]), nil
	}
}

// splitNames splits the NUL-terminated names of listxattr(2).
func splitNames(b []byte) []string {
	var names []string
	for len(b) > 0 {
		i := 0
		for i < len(b) && b[i] != 0 {
			i++
		}
		names = append(names, string(b[:i]))
		b = b[min(i+1, len(b)):]
	}
	return names
}

// noXattr tells that there is no such xattr, or none at all on this file system.
func noXattr(err error) bool {
	return errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP)
}

// chmodFD sets the mode of what fd (O_PATH) names.
func chmodFD(fd int, mode uint32) error {
	if err := failed("fchmodat2"); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	err := error(unix.EOPNOTSUPP)
	if !noChmodAt.Load() {
		err = unix.Fchmodat(fd, "", mode&07777, unix.AT_EMPTY_PATH)
	}
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM) { // EPERM: as of objectAt.read
		if err = unix.Fchmodat(unix.AT_FDCWD, procFD(fd), mode&07777, 0); err == nil {
			noChmodAt.Store(true)
		}
	}
	if err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	return nil
}

// noChmodAt is set where the kernel has no fchmodat2(2) (before Linux 6.6).
var noChmodAt atomic.Bool

// chownFD sets the owner of what fd (O_PATH) names; -1 leaves one as it is.
func chownFD(fd int, uid, gid int) error {
	err := failed("fchownat")
	if err == nil {
		err = unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	return nil
}

// timesFD sets the times of what fd (O_PATH) names.
func timesFD(fd int, atime, mtime unix.Timespec) error {
	err := failed("utimensat")
	if err == nil {
		err = unix.UtimesNanoAt(fd, "", []unix.Timespec{atime, mtime}, unix.AT_EMPTY_PATH)
	}
	if err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}
