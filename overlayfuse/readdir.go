package overlayfuse

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// dirent is one visible entry of a merged directory.
type dirent struct {
	name string
	mode uint32 // S_IFMT
	ino  uint64 // st_ino
}

// dirStream is an open directory: a picture of its entries taken at the first read, and again after a rewind. Positions are
// indices in it, so entries that come or go meanwhile move nothing.
//
// Locks: mu is held while the directory is read; it comes before ns and table.mu.
type dirStream struct {
	mu      sync.Mutex
	entries []dirent
	read    bool
	ahead   bool // lookups come with the entries; see lookAhead
}

// OpenDir opens a directory.
func (fs *FS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, s := fs.node(in.NodeId)
	if !s.Ok() {
		return s
	}
	if !n.isDir() {
		return fuse.ENOTDIR
	}
	out.Fh, out.OpenFlags = fs.handles.add(&handle{in: n, dir: &dirStream{}}), openDirFlags()
	return fuse.OK
}

// ReleaseDir closes a directory.
func (fs *FS) ReleaseDir(in *fuse.ReleaseIn) { fs.handles.remove(in.Fh) }

// FsyncDir makes a directory's names durable.
func (fs *FS) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h, s := fs.handles.get(in.Fh)
	if !s.Ok() {
		return s
	}
	if !h.in.upper().exists || fs.cfg.Volatile {
		return fuse.OK
	}
	return fs.fail("fsyncdir", h.in, fs.syncUpper(h.in))
}

// ReadDir gives names, types and inode numbers.
func (fs *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return fs.readDir(in, false, func(_ *handle, e dirent, off uint64) bool {
		return out.AddDirEntry(fuse.DirEntry{Name: e.name, Mode: e.mode, Ino: e.ino, Off: off})
	})
}

// ReadDirPlus gives a lookup of each entry with it, if they are wanted; else, and for one that has gone since the directory was read, only
// the name. Compare: fs/fuse/readdir.c:fuse_direntplus_link(), which leaves out what has nodeid 0.
func (fs *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return fs.readDir(in, true, func(h *handle, e dirent, off uint64) bool {
		entry := out.AddDirLookupEntry(fuse.DirEntry{Name: e.name, Mode: e.mode, Ino: e.ino, Off: off})
		if entry == nil {
			return false
		}
		if !h.dir.ahead || e.name == "." || e.name == ".." {
			return true
		}
		n, err := fs.lookup(h.in, e.name)
		if err != nil || n == nil {
			return true // a lookup of its own will tell why
		}
		if s := fs.answer("readdirplus", n, entry); !s.Ok() {
			*entry = fuse.EntryOut{}
		}
		return true
	})
}

// readDir calls add for the entries from the offset on, with the stream's lock held. plus: the answer has room for lookups.
func (fs *FS) readDir(in *fuse.ReadIn, plus bool, add func(h *handle, e dirent, off uint64) bool) fuse.Status {
	h, s := fs.handles.get(in.Fh)
	if !s.Ok() {
		return s
	}
	d := h.dir
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.read || in.Offset == 0 {
		es, err := fs.list(h.in)
		if err != nil {
			return fs.fail("readdir", h.in, err)
		}
		d.entries, d.read = append(dots(h.in), es...), true
		d.ahead = plus && fs.ahead.list(h.in, es)
	}
	d.ahead = d.ahead || fs.ahead.goesOn()
	for i := in.Offset; i < uint64(len(d.entries)); i++ {
		if !add(h, d.entries[i], i+1) {
			break
		}
	}
	return fuse.OK
}

// dots are the entries for the directory itself and the one above it.
func dots(in *inode) []dirent {
	up := in
	if a, ok := in.firstAlias(); ok {
		up = a.parent
	}
	return []dirent{{".", unix.S_IFDIR, in.ino}, {"..", unix.S_IFDIR, up.ino}}
}

// list are the visible entries of a merged directory, the upper's first.
//
// Errors: those of reading a directory; EIO if an entry cannot be told from a whiteout.
// Compare: fs/overlayfs/readdir.c:ovl_dir_read_merged().
func (fs *FS) list(in *inode) ([]dirent, error) {
	if in.isDead() {
		return nil, nil
	}
	l := lister{fs: fs, in: in}
	if in.upper().exists {
		l.seen = map[string]bool{}
		d, err := fs.upperDir(in)
		if err != nil {
			return nil, err
		}
		err = l.add(d, true)
		d.release()
		if err != nil {
			return nil, fmt.Errorf("read upper directory: %w", err)
		}
	}
	if in.lower != nil {
		if err := l.addLower(in.lower); err != nil {
			return nil, err
		}
	}
	return l.entries, nil
}

