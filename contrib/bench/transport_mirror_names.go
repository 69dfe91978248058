package main

import (
	"errors"
	"os"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Names and attributes of the mirror.

// enter counts a lookup of p/name, whose attributes are a.
func (m *mirrorFS) enter(p *mirrorNode, name string, out *fuse.EntryOut) (*mirrorNode, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := p.children[name]
	if n == nil {
		changed := time.Unix(int64(out.Ctime), int64(out.Ctimensec))
		n = &mirrorNode{id: m.last + 1, parent: p, name: name, dir: -1, fresh: changed.After(m.start)}
		if out.Mode&unix.S_IFMT == unix.S_IFDIR {
			fd, err := unix.Openat(p.dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, err
			}
			n.dir, n.children = fd, map[string]*mirrorNode{}
		}
		m.last++
		p.children[name], m.nodes[n.id] = n, n
	}
	n.lookups++
	out.NodeId, out.Ino = n.id, n.id
	out.SetEntryTimeout(mirrorTime)
	out.SetAttrTimeout(mirrorTime)
	return n, nil
}

// find answers with p/name.
func (m *mirrorFS) find(p *mirrorNode, name string, out *fuse.EntryOut) (*mirrorNode, error) {
	err := attrAt(p.dir, name, unix.AT_SYMLINK_NOFOLLOW, 0, &out.Attr)
	lower := errors.Is(err, unix.ENOENT) && m.lower >= 0
	if lower {
		err = attrAt(m.lower, name, unix.AT_SYMLINK_NOFOLLOW, 0, &out.Attr)
	}
	if err != nil {
		return nil, err
	}
	n, err := m.enter(p, name, out)
	if err == nil && lower {
		n.lower = true
	}
	return n, err
}

// Lookup remembers missing names, too.
func (m *mirrorFS) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	_, err := m.find(m.node(in.NodeId), name, out)
	if errors.Is(err, unix.ENOENT) {
		out.SetEntryTimeout(mirrorTime)
		return fuse.OK
	}
	return fuse.ToStatus(err)
}

// Forget drops what the kernel has dropped.
func (m *mirrorFS) Forget(id, count uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.nodes[id]
	if n == nil || n.parent == nil {
		return
	}
	if n.lookups -= count; n.lookups > 0 {
		return
	}
	delete(m.nodes, id)
	if n.parent.children[n.name] == n {
		delete(n.parent.children, n.name)
	}
	if n.dir >= 0 {
		_ = unix.Close(n.dir) // nothing was written
	}
	if n.have != nil {
		_ = unix.Close(n.under) // nor there
	}
}

// GetAttr is stat(2).
func (m *mirrorFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.SetTimeout(mirrorTime)
	m.mu.Lock()
	n, f := m.nodes[in.NodeId], m.files[in.Fh()]
	m.mu.Unlock()
	if in.Flags()&fuse.FUSE_GETATTR_FH != 0 && f != nil {
		return fuse.ToStatus(attrAt(int(f.file.Fd()), "", unix.AT_EMPTY_PATH, n.id, &out.Attr))
	}
	return fuse.ToStatus(m.attr(n, &out.Attr))
}

// SetAttr is chmod, chown, truncate and utimens.
func (m *mirrorFS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := m.node(in.NodeId)
	if n.lower {
		f, err := m.copyUp(n, false)
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			return fuse.ToStatus(err)
		}
	}
	dir, name, flags := m.at(n)
	if err := setAttrAt(dir, name, flags, in); err != nil {
		return fuse.ToStatus(err)
	}
	out.SetTimeout(mirrorTime)
	return fuse.ToStatus(m.attr(n, &out.Attr))
}

func setAttrAt(dir int, name string, flags int, in *fuse.SetAttrIn) error {
	if name == "" {
		name = "." // a directory: fchmodat(2) and utimensat(2) take no empty path
		flags = 0
	}
	uid, okUID := in.GetUID()
	gid, okGID := in.GetGID()
	if okUID || okGID {
		u, g := -1, -1
		if okUID {
			u = int(uid)
		}
		if okGID {
			g = int(gid)
		}
		if err := unix.Fchownat(dir, name, u, g, flags); err != nil {
			return err
		}
	}
	if mode, ok := in.GetMode(); ok {
		if err := unix.Fchmodat(dir, name, mode&07777, 0); err != nil {
			return err
		}
	}
	if size, ok := in.GetSize(); ok {
		fd, err := unix.Openat(dir, name, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == nil {
			err = errors.Join(unix.Ftruncate(fd, int64(size)), unix.Close(fd))
		}
		if err != nil {
			return err
		}
	}
	atime, okA := in.GetATime()
	mtime, okM := in.GetMTime()
	if !okA && !okM {
		return nil
	}
	return unix.UtimesNanoAt(dir, name, []unix.Timespec{timeToSet(atime, okA), timeToSet(mtime, okM)}, flags)
}

func timeToSet(t time.Time, set bool) unix.Timespec {
	if !set {
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	}
	return unix.NsecToTimespec(t.UnixNano())
}

// Mkdir makes a directory.
func (m *mirrorFS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	p := m.node(in.NodeId)
	err := unix.Mkdirat(p.dir, name, in.Mode&^in.Umask)
	if err == nil {
		_, err = m.find(p, name, out)
	}
	return fuse.ToStatus(err)
}

// Symlink makes a symlink.
func (m *mirrorFS) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	p := m.node(in.NodeId)
	err := unix.Symlinkat(target, p.dir, name)
	if err == nil {
		_, err = m.find(p, name, out)
	}
	return fuse.ToStatus(err)
}

