package overlayfuse

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

const oPathDir = unix.O_PATH | unix.O_DIRECTORY

// chain is the merged, read-only view of the lower layers. It depends on nothing but the layers and the xattr
// namespace; mounts with the same ones share it (chain_share.go).
type chain struct {
	roots  []layerRoot // topmost first
	prefix string      // of the overlay's xattrs
	dirs   *dirCache
	share  *sharedChain // nil: nobody shares it, and no listings are kept
}

// root is the merged root.
func (c *chain) root() (*entry, error) {
	st, err := statAt(c.roots[0].fd, "")
	if err != nil {
		return nil, fmt.Errorf("stat lower layer %s: %w", c.roots[0].path, err)
	}
	return &entry{st: newLowerStat(&st), stack: &stack{refs: c.rootsBelow(-1)}}, nil
}

// rootsBelow are the roots of the layers below layer i.
func (c *chain) rootsBelow(i int) []ref {
	var dir []ref
	for j := i + 1; j < len(c.roots); j++ {
		dir = append(dir, ref{j, ""})
	}
	return dir
}

// found is the outcome of a search.
type found struct {
	refs []ref // see stack
	st   unix.Stat_t
}

// search is the state of one lookup through the layers. Compare: fs/overlayfs/namei.c:struct ovl_lookup_data.
type search struct {
	dir      []ref    // directories still to look in
	name     string   // in each of them
	names    *listing // of the directory that dir is the end of; nil if that isn't known
	found    *found
	metacopy bool // a metacopy file was found, its data is wanted
	opaque   bool // nothing below counts
}

// lookup finds name in the merged directory dir, without its listing. Nil, nil: there is no such name.
//
// Errors: EINVAL for an impossible redirect, EIO for a metacopy file without data and unreadable xattrs; both name layer and path.
// Compare: fs/overlayfs/namei.c:ovl_lookup(), ovl_lookup_single().
func (c *chain) lookup(dir *entry, name string) (*entry, error) {
	f, err := c.find(&search{dir: dir.dirs(), name: name})
	if f == nil || err != nil {
		return nil, err
	}
	return newEntry(dir, strings.Clone(name), f), nil // name may be part of a long string
}

// find does a search.
func (c *chain) find(s *search) (*found, error) {
	for len(s.dir) > 0 && !s.opaque {
		if s.names != nil {
			if s.dir = s.names.skip(s.dir, s.name); len(s.dir) == 0 {
				break
			}
		}
		r := s.dir[0]
		s.dir = s.dir[1:]
		if err := c.lookupLayer(s, r); err != nil {
			return nil, err
		}
	}
	return c.finish(s)
}

func (c *chain) finish(s *search) (*found, error) {
	if s.found == nil {
		return nil, nil
	}
	last := s.found.refs[len(s.found.refs)-1]
	if s.metacopy {
		return nil, fmt.Errorf("metacopy file %s: no data below it: %w", c.where(last), unix.EIO)
	}
	return s.found, nil
}

// add notes one more real object: a metacopy file's blocks are those of the data.
func (f *found) add(st *unix.Stat_t) {
	if isReg(f.st.Mode) {
		f.st.Blocks = max(f.st.Blocks, st.Blocks)
	}
}

// lookupLayer looks for s.name in the one directory r.
func (c *chain) lookupLayer(s *search, r ref) error {
	d, err := c.lowerDir(r.layer, r.path)
	if err != nil {
		return fmt.Errorf("open directory %s: %w", c.where(r), err)
	}
	defer d.release()
	st, err := statAt(d.fd, s.name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENAMETOOLONG) {
		return nil
	}
	here := ref{r.layer, joinPath(r.path, s.name)}
	if err != nil {
		return fmt.Errorf("stat %s: %w", c.where(here), err)
	}
	white, err := c.isWhiteoutAt(d.fd, s.name, &st)
	if err != nil {
		return fmt.Errorf("%s: %w", c.where(here), err)
	}
	switch {
	case white:
		s.opaque = true
		return nil
	case s.metacopy && !isReg(st.Mode): // a directory or device cannot be the data of a metacopy file
		s.opaque = true
		return nil
	case s.found != nil && isDir(s.found.st.Mode) && !isDir(st.Mode): // a file ends the merge of directories
		s.opaque = true
		return nil
	}
	if s.found == nil {
		s.found = &found{st: st}
	} else {
		s.found.add(&st)
	}
	s.found.refs = append(s.found.refs, here)
	if isDir(st.Mode) {
		return c.afterDir(s, d.fd, here)
	}
	return c.afterFile(s, d.fd, here, &st)
}

