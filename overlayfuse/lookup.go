package overlayfuse

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// Lookup finds a name. A name that does not exist is answered as such, for the kernel to remember.
func (fs *FS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	p, s := fs.node(h.NodeId)
	if !s.Ok() {
		return s
	}
	in, err := fs.lookup(p, name)
	if err != nil {
		return fs.fail("lookup "+name, p, err)
	}
	if in == nil {
		out.NodeId = 0
		out.SetEntryTimeout(cacheTime)
		return fuse.OK
	}
	fs.ahead.looked(p, name)
	return fs.answer("lookup", in, out)
}

// answer fills the reply for a name that was just looked up or made; on an error the lookup is taken back.
func (fs *FS) answer(op string, in *inode, out *fuse.EntryOut) fuse.Status {
	if err := fs.fillEntry(in, out); err != nil {
		fs.tab.forget(in, 1)
		return fs.fail(op, in, err)
	}
	return fuse.OK
}

func (fs *FS) fillEntry(in *inode, out *fuse.EntryOut) error {
	if err := fs.attr(in, &out.Attr); err != nil {
		return err
	}
	out.NodeId = in.id.Load()
	out.Generation = fs.generation
	out.SetEntryTimeout(cacheTime)
	out.SetAttrTimeout(in.attrTime(out.NodeId))
	return nil
}

// lookup finds name in the directory p and counts a lookup of the result. Nil, nil: there is no such name.
//
// Errors: ENAMETOOLONG; those of chain.child.
// Locks: takes the reservation of p.
// Compare: fs/overlayfs/namei.c:ovl_lookup().
func (fs *FS) lookup(p *inode, name string) (*inode, error) {
	if len(name) > nameMax {
		return nil, unix.ENAMETOOLONG
	}
	// What resolve finds must be entered before it changes: the kernel's own lookups see to that, but not a flush's.
	p.copy.Lock()
	defer p.copy.Unlock()
	n, err := fs.resolve(p, name)
	for n != nil && n.live {
		if fs.tab.refLive(n.inode) {
			return n.inode, nil
		}
		n, err = fs.resolve(p, name) // dropped meanwhile
	}
	if n == nil || err != nil {
		return nil, err
	}
	if e := n.lower; e != nil && e.name == name {
		name = e.name // one string for both
	}
	return fs.tab.intern(n.inode, alias{parent: p, name: name, upper: n.named}), nil
}

// candidate is a looked up object, and whether the upper holds its name. It is not in the table yet, or live: then it was, with that
// name.
type candidate struct {
	*inode
	named, live bool
}

// resolve finds or makes the inode that p/name is, without entering it.
func (fs *FS) resolve(p *inode, name string) (*candidate, error) {
	if p.isDead() {
		return nil, nil
	}
	if p.upper().exists {
		c, stop, err := fs.resolveUpper(p, name)
		if c != nil || stop || err != nil {
			return c, err
		}
	}
	lower, err := fs.lookupLower(p, name)
	if lower == nil || err != nil {
		return nil, err
	}
	return fs.fromLower(lower)
}

// lookupLower is what p/name means in the lower layers that merge in p.
func (fs *FS) lookupLower(p *inode, name string) (*entry, error) {
	if p.lower == nil || p.upper().opaque {
		return nil, nil
	}
	return fs.chain.child(p.lower, name)
}

// fromLower is the inode for a name that only lower layers have. If it is another name of a file that was copied up,
// the index leads to the upper.
func (fs *FS) fromLower(lower *entry) (*candidate, error) {
	in := &inode{fs: fs, typ: lower.st.Mode & unix.S_IFMT, lower: lower, key: lower.st.key()}
	in.ino = fs.inos.number(in.key)
	if !lower.isDir() && lower.st.Nlink > 1 && !fs.index.empty() {
		mark, err := fs.markOf(lower)
		if err != nil {
			return nil, err
		}
		if mark != nil {
			if err := fs.joinIndex(in, mark); err != nil {
				return nil, err
			}
		}
	}
	return &candidate{inode: in}, nil
}

