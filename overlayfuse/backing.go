package overlayfuse

import (
	"fmt"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/transport"
)

// connection is the FUSE connection of a mounted file system, for what is no answer to a request. Nil: it is not mounted.
type connection struct {
	server atomic.Pointer[transport.Server]
}

// register gives the kernel a real file to use by itself, and gets its backing id.
//
// Errors: EPERM without CAP_SYS_ADMIN in the initial user namespace; ELOOP if the file is on a stacked file system itself.
func (c *connection) register(fd int) (id int32, err error) {
	errno := unix.ENODEV
	if s := c.server.Load(); s != nil {
		id, errno = s.RegisterBackingFd(&fuse.BackingMap{Fd: int32(fd)})
	}
	if errno != 0 {
		return 0, fmt.Errorf("register backing file: %w", errno)
	}
	return id, nil
}

// unregister takes a backing id back. Opens that use it go on.
func (c *connection) unregister(id int32) {
	if s := c.server.Load(); s != nil {
		_ = s.UnregisterBackingFd(id) // the kernel forgets it with the connection at the latest
	}
}

// writeBack makes the kernel write back what it has of n bytes of a file at off, and forget it; 0: of all behind it.
//
// Locks: none that a write takes.
func (c *connection) writeBack(id uint64, off, n int64) {
	if s := c.server.Load(); s != nil {
		_ = s.InodeNotify(id, off, n) // ENOENT: the kernel knows no such inode
	}
}

// forgetAttr makes the kernel ask for the attributes of a nodeid again. It waits for nobody: no pages are written back.
func (c *connection) forgetAttr(id uint64) {
	if s := c.server.Load(); s != nil {
		_ = s.InodeNotify(id, -1, 0) // ENOENT: the kernel knows no such inode
	}
}