// lister merges directories, topmost first.
type lister struct {
	fs      *FS
	in      *inode
	seen    map[string]bool // also whiteouts; nil if there is nothing to compare with
	entries []dirent
}

func (l *lister) add(d *dirFD, upper bool) error {
	raw, err := readDirents(d.fd)
	if err != nil {
		return err
	}
	st, err := statAt(d.fd, "")
	if err != nil {
		return err
	}
	mapped := false // inode numbers are not those of the directory's own entries
	if upper {
		if mapped, err = hasXattr(objectAt{d.fd, "."}, l.fs.prefix+"impure"); err != nil {
			return fmt.Errorf("read impure: %w", err)
		}
		mapped = mapped || l.in.impure.Load()
	}
	xwhiteouts := !upper && l.fs.chain.xwhiteouts(d.fd)
	for _, e := range raw {
		if l.seen[e.name] {
			continue
		}
		l.seen[e.name] = true
		white, err := l.fs.chain.isWhiteoutEntry(d.fd, &e, xwhiteouts)
		if err != nil {
			return fmt.Errorf("%q: %w", e.name, err)
		}
		if white {
			continue
		}
		e.ino = l.fs.inos.number(objKey{st.Dev, e.ino})
		if mapped || upper && isDir(e.mode) && l.in.lower != nil {
			if err := l.resolve(&e); errors.Is(err, unix.ENOENT) {
				continue // it has just gone
			} // any other error a lookup of the name will tell
		}
		l.entries = append(l.entries, e)
	}
	return nil
}

// addLower adds what the lower layers have, from the listing unless the directory is too large for one.
func (l *lister) addLower(dir *entry) error {
	c := l.fs.chain
	names, err := c.list(dir)
	if err != nil {
		return err
	}
	if !names.large {
		l.addListing(names)
		return nil
	}
	if l.seen == nil {
		l.seen = map[string]bool{}
	}
	for _, r := range dir.dirs() {
		d, err := c.lowerDir(r.layer, r.path)
		if err != nil {
			return fmt.Errorf("open directory %s: %w", c.where(r), err)
		}
		err = l.add(d, false)
		d.release()
		if err != nil {
			return fmt.Errorf("read directory %s: %w", c.where(r), err)
		}
	}
	return nil
}

func (l *lister) addListing(names *listing) {
	l.entries = slices.Grow(l.entries, len(names.slots))
	for i := range names.slots {
		s, name := &names.slots[i], names.name(i)
		if s.typ == 0 || l.seen[name] {
			continue
		}
		ino := l.fs.inos.number(objKey{names.devs[s.first], s.ino})
		l.entries = append(l.entries, dirent{name: name, mode: uint32(s.typ) << 12, ino: ino})
	}
}

// resolve gives the inode number that a lookup would.
func (l *lister) resolve(e *dirent) error {
	c, err := l.fs.resolve(l.in, e.name)
	if err != nil {
		return err
	}
	if c == nil {
		return unix.ENOENT
	}
	e.ino, e.mode = c.ino, c.typ
	return nil
}

// xwhiteouts tells a directory that says it may hold empty files as whiteouts (opaque=x).
func (c *chain) xwhiteouts(dir int) bool {
	v, err := getXattr(objectAt{dir, "."}, c.prefix+"opaque")
	return err == nil && string(v) == "x"
}

// readDirents are the raw entries of a directory open with O_PATH.
func readDirents(dir int) ([]dirent, error) {
	fd, err := openIn(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer closeFD(fd)
	var entries []dirent
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("getdents64", err)
		}
		if n == 0 {
			return entries, nil
		}
		for b := buf[:n]; len(b) > 0; {
			var e fuse.DirEntry
			b = b[e.Parse(b):]
			if e.Name != "." && e.Name != ".." {
				entries = append(entries, dirent{e.Name, e.Mode & unix.S_IFMT, e.Ino})
			}
		}
	}
}

// listNames are the names in a directory open with O_PATH.
func listNames(dir int) ([]string, error) {
	es, err := readDirents(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(es))
	for i, e := range es {
		names[i] = e.name
	}
	return names, nil
}