// markOf is the origin mark for a lower object.
func (fs *FS) markOf(lower *entry) ([]byte, error) {
	p, err := fs.lowerPlace(lower.top(), lower.isDir())
	if err != nil {
		return nil, err
	}
	defer p.release()
	mark, err := fs.origin.encode(p.dir.fd, p.name, lower.st.Dev)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", fs.chain.where(lower.top()), err)
	}
	return mark, nil
}

// joinIndex gives in the upper that the index has for its origin, if any.
func (fs *FS) joinIndex(in *inode, mark []byte) error {
	name := indexName(mark)
	key, ok := fs.index.find(name)
	if !ok {
		return nil
	}
	o := objectAt{fs.index.dir.fd, name}
	st, err := statAt(fs.index.dir.fd, name)
	if err != nil {
		return fmt.Errorf("index entry %s: %w", name, err)
	}
	data, limit, err := dataHere, st.Size, error(nil)
	if in.typ == unix.S_IFREG {
		if data, limit, err = fs.readUpperData(in.lower, o, &st); err != nil {
			return fmt.Errorf("index entry %s: %w", name, err)
		}
	}
	in.raise().upperObj = upperObj{exists: true, key: key, data: data, limit: limit}
	return fs.loadLinks(in, name, int(in.lower.st.Nlink))
}

// loadLinks reads the number of names of an indexed inode. lower is the number of names that the lower file has, 0 if
// that can't be known.
func (fs *FS) loadLinks(in *inode, name string, lower int) error {
	st, err := statAt(fs.index.dir.fd, name)
	if err != nil {
		return fmt.Errorf("index entry %s: %w", name, err)
	}
	if lower == 0 {
		lower = int(st.Nlink) - 1
	}
	link := linkCount{index: name, lower: lower, names: lower}
	v, err := getXattr(objectAt{fs.index.dir.fd, name}, fs.prefix+"nlink")
	switch {
	case noXattr(err):
	case err != nil:
		return fmt.Errorf("index entry %s: read nlink: %w", name, err)
	default:
		if link.names, err = parseNlink(v, lower, int(st.Nlink)); err != nil {
			return fmt.Errorf("index entry %s: %w", name, err)
		}
	}
	in.setLinks(link)
	return nil
}

// resolveUpper looks for name in the upper of p. stop: the upper hides what is below.
func (fs *FS) resolveUpper(p *inode, name string) (c *candidate, stop bool, err error) {
	d, err := fs.upperDir(p)
	if err != nil {
		if errors.Is(err, unix.ENOENT) && p.isDead() {
			return nil, true, nil
		}
		return nil, false, err
	}
	defer d.release()
	st, err := statAt(d.fd, name)
	if errors.Is(err, unix.ENOENT) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("stat %q in the upper: %w", name, err)
	}
	if isWhiteout(&st) {
		return nil, true, nil
	}
	if in := fs.tab.named(keyOf(&st), p, name); in != nil {
		return &candidate{inode: in, named: true, live: true}, true, nil
	}
	in := &inode{fs: fs, typ: st.Mode & unix.S_IFMT, key: keyOf(&st)}
	in.raise().upperObj = upperObj{exists: true, key: keyOf(&st)}
	if isDir(st.Mode) {
		err = fs.mergeUpperDir(p, name, in, objectAt{d.fd, name})
	} else {
		err = fs.joinLowerFile(p, name, in, objectAt{d.fd, name}, &st)
	}
	if err != nil {
		return nil, false, fmt.Errorf("%q in the upper: %w", name, err)
	}
	in.ino = fs.inos.number(in.key)
	return &candidate{inode: in, named: true}, true, nil
}

