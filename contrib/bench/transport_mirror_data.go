package main

import (
	"fmt"
	"os"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Open files of the mirror.

// Create makes and opens a file.
func (m *mirrorFS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	p := m.node(in.NodeId)
	fd, err := unix.Openat(p.dir, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, in.Mode&07777&^in.Umask)
	if err != nil {
		return fuse.ToStatus(err)
	}
	f := os.NewFile(uintptr(fd), name)
	err = attrAt(fd, "", unix.AT_EMPTY_PATH, 0, &out.Attr)
	var n *mirrorNode
	if err == nil {
		n, err = m.enter(p, name, &out.EntryOut)
	}
	if err == nil {
		err = m.opened(n, f, &out.OpenOut)
	}
	if err != nil {
		_ = f.Close() // nothing was written
	}
	return fuse.ToStatus(err)
}

// Open opens a file.
func (m *mirrorFS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n := m.node(in.NodeId)
	flags := int(in.Flags) & (unix.O_ACCMODE | unix.O_TRUNC)
	if flags&unix.O_ACCMODE == unix.O_WRONLY {
		flags ^= unix.O_WRONLY | unix.O_RDWR // the kernel reads pages that are written in part
	}
	dir, name, _ := m.at(n)
	if n.lower {
		flags = unix.O_RDONLY // whatever is asked for: writes go to the copy
	}
	fd, err := unix.Openat(dir, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fuse.ToStatus(err)
	}
	f := os.NewFile(uintptr(fd), n.name)
	if err = m.opened(n, f, out); err != nil {
		_ = f.Close() // nothing was written
	}
	return fuse.ToStatus(err)
}

// opened gives an open file a handle, and passes it through if it was made here.
func (m *mirrorFS) opened(n *mirrorNode, f *os.File, out *fuse.OpenOut) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH
	if n.fresh {
		if n.opens == 0 {
			id, errno := m.server.RegisterBackingFd(&fuse.BackingMap{Fd: int32(f.Fd())})
			if errno != 0 {
				return fmt.Errorf("register backing file: %w", errno)
			}
			n.backing = id
		}
		n.opens++
		out.OpenFlags, out.BackingID = fuse.FOPEN_PASSTHROUGH|fuse.FOPEN_NOFLUSH, n.backing
	}
	out.Fh = m.keepLocked(&mirrorFile{node: n, file: f})
	return nil
}

// keepLocked gives f a handle. m.mu is held.
func (m *mirrorFS) keepLocked(f *mirrorFile) (fh uint64) {
	m.last++
	m.files[m.last] = f
	return m.last
}

// Release closes a file or a directory.
func (m *mirrorFS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	m.mu.Lock()
	f := m.files[in.Fh]
	delete(m.files, in.Fh)
	if n := f.node; n.fresh && n.dir < 0 {
		if n.opens--; n.opens == 0 {
			_ = m.server.UnregisterBackingFd(n.backing) // the kernel forgets it with the connection at the latest
		}
	}
	m.mu.Unlock()
	_ = f.file.Close() // as close(2) of a descriptor that another one stands for
}

func (m *mirrorFS) handle(fh uint64) *mirrorFile {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.files[fh]
}

func (m *mirrorFS) file(fh uint64) *os.File { return m.handle(fh).file }

// writable is an open file of which there is an upper.
func (m *mirrorFS) writable(fh uint64) (*mirrorFile, error) {
	f := m.handle(fh)
	if !f.node.lower {
		return f, nil
	}
	upper, err := m.copyUp(f.node, true)
	if err == nil {
		err = f.file.Close()
		f.file = upper
	}
	return f, err
}

// Read reads from the file.
func (m *mirrorFS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	f := m.handle(in.Fh)
	k, err := unix.Pread(int(f.file.Fd()), buf, int64(in.Offset))
	buf = buf[:max(k, 0)]
	if err == nil {
		err = f.node.compose(buf, int64(in.Offset))
	}
	return fuse.ReadResultData(buf), fuse.ToStatus(err)
}

// Write writes into the file.
func (m *mirrorFS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	f, err := m.writable(in.Fh)
	if err == nil {
		err = f.node.fill(int(f.file.Fd()), int64(in.Offset), len(data))
	}
	if err != nil {
		return 0, fuse.ToStatus(err)
	}
	k, err := unix.Pwrite(int(f.file.Fd()), data, int64(in.Offset))
	return uint32(max(k, 0)), fuse.ToStatus(err)
}

// CopyFileRange copies in the file system below.
func (m *mirrorFS) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	from, to := int64(in.OffIn), int64(in.OffOut)
	k, err := unix.CopyFileRange(int(m.file(in.FhIn).Fd()), &from, int(m.file(in.FhOut).Fd()), &to, int(in.Len), 0)
	return uint32(max(k, 0)), fuse.ToStatus(err)
}

// fsyncData is in the flags of fdatasync(2). Source: include/uapi/linux/fuse.h:FUSE_FSYNC_FDATASYNC (Linux 6.18).
const fsyncData = 1

// Fsync syncs a file.
func (m *mirrorFS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	fd := int(m.file(in.Fh).Fd())
	if in.FsyncFlags&fsyncData != 0 {
		return fuse.ToStatus(unix.Fdatasync(fd))
	}
	return fuse.ToStatus(unix.Fsync(fd))
}
