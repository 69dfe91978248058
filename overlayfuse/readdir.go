package overlayfuse

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sort"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// dirent is one visible entry of a merged directory.
type dirent struct {
	name string
	mode uint32 // S_IFMT
	ino  uint64 // st_ino
	pos  uint64 // position behind it
}

// OpenDir says that there is nothing to do: the kernel asks no more, keeps the listings of directories, and forgets one with every
// change of the directory that goes through the mount, and there is no other.
func (fs *FS) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.ENOSYS }

// FsyncDir makes a directory's names durable.
func (fs *FS) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	n, s := fs.node(in.NodeId)
	if !s.Ok() {
		return s
	}
	if !n.upper().exists || fs.cfg.Volatile {
		return fuse.OK
	}
	return fs.fail("fsyncdir", n, fs.syncUpper(n))
}

// ReadDir gives names, types and inode numbers.
func (fs *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return fs.readDir(in, false, func(_ *inode, e dirent, _ bool) bool {
		return out.AddDirEntry(fuse.DirEntry{Name: e.name, Mode: e.mode, Ino: e.ino, Off: e.pos})
	})
}

// ReadDirPlus gives a lookup of each entry with it, if they are wanted; else, and for one that has gone since the directory was read, only
// the name. Compare: fs/fuse/readdir.c:fuse_direntplus_link(), which leaves out what has nodeid 0.
func (fs *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return fs.readDir(in, true, func(p *inode, e dirent, ahead bool) bool {
		entry := out.AddDirLookupEntry(fuse.DirEntry{Name: e.name, Mode: e.mode, Ino: e.ino, Off: e.pos})
		if entry == nil {
			return false
		}
		if !ahead || e.name == "." || e.name == ".." {
			return true
		}
		n, err := fs.lookup(p, e.name)
		if err != nil || n == nil {
			return true // a lookup of its own will tell why
		}
		if s := fs.answer("readdirplus", n, entry); !s.Ok() {
			*entry = fuse.EntryOut{}
		}
		return true
	})
}

// readDir calls add for the entries from the offset on. plus: the answer has room for lookups; ahead: they are wanted.
func (fs *FS) readDir(req *fuse.ReadIn, plus bool, add func(p *inode, e dirent, ahead bool) bool) fuse.Status {
	in, s := fs.node(req.NodeId)
	if !s.Ok() {
		return s
	}
	var p *picture
	if req.Offset > 0 {
		p = fs.orders.find(in)
	}
	if p == nil {
		var err error
		if p, err = fs.picture(in, plus, req.Offset == 0); err != nil {
			return fs.fail("readdir", in, err)
		}
	}
	if fs.ahead.goesOn() {
		p.ahead.Store(true)
	}
	i := sort.Search(len(p.entries), func(i int) bool { return p.entries[i].pos > req.Offset })
	if i == len(p.entries) {
		fs.orders.done(p)
		return fuse.OK
	}
	fs.orders.keep(p) // also if all that is left goes into this answer: the kernel asks until there is nothing
	for _, e := range p.entries[i:] {
		if !add(in, e, p.ahead.Load()) {
			break
		}
	}
	return fuse.OK
}

// picture lists a directory. anew: for a reader who begins.
func (fs *FS) picture(in *inode, plus, anew bool) (*picture, error) {
	p := &picture{in: in, number: fs.orders.begin()}
	es, err := fs.listAnew(in, anew)
	if err != nil {
		return nil, err
	}
	p.entries = append(dots(in), es...)
	p.ahead.Store(plus && anew && fs.ahead.list(in, es))
	return p, nil
}

// dots are the entries for the directory itself and the one above it.
func dots(in *inode) []dirent {
	up := in
	if a, ok := in.firstAlias(); ok {
		up = a.parent
	}
	return []dirent{{".", unix.S_IFDIR, in.ino, 1}, {"..", unix.S_IFDIR, up.ino, 2}}
}

// list are the visible entries of a merged directory, sorted by their positions: those that lower layers have too come first.
//
// Errors: those of reading a directory; EIO if an entry cannot be told from a whiteout.
// Compare: fs/overlayfs/readdir.c:ovl_dir_read_merged().
func (fs *FS) list(in *inode) ([]dirent, error) { return fs.listAnew(in, false) }

// listAnew is list; anew: positions that nobody can be at any longer may be given up.
func (fs *FS) listAnew(in *inode, anew bool) ([]dirent, error) {
	if in.isDead() {
		return nil, nil
	}
	l := lister{fs: fs, in: in, pos: firstName, anew: anew}
	if in.upper().exists {
		d, err := fs.upperDir(in)
		if err != nil {
			return nil, err
		}
		err = l.readUpper(d)
		d.release()
		if err != nil {
			return nil, fmt.Errorf("read upper directory: %w", err)
		}
	}
	if in.lower != nil && !in.upper().opaque {
		if err := l.addLower(in.lower); err != nil {
			return nil, err
		}
	}
	l.addUpper()
	return l.entries, nil
}