// mergeUpperDir finds the lower directories that merge with an upper one.
func (fs *FS) mergeUpperDir(p *inode, name string, in *inode, o objectAt) error {
	m, err := readDirMarks(o, fs.prefix)
	if err != nil {
		return err
	}
	in.raise().opaque = m.opaque
	if m.opaque {
		return nil
	}
	lower, err := fs.below(p, name, m.redirect)
	if err != nil {
		return err
	}
	if lower != nil && lower.isDir() {
		in.lower = lower
		in.key = lower.st.key()
	}
	return nil
}

// below is the lower object that p/name in the upper stands on: where its redirect points, or the same name.
func (fs *FS) below(p *inode, name, redirect string) (*entry, error) {
	switch {
	case redirect == "":
		return fs.lookupLower(p, name)
	case strings.HasPrefix(redirect, "/"):
		return fs.chain.walk(fs.root.lower, redirect[1:])
	}
	return fs.lookupLower(p, redirect)
}

// joinLowerFile reads what an upper file says of the lower one that it was copied from: its identity, its other names,
// and where its data is if it holds none.
//
// Errors: EIO for a metacopy file without lower data.
func (fs *FS) joinLowerFile(p *inode, name string, in *inode, o objectAt, st *unix.Stat_t) error {
	mark, err := getXattr(o, fs.prefix+"origin")
	if err != nil && !noXattr(err) {
		return fmt.Errorf("read origin: %w", err)
	}
	if in.typ == unix.S_IFREG {
		if err := fs.joinData(p, name, in, o, st); err != nil {
			return err
		}
	}
	if len(mark) == 0 {
		if in.up().data != dataHere && in.lower.st.Nlink == 1 {
			in.key = in.lower.st.key() // its data says what it was copied from
		}
		return nil
	}
	origin, ok := fs.origin.decode(mark, in.typ)
	if !ok {
		origin, ok = fs.sameNameOrigin(p, name, mark, in.typ)
	}
	indexed := false
	if st.Nlink > 1 && !fs.index.empty() {
		if k, found := fs.index.find(indexName(mark)); found && k == in.up().key {
			indexed = true
			if err := fs.loadLinks(in, indexName(mark), int(origin.Nlink)); err != nil {
				return err
			}
		}
	}
	// A lower file with several names that was copied up without an index (by the kernel's overlayfs) is one of several copies.
	sole := indexed || origin.Nlink == 1
	if ok && !sole {
		if sole, err = hasXattr(o, fs.prefix+soleMark); err != nil {
			return fmt.Errorf("read %s: %w", soleMark, err)
		}
	}
	if ok && sole {
		in.key = keyOf(&origin)
	}
	return nil
}

// sameNameOrigin finds the origin without the right to open file handles: the object of the same name below, if its
// handle is the one in the mark. A file that was renamed gets the upper's inode number at the next mount instead.
func (fs *FS) sameNameOrigin(p *inode, name string, mark []byte, typ uint32) (unix.Stat_t, bool) {
	lower, err := fs.lookupLower(p, name)
	if err != nil || lower == nil || lower.st.Mode&unix.S_IFMT != typ {
		return unix.Stat_t{}, false
	}
	m, err := fs.markOf(lower)
	if err != nil || !bytes.Equal(m, mark) {
		return unix.Stat_t{}, false
	}
	return lower.st.stat(), true
}

// joinData finds the lower data of a metacopy file.
func (fs *FS) joinData(p *inode, name string, in *inode, o objectAt, st *unix.Stat_t) (err error) {
	up := in.raise()
	marks, err := readData(o, fs.prefix, st.Size)
	if up.data, up.limit = marks.data, marks.limit; err != nil || up.data == dataHere {
		return err
	}
	redirect, err := readRedirect(o, fs.prefix)
	if err != nil {
		return err
	}
	lower, err := fs.below(p, name, redirect)
	if err != nil {
		return err
	}
	if lower == nil || !isReg(lower.st.Mode) {
		return fmt.Errorf("metacopy file without lower data: %w", unix.EIO)
	}
	in.lower = lower
	up.data, up.limit, err = fs.readUpperData(lower, o, st)
	return err
}

