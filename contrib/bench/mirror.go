package main

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/transport"
)

func init() { workers["mirror"] = serveMirror }

// mirrorFS is the least that a FUSE server can do: it shows one plain directory, and answers each request with the system call that
// it stands for, on our transport. Nothing is an overlay in it: no layers, marks, locks, ids or extended attributes (the kernel asks for
// them once, and never again). It believes for ever what it has told the kernel. So what takes longer on it than in the
// directory is the price of FUSE.
//
// Files made on it are passed through, as those of an upper are, and also those that were written and that the kernel has forgotten
// since. Others are not, as a lower file that is being written can't be: what has not been written is elsewhere.
//
// It can also be the least overlay: above a lower directory of files alone, the first change of a file copies it up by
// the system calls that no copy-up can do without. Of a file over mirrorWhole bytes only the blocks that are written go to the upper, which
// blocks is remembered in memory alone.
//
// No more than the workloads need is there: no links, special files, locks or races between a lookup and a rename of it.
type mirrorFS struct {
	fuse.RawFileSystem

	server *transport.Server
	start  time.Time
	lower  int // the lower directory's descriptor; -1
	work   int // of a directory for unnamed files
	mu     sync.Mutex
	nodes  map[uint64]*mirrorNode
	files  map[uint64]*mirrorFile
	last   uint64 // node and handle numbers given out
}

// mirrorNode is an object that the kernel knows.
type mirrorNode struct {
	id, lookups uint64
	parent      *mirrorNode // nil: the root
	name        string
	dir         int // a directory's descriptor; -1
	children    map[string]*mirrorNode
	lower       bool   // it is in the lower directory alone
	under       int    // the lower file, while have != nil
	have        []bool // blocks of the lower's length that are in the upper; nil: all
	fresh       bool   // made, or changed, after the mirror was
	backing     int32  // registered, while opens > 0
	opens       int
}

// mirrorFile is an open file or directory.
type mirrorFile struct {
	node  *mirrorNode
	file  *os.File
	names []os.DirEntry
}

// newMirror shows dir, and what is in lower alone; "" is none.
func newMirror(dir, lower string) (*mirrorFS, error) {
	fds := [2]int{-1, -1}
	for i, path := range []string{dir, lower} {
		if path == "" {
			continue
		}
		var err error
		if fds[i], err = unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			return nil, named("open", path, err)
		}
	}
	fd := fds[0]
	root := &mirrorNode{id: fuse.FUSE_ROOT_ID, dir: fd, children: map[string]*mirrorNode{}}
	return &mirrorFS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		nodes:         map[uint64]*mirrorNode{root.id: root},
		files:         map[uint64]*mirrorFile{},
		start:         time.Now(),
		lower:         fds[1],
		work:          fd,
		last:          root.id,
	}, nil
}

// serveMirror serves DIRECTORY, above LOWER ("": nothing), on MOUNTPOINT until that is unmounted.
func serveMirror(args []string) (values, error) {
	debug.SetGCPercent(50) // as cmd/overlayfuse
	m, err := newMirror(args[0], args[1])
	if err != nil {
		return nil, err
	}
	dev, err := mountBench(args[2])
	if err != nil {
		return nil, err
	}
	o := transportOptions()
	o.ExplicitDataCacheControl, o.MaxReadAhead, o.MaxStackDepth = true, o.MaxWrite, 1
	o.ExtraCapabilities = fuse.CAP_DONT_MASK | fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_CACHE_SYMLINKS |
		fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_PASSTHROUGH
	o.DisabledCapabilities = fuse.CAP_AUTO_INVAL_DATA | fuse.CAP_NO_OPEN_SUPPORT
	if m.server, err = transport.New(m, o, dev, nil); err != nil {
		return nil, err
	}
	if err := m.server.Init(); err != nil {
		return nil, err
	}
	return values{}, m.server.Serve()
}

// mirrorTime is how long the kernel believes what it is told.
const mirrorTime = time.Hour

// status of a system call.
func status(err error) fuse.Status {
	var errno unix.Errno
	switch {
	case err == nil:
		return fuse.OK
	case errors.As(err, &errno):
		return fuse.Status(errno)
	default:
		return fuse.EIO
	}
}

// node is the object of a request. The kernel asks for none that it was not told of.
func (m *mirrorFS) node(id uint64) *mirrorNode {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.nodes[id]
}

// at is where a system call finds n.
func (m *mirrorFS) at(n *mirrorNode) (dir int, name string, flags int) {
	switch {
	case n.dir >= 0:
		return n.dir, "", unix.AT_EMPTY_PATH
	case n.lower:
		return m.lower, n.name, unix.AT_SYMLINK_NOFOLLOW
	}
	return n.parent.dir, n.name, unix.AT_SYMLINK_NOFOLLOW
}