// Readlink reads a symlink.
func (m *mirrorFS) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	n := m.node(in.NodeId)
	target := make([]byte, unix.PathMax)
	k, err := unix.Readlinkat(n.parent.dir, n.name, target)
	if err != nil {
		return nil, fuse.ToStatus(err)
	}
	return target[:k], fuse.OK
}

// gone takes p/name out of the table.
func (m *mirrorFS) gone(p *mirrorNode, name string) {
	m.mu.Lock()
	delete(p.children, name)
	m.mu.Unlock()
}

// Unlink removes a name.
func (m *mirrorFS) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return m.remove(m.node(in.NodeId), name, 0)
}

// Rmdir removes a directory.
func (m *mirrorFS) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return m.remove(m.node(in.NodeId), name, unix.AT_REMOVEDIR)
}

func (m *mirrorFS) remove(p *mirrorNode, name string, flags int) fuse.Status {
	err := unix.Unlinkat(p.dir, name, flags)
	if err == nil {
		m.gone(p, name)
	}
	return fuse.ToStatus(err)
}

// Rename moves a name.
func (m *mirrorFS) Rename(_ <-chan struct{}, in *fuse.RenameIn, name, to string) fuse.Status {
	p, q := m.node(in.NodeId), m.node(in.Newdir)
	if err := unix.Renameat2(p.dir, name, q.dir, to, uint(in.Flags)); err != nil {
		return fuse.ToStatus(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := p.children[name]; n != nil {
		delete(p.children, name)
		n.parent, n.name = q, to
		q.children[to] = n
	}
	return fuse.OK
}

// FsyncDir syncs a directory.
func (m *mirrorFS) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return fuse.ToStatus(unix.Fsync(m.node(in.NodeId).dir))
}

// OpenDir reads all names.
func (m *mirrorFS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n := m.node(in.NodeId)
	fd, err := unix.Openat(n.dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fuse.ToStatus(err)
	}
	f := &mirrorFile{node: n, file: os.NewFile(uintptr(fd), n.name)}
	if f.names, err = f.file.ReadDir(-1); err != nil {
		_ = f.file.Close() // nothing was written
		return fuse.ToStatus(err)
	}
	m.mu.Lock()
	out.Fh = m.keepLocked(f)
	m.mu.Unlock()
	out.OpenFlags = fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

// names from where in reads on.
func (m *mirrorFS) names(in *fuse.ReadIn) (*mirrorNode, []os.DirEntry) {
	f := m.handle(in.Fh)
	return f.node, f.names[min(in.Offset, uint64(len(f.names))):]
}

func entryOf(e os.DirEntry, offset uint64) fuse.DirEntry {
	d := fuse.DirEntry{Name: e.Name(), Mode: unix.S_IFREG, Ino: fuse.FUSE_UNKNOWN_INO, Off: offset}
	switch e.Type() {
	case os.ModeDir:
		d.Mode = unix.S_IFDIR
	case os.ModeSymlink:
		d.Mode = unix.S_IFLNK
	default: // nothing else is there
	}
	return d
}

// ReadDir gives names alone. Those that are no name of ours (".", "..") nobody needs.
func (m *mirrorFS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	_, names := m.names(in)
	for i, e := range names {
		if !out.AddDirEntry(entryOf(e, in.Offset+uint64(i)+1)) {
			break
		}
	}
	return fuse.OK
}

// ReadDirPlus looks the names up as well.
func (m *mirrorFS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	n, names := m.names(in)
	for i, e := range names {
		entry := out.AddDirLookupEntry(entryOf(e, in.Offset+uint64(i)+1))
		if entry == nil {
			break
		}
		if _, err := m.find(n, e.Name(), entry); err != nil {
			entry.NodeId = 0 // somebody removed it
		}
	}
	return fuse.OK
}

// ReleaseDir closes a directory.
func (m *mirrorFS) ReleaseDir(in *fuse.ReleaseIn) { m.Release(nil, in) }

// StatFs is that of the file system below.
func (m *mirrorFS) StatFs(_ <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	var st syscall.Statfs_t
	if err := syscall.Fstatfs(m.node(in.NodeId).dir, &st); err != nil {
		return fuse.ToStatus(err)
	}
	out.FromStatfsT(&st)
	return fuse.OK
}
