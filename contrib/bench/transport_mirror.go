package main

import (
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/transport"
)

func init() { workers["mirror"] = serveMirror }

// mirrorFS is a bare FUSE server: it shows one plain directory, and answers each request with the system call that
// it stands for, on our transport. Nothing is an overlay in it: no layers, marks, locks, ids or extended attributes (the kernel asks for
// them once, and never again). It believes for ever what it has told the kernel. What takes longer on it than in the
// directory is what FUSE costs with a request for each thing that the kernel asks.
//
// Files made on it are passed through, as those of an upper are, and also those that were written and that the kernel has forgotten
// since. Others are not, as a lower file that is being written can't be: what has not been written is elsewhere.
//
// It can also be a small overlay: above a lower directory of files alone, the first change of a file copies it up with
// its data or without, a mark, its size and its times, and nothing more. Of a file over mirrorWhole bytes only the blocks that are
// written go to the upper; which ones is remembered in memory alone.
//
// No more than the workloads need is there: no links, special files or locks; one client at a time; a file that is copied up is
// open once and is not looked up again after the kernel has forgotten it.
type mirrorFS struct {
	fuse.RawFileSystem

	server *transport.Server
	start  time.Time
	lower  int // the lower directory's descriptor; -1
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
	root := &mirrorNode{id: fuse.FUSE_ROOT_ID, dir: fds[0], children: map[string]*mirrorNode{}}
	return &mirrorFS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		nodes:         map[uint64]*mirrorNode{root.id: root},
		files:         map[uint64]*mirrorFile{},
		start:         time.Now(),
		lower:         fds[1],
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