func (m *mirrorFS) attr(n *mirrorNode, out *fuse.Attr) error {
	dir, name, flags := m.at(n)
	return attrAt(dir, name, flags, n.id, out)
}

func attrAt(dir int, name string, flags int, id uint64, out *fuse.Attr) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, flags); err != nil {
		return err
	}
	*out = fuse.Attr{
		Ino: id, Size: uint64(st.Size), Blocks: uint64(st.Blocks), Blksize: uint32(st.Blksize),
		Atime: uint64(st.Atim.Sec), Atimensec: uint32(st.Atim.Nsec), Mtime: uint64(st.Mtim.Sec), Mtimensec: uint32(st.Mtim.Nsec),
		Ctime: uint64(st.Ctim.Sec), Ctimensec: uint32(st.Ctim.Nsec), Mode: st.Mode, Nlink: uint32(st.Nlink),
		Owner: fuse.Owner{Uid: st.Uid, Gid: st.Gid},
	}
	return nil
}

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

// mirrorWhole is the size in bytes up to which a file is copied whole, as ours does.
const mirrorWhole = 128 << 10

// copyUp makes n an object of the upper, with its data or marked as one without.
func (m *mirrorFS) copyUp(n *mirrorNode, data bool) (*os.File, error) {
	from, err := unix.Openat(m.lower, n.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	sparse := false
	defer func() {
		if !sparse {
			_ = unix.Close(from) // nothing was written
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return nil, err
	}
	to, err := unix.Openat(m.work, ".", unix.O_RDWR|unix.O_TMPFILE|unix.O_CLOEXEC, st.Mode&07777)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(to), n.name)
	steps := []func() error{
		func() error { return unix.Ftruncate(to, st.Size) },
		func() error { return unix.Fsetxattr(to, "trusted.overlay.metacopy", nil, 0) },
		func() error {
			if sparse = data && st.Size > mirrorWhole; !data || sparse {
				return nil
			}
			k, err := unix.CopyFileRange(from, nil, to, nil, int(st.Size), 0)
			if err == nil && k != int(st.Size) {
				err = unix.EIO
			}
			return err
		},
		func() error { return unix.UtimesNanoAt(to, "", []unix.Timespec{st.Atim, st.Mtim}, unix.AT_EMPTY_PATH) },
		func() error { return unix.Linkat(to, "", n.parent.dir, n.name, unix.AT_EMPTY_PATH) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			sparse = false
			return nil, errors.Join(err, f.Close())
		}
	}
	n.lower = false
	if sparse {
		n.under, n.have = from, make([]bool, (st.Size+page-1)/page)
	}
	return f, nil
}

// blocks are those of a range for which n's map says something.
func (n *mirrorNode) blocks(off int64, length int) (from, to int64) {
	return min(off/page, int64(len(n.have))), min((off+int64(length)+page-1)/page, int64(len(n.have)))
}

// fill has the upper hold the blocks that a write covers in part, and notes all that it covers.
func (n *mirrorNode) fill(upper int, off int64, length int) error {
	from, to := n.blocks(off, length)
	block := make([]byte, page)
	for i := from; i < to; i++ {
		if !n.have[i] && (i*page < off || (i+1)*page > off+int64(length)) {
			k, err := unix.Pread(n.under, block, i*page)
			if err == nil {
				err = pwriteAll(upper, block[:k], i*page)
			}
			if err != nil {
				return err
			}
		}
		n.have[i] = true
	}
	return nil
}

// compose puts what the upper lacks of a read into it.
func (n *mirrorNode) compose(buf []byte, off int64) error {
	from, to := n.blocks(off, len(buf))
	for i := from; i < to; i++ {
		if n.have[i] {
			continue
		}
		start, end := max(i*page, off), min((i+1)*page, off+int64(len(buf)))
		if _, err := unix.Pread(n.under, buf[start-off:end-off], start); err != nil {
			return err
		}
	}
	return nil
}

// Lookup remembers missing names, too.
func (m *mirrorFS) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	_, err := m.find(m.node(in.NodeId), name, out)
	if errors.Is(err, unix.ENOENT) {
		out.SetEntryTimeout(mirrorTime)
		return fuse.OK
	}
	return status(err)
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
		return status(attrAt(int(f.file.Fd()), "", unix.AT_EMPTY_PATH, n.id, &out.Attr))
	}
	return status(m.attr(n, &out.Attr))
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
			return status(err)
		}
	}
	dir, name, flags := m.at(n)
	if err := setAttrAt(dir, name, flags, in); err != nil {
		return status(err)
	}
	out.SetTimeout(mirrorTime)
	return status(m.attr(n, &out.Attr))
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
	return status(err)
}