// lister merges directories.
type lister struct {
	fs      *FS
	in      *inode
	upper   []dirent       // visible entries of the upper that are not in entries; those that are have no name
	place   map[string]int // of each name of the upper, in upper; hidden: a whiteout
	entries []dirent
	pos     uint64 // of the next name of the lower layers
	anew    bool   // see listAnew
}

// hidden is the place of a whiteout.
const hidden = -1

// readUpper reads what the upper has.
func (l *lister) readUpper(d *dirFD) error {
	mapped, err := hasXattr(objectAt{d.fd, "."}, l.fs.prefix+"impure")
	if err != nil {
		return fmt.Errorf("read impure: %w", err)
	}
	mapped = mapped || l.in.impure.Load() // inode numbers are not those of the directory's own entries
	if l.in.lower != nil {
		l.place = map[string]int{}
	}
	return l.fs.chain.readVisible(d, false, func(e dirent, dev uint64, white bool) error {
		if white {
			if l.place != nil {
				l.place[e.name] = hidden
			}
			return nil
		}
		e.ino = l.fs.inos.number(objKey{dev, e.ino})
		if mapped || isDir(e.mode) && l.in.lower != nil {
			if err := l.resolve(&e); errors.Is(err, unix.ENOENT) { // it has just gone
				if l.place != nil {
					l.place[e.name] = hidden
				}
				return nil
			} // any other error a lookup of the name will tell
		}
		if l.place != nil {
			l.place[e.name] = len(l.upper)
		}
		l.upper = append(l.upper, e)
		return nil
	})
}

// readVisible calls fn for each entry of a real directory, with the device that its inode number is of, and whether it is a whiteout.
func (c *chain) readVisible(d *dirFD, xwhiteouts bool, fn func(e dirent, dev uint64, white bool) error) error {
	raw, err := readDirents(d.fd)
	if err != nil {
		return err
	}
	st, err := statAt(d.fd, "")
	if err != nil {
		return err
	}
	for _, e := range raw {
		white, err := c.isWhiteoutEntry(d.fd, &e, xwhiteouts)
		if err == nil {
			err = fn(e, st.Dev, white)
		}
		if err != nil {
			return fmt.Errorf("%q: %w", e.name, err)
		}
	}
	return nil
}

// addLower adds what the lower layers have, from the listing unless the directory is too large for one. What the upper has too is
// the upper's.
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
	seen := map[string]bool{}
	for _, r := range dir.dirs() {
		d, err := c.lowerDir(r.layer, r.path)
		if err != nil {
			return fmt.Errorf("open directory %s: %w", c.where(r), err)
		}
		err = c.readVisible(d, c.xwhiteouts(d.fd), func(e dirent, dev uint64, white bool) error {
			if !seen[e.name] {
				seen[e.name] = true
				e.ino = l.fs.inos.number(objKey{dev, e.ino})
				l.addName(e, white)
			}
			return nil
		})
		d.release()
		if err != nil {
			return fmt.Errorf("read directory %s: %w", c.where(r), err)
		}
	}
	return nil
}

func (l *lister) addListing(names *listing) {
	l.entries = slices.Grow(l.entries, len(names.slots)+len(l.upper))
	for i := range names.slots {
		s := &names.slots[i]
		ino := l.fs.inos.number(objKey{names.devs[s.first], s.ino})
		l.addName(dirent{name: names.name(i), mode: uint32(s.typ) << 12, ino: ino}, s.typ == 0)
	}
}

// addName adds the next name of the lower layers, unless it is a whiteout or the upper hides it.
func (l *lister) addName(e dirent, white bool) {
	pos := l.pos
	l.pos++
	i, ok := l.place[e.name]
	switch {
	case ok && i == hidden:
		return
	case ok:
		e = l.upper[i]
		l.upper[i].name = ""
	case white:
		return
	}
	e.pos = pos
	l.entries = append(l.entries, e)
}

// addUpper adds what the upper alone has.
func (l *lister) addUpper() {
	rest := slices.DeleteFunc(l.upper, func(e dirent) bool { return e.name == "" })
	if len(rest) == 0 {
		return
	}
	l.fs.orders.of(l.in).sort(rest, l.pos, l.anew, l.fs.orders.now())
	l.entries = append(l.entries, rest...)
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
				entries = append(entries, dirent{name: e.Name, mode: e.Mode & unix.S_IFMT, ino: e.Ino})
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
