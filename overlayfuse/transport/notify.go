package transport

import (
	"errors"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Codes of messages to the kernel that answer no request (enum fuse_notify_code of include/uapi/linux/fuse.h).
const (
	notifyInvalInode = 2
	notifyInvalEntry = 3
	notifyDelete     = 6
	notifyResend     = 7
)

// InodeNotify has the kernel drop what it caches of an inode: its attributes, and its data from off for length bytes (0: to
// the end; off negative: none of it).
//
// Locks: none may be held that a handler takes; the kernel may wait for requests.
// Errors: ENOENT if the kernel does not know the inode; ENODEV at the end of the connection.
func (s *Server) InodeNotify(node uint64, off, length int64) fuse.Status {
	body := fuse.NotifyInvalInodeOut{Ino: node, Off: off, Length: length}
	return fuse.Status(s.notify(notifyInvalInode, bytesOf(&body)))
}

// EntryNotify has the kernel drop what it knows of a name in a directory.
//
// Locks: as for InodeNotify; nor from the handler of a request in that directory.
// Errors: as for InodeNotify.
func (s *Server) EntryNotify(parent uint64, name string) fuse.Status {
	body := fuse.NotifyInvalEntryOut{Parent: parent, NameLen: uint32(len(name))}
	return fuse.Status(s.notify(notifyInvalEntry, bytesOf(&body), append([]byte(name), 0)))
}

// DeleteNotify is EntryNotify for a name that is gone, even if the directory that it named is in use.
//
// Locks: as for EntryNotify.
// Errors: as for InodeNotify.
func (s *Server) DeleteNotify(parent, child uint64, name string) fuse.Status {
	body := fuse.NotifyInvalDeleteOut{Parent: parent, Child: child, NameLen: uint32(len(name))}
	return fuse.Status(s.notify(notifyDelete, bytesOf(&body), append([]byte(name), 0)))
}

// notify sends a message that answers no request.
func (s *Server) notify(code int32, body ...[]byte) unix.Errno {
	h := fuse.OutHeader{Length: uint32(outHeaderSize), Status: code}
	for _, b := range body {
		h.Length += uint32(len(b))
	}
	return s.onDevice(func(fd int) unix.Errno {
		_, err := unix.Writev(fd, append([][]byte{bytesOf(&h)}, body...))
		var errno unix.Errno
		_ = errors.As(err, &errno) // 0 is success
		return errno
	})
}

const (
	iocBackingOpen  = 0x4010e501 // FUSE_DEV_IOC_BACKING_OPEN
	iocBackingClose = 0x4004e502 // FUSE_DEV_IOC_BACKING_CLOSE
)

// RegisterBackingFd gives the number under which an open may name a file that reads and writes pass through to.
//
// Errors: EPERM without CAP_SYS_ADMIN; EOPNOTSUPP or EINVAL without passthrough; ENODEV at the end of the connection.
func (s *Server) RegisterBackingFd(m *fuse.BackingMap) (id int32, errno unix.Errno) {
	errno = s.onDevice(func(fd int) unix.Errno {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), iocBackingOpen, uintptr(unsafe.Pointer(m)))
		id = int32(r)
		return errno
	})
	return id, errno
}

// UnregisterBackingFd takes a number back. Opens that named it keep the file.
func (s *Server) UnregisterBackingFd(id int32) unix.Errno {
	return s.onDevice(func(fd int) unix.Errno {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), iocBackingClose, uintptr(unsafe.Pointer(&id)))
		return errno
	})
}

// onDevice calls f with the descriptor, which stays open meanwhile.
//
// Errors: ENODEV if it is closed; f's.
func (s *Server) onDevice(f func(fd int) unix.Errno) unix.Errno {
	s.open.RLock()
	defer s.open.RUnlock()
	if s.closed {
		return unix.ENODEV
	}
	return f(s.fd)
}