// afterDir reads what a found directory says about the layers below it.
func (c *chain) afterDir(s *search, parent int, here ref) error {
	m, err := readDirMarks(objectAt{parent, s.name}, c.prefix)
	if err != nil {
		return fmt.Errorf("%s: %w", c.where(here), err)
	}
	if m.opaque {
		s.opaque = true
		return nil
	}
	return c.follow(s, here, m.redirect)
}

// afterFile ends the search, unless the file is a metacopy whose data is below.
func (c *chain) afterFile(s *search, parent int, here ref, st *unix.Stat_t) error {
	s.metacopy = false
	if !isReg(st.Mode) {
		s.opaque = true
		return nil
	}
	o := objectAt{parent, s.name}
	marks, err := readData(o, c.prefix, 0)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", c.where(here), err)
	case marks.data == dataPartial:
		return fmt.Errorf("%s: partial file in a lower layer, which was never completed (flushed): %w", c.where(here), unix.EIO)
	case marks.data == dataHere:
		s.opaque = true
		return nil
	}
	s.metacopy = true
	redirect, err := readRedirect(o, c.prefix)
	if err != nil {
		return fmt.Errorf("%s: %w", c.where(here), err)
	}
	return c.follow(s, here, redirect)
}

// follow makes the rest of the search go where a redirect points. A relative one is another name in the same
// directory; an absolute one starts again at the roots of the layers below.
func (c *chain) follow(s *search, here ref, redirect string) error {
	if redirect == "" {
		return nil
	}
	if redirect[0] != '/' {
		s.name = redirect
		return nil
	}
	dir, err := c.walkBelow(here.layer, dirOf(redirect[1:]))
	if err != nil {
		return fmt.Errorf("%s: follow redirect %q: %w", c.where(here), redirect, err)
	}
	s.dir, s.name, s.names = dir, redirect[strings.LastIndexByte(redirect, '/')+1:], nil
	return nil
}

// walkBelow are the directories of path p in the merged view of the layers below layer i. None: it does not exist there.
func (c *chain) walkBelow(i int, p string) ([]ref, error) {
	dir := c.rootsBelow(i)
	for p != "" && len(dir) > 0 {
		name, rest, _ := strings.Cut(p, "/")
		f, err := c.find(&search{dir: dir, name: name})
		if err != nil {
			return nil, err
		}
		if f == nil || !isDir(f.st.Mode) {
			return nil, nil
		}
		dir, p = f.refs, rest
	}
	return dir, nil
}

// walk finds the path p (no leading slash) below the merged root. Nil, nil: there is no such path.
func (c *chain) walk(root *entry, p string) (*entry, error) {
	at := root
	for p != "" {
		name, rest, _ := strings.Cut(p, "/")
		e, err := c.child(at, name)
		if e == nil || err != nil || rest != "" && !e.isDir() {
			return nil, err
		}
		at, p = e, rest
	}
	return at, nil
}

// open opens a real object of a lower layer with flags that cannot write.
func (c *chain) open(r ref, flags uint64) (int, error) {
	d, err := c.lowerDir(r.layer, dirOf(r.path))
	if err != nil {
		return -1, fmt.Errorf("open directory of %s: %w", c.where(r), err)
	}
	defer d.release()
	name := r.path[strings.LastIndexByte(r.path, '/')+1:]
	if name == "" {
		name = "."
	}
	fd, err := openIn(d.fd, name, flags, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", c.where(r), err)
	}
	return fd, nil
}

// openData opens the data of a file. What the layer has under the name now must still be what the entry says it was.
//
// Errors: ESTALE if the layer was changed.
func (c *chain) openData(e *entry, flags uint64) (int, error) {
	r := e.bottom()
	fd, err := c.open(r, flags)
	if err == nil && e.depth() == 1 {
		if err = e.check(fd); err != nil {
			closeFD(fd)
			return -1, fmt.Errorf("%s: %w", c.where(r), err)
		}
	}
	return fd, err
}

// where names a real object for an error message.
func (c *chain) where(r ref) string {
	return c.roots[r.layer].path + "/" + r.path
}

// isWhiteoutAt tells a character device 0/0, or an empty file marked as a whiteout in a directory that says it may hold such
// (opaque=x). Compare: fs/overlayfs/util.c:ovl_path_is_whiteout().
func (c *chain) isWhiteoutAt(dir int, name string, st *unix.Stat_t) (bool, error) {
	if isWhiteout(st) {
		return true, nil
	}
	if !isReg(st.Mode) || st.Size != 0 {
		return false, nil
	}
	marked, err := hasXattr(objectAt{dir, name}, c.prefix+"whiteout")
	if err != nil {
		return false, fmt.Errorf("read whiteout: %w", err)
	}
	return marked && c.xwhiteouts(dir), nil
}
