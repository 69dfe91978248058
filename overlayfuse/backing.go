package overlayfuse

import (
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// connection is the FUSE connection of a mounted file system, for what is no answer to a request. Its methods are safe for
// concurrent use; after close they fail with EBADF.
//
// Locks: mu is held for reading across an ioctl or write that waits for nobody.
type connection struct {
	mu sync.RWMutex
	fd int // a duplicate of the session's descriptor; -1: not mounted
}

// The requests of /dev/fuse. Source: include/uapi/linux/fuse.h (Linux 6.18).
const (
	fuseDevIocBackingOpen  = 0x4010e501 // _IOW(229, 1, struct fuse_backing_map)
	fuseDevIocBackingClose = 0x4004e502 // _IOW(229, 2, uint32_t)
	fuseNotifyInvalInode   = 2
)

// backingMap is struct fuse_backing_map.
type backingMap struct {
	fd      int32
	flags   uint32
	padding uint64
}

// open takes the connection's descriptor over, which may be any that refers to it.
func (c *connection) open(dev int) error {
	fd, err := unix.FcntlInt(uintptr(dev), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("duplicate the connection's descriptor: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fd = fd
	return nil
}

func (c *connection) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd >= 0 {
		closeFD(c.fd)
	}
	c.fd = -1
}

// register gives the kernel a real file to use by itself, and gets its backing id.
//
// Errors: EPERM without CAP_SYS_ADMIN in the initial user namespace; ELOOP if the file is on a stacked file system itself.
func (c *connection) register(fd int) (id int32, err error) {
	m := backingMap{fd: int32(fd)}
	n, err := c.ioctl(fuseDevIocBackingOpen, unsafe.Pointer(&m))
	if err != nil {
		return 0, fmt.Errorf("register backing file: %w", err)
	}
	return int32(n), nil
}

// unregister takes a backing id back. Opens that use it go on.
func (c *connection) unregister(id int32) {
	_, _ = c.ioctl(fuseDevIocBackingClose, unsafe.Pointer(&id)) // the kernel forgets it with the connection at the latest
}

func (c *connection) ioctl(request uintptr, arg unsafe.Pointer) (uintptr, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(c.fd), request, uintptr(arg))
	if errno != 0 {
		return 0, errno
	}
	return n, nil
}

// forgetAttr makes the kernel ask for the attributes of a nodeid again.
func (c *connection) forgetAttr(id uint64) {
	// struct fuse_out_header, then struct fuse_notify_inval_inode_out; a negative offset leaves the pages.
	m := struct {
		length uint32
		notify int32
		unique uint64
		id     uint64
		offset int64
		bytes  int64
	}{notify: fuseNotifyInvalInode, id: id, offset: -1}
	m.length = uint32(unsafe.Sizeof(m))
	c.mu.RLock()
	defer c.mu.RUnlock()
	// ENOENT: it knows no such inode. Any other error ends with the connection.
	_, _ = unix.Write(c.fd, unsafe.Slice((*byte)(unsafe.Pointer(&m)), unsafe.Sizeof(m)))
}
