package overlayfuse

import (
	"errors"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// objectAt is an object of a layer that is reached by its name in an open directory; the directory itself has the name ".".
// A last symlink is not followed.
type objectAt struct {
	dir  int
	name string
}

// path is for the calls that have no form with a descriptor. They must not follow a last symlink.
func (o objectAt) path() string { return procAt(o.dir, o.name) }

// noXattrAt is set where the kernel has no getxattrat(2) and listxattrat(2) (before Linux 6.13). They cost a third of the way through /proc.
var noXattrAt atomic.Bool

// xattrArgs is struct xattr_args of linux/xattr.h.
type xattrArgs struct {
	value       *byte // 64 bits there, so that this is for the machines where a pointer has as many
	size, flags uint32
}

const (
	xattrArgsSize  = 16
	sysGetxattrat  = 464 // the same on every architecture, as are all since 424
	sysListxattrat = 465
)

// read is lgetxattr(2).
func (o objectAt) read(attr string, buf []byte) (int, error) {
	if noXattrAt.Load() || unsafe.Sizeof(xattrArgs{}) != xattrArgsSize {
		return unix.Lgetxattr(o.path(), attr, buf)
	}
	n, err := getxattrat(o.dir, o.name, attr, buf)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) { // EPERM: a seccomp filter that does not know the call
		if n, err = unix.Lgetxattr(o.path(), attr, buf); err == nil || noXattr(err) {
			noXattrAt.Store(true)
		}
	}
	return n, err
}

// list is llistxattr(2).
func (o objectAt) list() ([]string, error) {
	return listXattrs(func(buf []byte) (int, error) {
		if noXattrAt.Load() {
			return unix.Llistxattr(o.path(), buf)
		}
		n, err := listxattrat(o.dir, o.name, buf)
		if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
			if n, err = unix.Llistxattr(o.path(), buf); err == nil || noXattr(err) {
				noXattrAt.Store(true)
			}
		}
		return n, err
	})
}

func listxattrat(dir int, name string, buf []byte) (int, error) {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return -1, err
	}
	n, _, errno := unix.Syscall6(sysListxattrat, uintptr(dir), uintptr(unsafe.Pointer(p)), unix.AT_SYMLINK_NOFOLLOW,
		uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), 0)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

func getxattrat(dir int, name, attr string, buf []byte) (int, error) {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		return -1, err
	}
	a, err := unix.BytePtrFromString(attr)
	if err != nil {
		return -1, err
	}
	args := xattrArgs{size: uint32(len(buf)), value: unsafe.SliceData(buf)}
	n, _, errno := unix.Syscall6(sysGetxattrat, uintptr(dir), uintptr(unsafe.Pointer(p)), unix.AT_SYMLINK_NOFOLLOW,
		uintptr(unsafe.Pointer(a)), uintptr(unsafe.Pointer(&args)), xattrArgsSize)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}