// endQuiet gives a file without all of its data back what a completion that was killed has changed of it. Data of
// a metacopy file counts for nothing, and goes.
func (fs *FS) endQuiet(data upperData, o objectAt, st *unix.Stat_t) error {
	if fs.readOnly() {
		return nil
	}
	v, err := getXattr(o, fs.prefix+wasMark)
	if noXattr(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", wasMark, err)
	}
	// Of one that is in use the completion is running.
	return fs.mendUnused(o, st, func(fd int) error {
		q, err := decodeQuiet(v)
		if err != nil {
			return err
		}
		if data == dataBelow {
			if err := punchAll(fd, st.Size); err != nil && !errors.Is(err, unix.EOPNOTSUPP) { // else it is overwritten one day
				return err
			}
		}
		if err := q.restore(fd); err != nil {
			return err
		}
		st.Atim, st.Mtim = q.atime, q.mtime
		return fs.removeMark(fd, wasMark)
	})
}

// mendUnused calls mend with a regular file of the upper, open for reading, unless an inode has it.
func (fs *FS) mendUnused(o objectAt, st *unix.Stat_t, mend func(fd int) error) error {
	fs.mending.Lock()
	defer fs.mending.Unlock()
	if fs.tab.hasUpper(keyOf(st)) {
		return nil
	}
	fd, err := ignoringEINTR(func() (int, error) { return unix.Open(o.path(), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0) })
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer closeFD(fd)
	return mend(fd)
}

// getSize is the size of the file at path (objectAt.path).
func getSize(path string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, fmt.Errorf("stat: %w", err)
	}
	return st.Size, nil
}

// readUpperData is readData for a file of the upper whose lower is known. What a crash or a kill left undone is done.
func (fs *FS) readUpperData(lower *entry, o objectAt, st *unix.Stat_t) (upperData, int64, error) {
	marks, err := readData(o, fs.prefix, math.MaxInt64)
	if err == nil && marks.data != dataHere {
		err = fs.endQuiet(marks.data, o, st)
	}
	limit := min(marks.limit, st.Size)
	switch {
	case err != nil || marks.data == dataHere || fs.readOnly():
	case st.Size > 0 && marks.emptied:
		// A truncation to 0 that was killed before it began; or one that is about to begin, of a file that is in use.
		err = fs.mendUnused(o, st, func(fd int) error { return fs.setMark(fd, metacopyMark, []byte(partialValue)) })
	case st.Size == 0 && !marks.emptied && fs.engine.LooseNames:
		limit, err = fs.mendSize(lower, o, st, marks.limit)
	}
	return marks.data, limit, err
}

// mendSize gives a file that has its marks and has lost its size in a crash the lower's again, up to the limit stored, and gives the limit
// that counts: see "Crash" of package copyup, btrfs.
func (fs *FS) mendSize(lower *entry, o objectAt, st *unix.Stat_t, stored int64) (int64, error) {
	size := min(stored, lower.st.Size)
	if size == 0 {
		return 0, nil
	}
	fs.mending.Lock()
	defer fs.mending.Unlock()
	// One that is in use is being truncated: its marks follow its size.
	if fs.tab.hasUpper(keyOf(st)) {
		return 0, nil
	}
	if now, err := getSize(o.path()); err != nil || now > 0 { // another name of it was looked up meanwhile
		return min(stored, now), err
	}
	fs.log.WithFields(logrus.Fields{"path": lower.path(), "size": size}).Warn("overlay: an upper file without data lost its size in a crash, and gets it back")
	fd, err := ignoringEINTR(func() (int, error) { return unix.Open(o.path(), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0) })
	if err == nil {
		err = giveSize(fd, fs.prefix, size)
		closeFD(fd)
	}
	if err != nil {
		return 0, fmt.Errorf("give size %d back: %w", size, err)
	}
	return size, nil
}
