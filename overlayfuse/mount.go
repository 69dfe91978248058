package overlayfuse

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Type is the file system type of our mounts in /proc/mounts.
const Type = "fuse.overlayfuse"

// defaultSource is a mount's source unless fsname= gives another.
const defaultSource = "overlayfuse"

// MountFlags are the properties of the FUSE mount itself, as mount(8) names them.
type MountFlags struct {
	Source      string // first field of /proc/mounts; empty: "overlayfuse"
	ReadOnly    bool
	NoSuid      bool
	NoDev       bool
	NoExec      bool
	NoSymFollow bool
	Sync        bool
	Atime       AtimePolicy
	NoDirAtime  bool
	Labels      []string // SELinux's context= and its kin, as the kernel takes them
	Debug       bool     // log every request
}

// bits are the flags of mount(2).
func (m MountFlags) bits() uintptr {
	var b uintptr
	for _, f := range []struct {
		set bool
		bit uintptr
	}{
		{m.ReadOnly, unix.MS_RDONLY}, {m.NoSuid, unix.MS_NOSUID}, {m.NoDev, unix.MS_NODEV}, {m.NoExec, unix.MS_NOEXEC},
		{m.NoSymFollow, unix.MS_NOSYMFOLLOW}, {m.Sync, unix.MS_SYNCHRONOUS}, {m.NoDirAtime, unix.MS_NODIRATIME},
	} {
		if f.set {
			b |= f.bit
		}
	}
	switch m.Atime {
	case AtimeRelative:
		b |= unix.MS_RELATIME
	case AtimeStrict:
		b |= unix.MS_STRICTATIME
	case AtimeNone:
		b |= unix.MS_NOATIME
	}
	return b
}

// attach mounts a new FUSE connection on the mount point, a directory held open by its descriptor, and gives the
// connection's descriptor, which the caller owns. Nobody answers on it yet.
//
// Errors: say what the process lacks if it may not mount.
func attach(mountpoint int, flags MountFlags, maxRead int) (int, error) {
	dev, err := ignoringEINTR(func() (int, error) { return unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0) })
	if err != nil {
		return -1, fmt.Errorf("open /dev/fuse (module fuse, or the device in a container): %w", err)
	}
	source := flags.Source
	if source == "" {
		source = defaultSource
	}
	data := append([]string{
		fmt.Sprintf("fd=%d", dev), "rootmode=40000",
		fmt.Sprintf("user_id=%d", os.Geteuid()), fmt.Sprintf("group_id=%d", os.Getegid()),
		"default_permissions", "allow_other", fmt.Sprintf("max_read=%d", maxRead),
	}, flags.Labels...)
	// The magic link names the directory that was opened, whatever has become of its path.
	target := fmt.Sprintf("/proc/self/fd/%d", mountpoint)
	err = unix.Mount(source, target, Type, flags.bits(), strings.Join(data, ","))
	if err == nil {
		return dev, nil
	}
	_ = unix.Close(dev) // no connection was made
	switch {
	case errors.Is(err, unix.EPERM) && !hasCapability(unix.CAP_SYS_ADMIN):
		err = fmt.Errorf("mount(2) needs CAP_SYS_ADMIN, or a user and mount namespace of one's own (unshare -Urm): %w", err)
	case errors.Is(err, unix.EPERM):
		err = fmt.Errorf("mount(2): the mount namespace must belong to this user namespace (unshare -m): %w", err)
	case errors.Is(err, unix.ENODEV):
		err = fmt.Errorf("mount(2): the kernel has no FUSE: %w", err)
	case errors.Is(err, unix.EINVAL) && len(flags.Labels) > 0:
		err = fmt.Errorf("mount(2): without SELinux there is no %s: %w", strings.Join(flags.Labels, ","), err)
	default:
		err = fmt.Errorf("mount(2): %w", err)
	}
	return -1, err
}

// openMountpoint opens the directory to mount on, and gives its absolute path free of symlinks. No request is sent to
// a FUSE mount that may be there already: it could be served by this very process.
func openMountpoint(path string) (fd int, abs string, err error) {
	fd, err = ignoringEINTR(func() (int, error) { return unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0) })
	if err != nil {
		return -1, "", err
	}
	abs, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err == nil {
		var st unix.Statx_t
		err = unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st)
		if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			err = fmt.Errorf("is %s: %w", fileType(uint32(st.Mode)), unix.ENOTDIR)
		}
	}
	if err != nil {
		_ = unix.Close(fd) // O_PATH: nothing to lose
		return -1, "", err
	}
	return fd, abs, nil
}

// Mounted looks up what is mounted on a path, free of symlinks: the topmost mount there, nil if there is none. It reads /proc/self/mountinfo
// and touches no mount.
func Mounted(path string) (*mountinfo.Info, error) {
	stack, err := mountsOn(path)
	if err != nil || len(stack) == 0 {
		return nil, err
	}
	return stack[len(stack)-1], nil
}

// mountsOn lists what is mounted on path, the topmost last.
func mountsOn(path string) ([]*mountinfo.Info, error) {
	infos, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != path, false })
	if err != nil {
		return nil, fmt.Errorf("mounts on %s: %w", path, err)
	}
	return infos, nil
}

// DeviceOf is the device number of what is mounted, as MAJOR:MINOR.
func DeviceOf(m *mountinfo.Info) string { return fmt.Sprintf("%d:%d", m.Major, m.Minor) }