// Symlink makes a symlink.
func (m *mirrorFS) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	p := m.node(in.NodeId)
	err := unix.Symlinkat(target, p.dir, name)
	if err == nil {
		_, err = m.find(p, name, out)
	}
	return status(err)
}

// Readlink reads a symlink.
func (m *mirrorFS) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	n := m.node(in.NodeId)
	target := make([]byte, unix.PathMax)
	k, err := unix.Readlinkat(n.parent.dir, n.name, target)
	if err != nil {
		return nil, status(err)
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
	return status(err)
}

// Rename moves a name.
func (m *mirrorFS) Rename(_ <-chan struct{}, in *fuse.RenameIn, name, to string) fuse.Status {
	p, q := m.node(in.NodeId), m.node(in.Newdir)
	if err := unix.Renameat2(p.dir, name, q.dir, to, uint(in.Flags)); err != nil {
		return status(err)
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

// Create makes and opens a file.
func (m *mirrorFS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	p := m.node(in.NodeId)
	fd, err := unix.Openat(p.dir, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, in.Mode&07777&^in.Umask)
	if err != nil {
		return status(err)
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
	return status(err)
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
		return status(err)
	}
	f := os.NewFile(uintptr(fd), n.name)
	if err = m.opened(n, f, out); err != nil {
		_ = f.Close() // nothing was written
	}
	return status(err)
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
	m.last++
	out.Fh = m.last
	m.files[out.Fh] = &mirrorFile{node: n, file: f}
	return nil
}

// Release closes a file.
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
	return fuse.ReadResultData(buf), status(err)
}

// Write writes into the file.
func (m *mirrorFS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	f, err := m.writable(in.Fh)
	if err == nil {
		err = f.node.fill(int(f.file.Fd()), int64(in.Offset), len(data))
	}
	if err != nil {
		return 0, status(err)
	}
	k, err := unix.Pwrite(int(f.file.Fd()), data, int64(in.Offset))
	return uint32(max(k, 0)), status(err)
}

// CopyFileRange copies in the file system below.
func (m *mirrorFS) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	from, to := int64(in.OffIn), int64(in.OffOut)
	k, err := unix.CopyFileRange(int(m.file(in.FhIn).Fd()), &from, int(m.file(in.FhOut).Fd()), &to, int(in.Len), 0)
	return uint32(max(k, 0)), status(err)
}

// fsyncData is in the flags of fdatasync(2). Source: include/uapi/linux/fuse.h:FUSE_FSYNC_FDATASYNC (Linux 6.18).
const fsyncData = 1

// Fsync syncs a file.
func (m *mirrorFS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	fd := int(m.file(in.Fh).Fd())
	if in.FsyncFlags&fsyncData != 0 {
		return status(unix.Fdatasync(fd))
	}
	return status(unix.Fsync(fd))
}

// FsyncDir syncs a directory.
func (m *mirrorFS) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return status(unix.Fsync(m.node(in.NodeId).dir))
}

// OpenDir reads all names.
func (m *mirrorFS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n := m.node(in.NodeId)
	fd, err := unix.Openat(n.dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return status(err)
	}
	f := &mirrorFile{node: n, file: os.NewFile(uintptr(fd), n.name)}
	if f.names, err = f.file.ReadDir(-1); err != nil {
		_ = f.file.Close() // nothing was written
		return status(err)
	}
	m.mu.Lock()
	m.last++
	out.Fh = m.last
	m.files[out.Fh] = f
	m.mu.Unlock()
	out.OpenFlags = fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

// names from where in reads on.
func (m *mirrorFS) names(in *fuse.ReadIn) (*mirrorNode, []os.DirEntry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.files[in.Fh]
	return f.node, f.names[min(in.Offset, uint64(len(f.names))):]
}

func entryOf(e os.DirEntry, offset uint64) fuse.DirEntry {
	d := fuse.DirEntry{Name: e.Name(), Mode: unix.S_IFREG, Ino: fuse.FUSE_UNKNOWN_INO, Off: offset}
	switch e.Type() {
	case os.ModeDir:
		d.Mode = unix.S_IFDIR
	case os.ModeSymlink:
		d.Mode = unix.S_IFLNK
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
func (m *mirrorFS) ReleaseDir(in *fuse.ReleaseIn) {
	m.mu.Lock()
	f := m.files[in.Fh]
	delete(m.files, in.Fh)
	m.mu.Unlock()
	_ = f.file.Close() // nothing was written
}

// StatFs is that of the file system below.
func (m *mirrorFS) StatFs(_ <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	var st syscall.Statfs_t
	if err := syscall.Fstatfs(m.node(in.NodeId).dir, &st); err != nil {
		return status(err)
	}
	out.FromStatfsT(&st)
	return fuse.OK
}
