package overlayfuse

import (
	"context"
	"fmt"
	"os"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Source: linux/fs.h, FS_IOC_GETFLAGS and its siblings as FUSE passes them on.
const (
	ioctlGetFlags = 0x80086601
	ioctlSetFlags = 0x40086602
	ioctlGetXattr = 0x801c581f
	ioctlSetXattr = 0x401c5820
)

// Ioctl passes inode flags on to the upper's file system. Setting them copies up.
func (fs *FS) Ioctl(_ <-chan struct{}, in *fuse.IoctlIn, inbuf []byte, out *fuse.IoctlOut, outbuf []byte) fuse.Status {
	n, s := fs.node(in.NodeId)
	if !s.Ok() {
		return s
	}
	switch in.Cmd {
	case ioctlGetFlags, ioctlGetXattr:
		return fs.fail("ioctl", n, fs.getFlags(n, in.Cmd, outbuf))
	case ioctlSetFlags, ioctlSetXattr:
		return fs.fail("ioctl", n, fs.setFlags(n, in.Cmd, inbuf))
	}
	return fuse.Status(unix.ENOTTY)
}

func (fs *FS) getFlags(in *inode, cmd uint32, buf []byte) error {
	fd, _, err := fs.openPath(in)
	if err != nil {
		return err
	}
	defer closeFD(fd)
	return ioctlOn(fd, cmd, buf)
}

func (fs *FS) setFlags(in *inode, cmd uint32, buf []byte) error {
	if fs.readOnly() {
		return unix.EROFS
	}
	if in.typ == unix.S_IFREG {
		if fs.opensUnasked() && locksWriters(cmd, buf) {
			return fmt.Errorf("immutable or append-only with io=writeback, where no open is checked: %w", unix.EOPNOTSUPP)
		}
		// An immutable file could not be completed later.
		if err := fs.data(in).Complete(context.Background()); err != nil {
			return err
		}
	}
	if err := fs.onUpper(in, func(fd int) error { return ioctlOn(fd, cmd, buf) }); err != nil {
		return err
	}
	// What may be opened for writing has changed: the next open makes descriptors of its own.
	if f := in.file.Load(); f != nil {
		f.Forget()
	}
	fs.dropFile(in)
	return nil
}

func ioctlOn(fd int, cmd uint32, buf []byte) error {
	f, err := reopen(fd, os.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read-only
	arg := make([]byte, max(len(buf), 64))
	copy(arg, buf)
	if err := ioctl(int(f.Fd()), uintptr(cmd), unsafe.Pointer(&arg[0])); err != nil {
		return err
	}
	copy(buf, arg)
	return nil
}

// ioctl is ioctl(2) with what arg points to, of which package unix has no function.
func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}
