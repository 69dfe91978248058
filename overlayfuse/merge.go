package overlayfuse

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

const oPathDir = unix.O_PATH | unix.O_DIRECTORY

// chain is the merged, read-only view of the lower layers. It depends on nothing but the layers and the xattr
// namespace, so two mounts with the same chain could share one.
type chain struct {
	roots  []layerRoot // topmost first
	prefix string      // of the overlay's xattrs
	dirs   *dirCache
}

// ref is one real object: a path in a lower layer.
type ref struct {
	layer int
	path  string
}

// entry is what a name means in the merged lower view.
//
//	directory: refs are the directories that merge, topmost first; st is of the first
//	other:     refs[0] is the object, whose attributes count; the last one holds the data (another one only where
//	           metacopy files stand above it)
type entry struct {
	path string // in the merged lower view: what a redirect to it says, without the leading slash
	refs []ref
	st   unix.Stat_t // of refs[0]
}

func (e *entry) isDir() bool { return isDir(e.st.Mode) }

// root is the merged root.
func (c *chain) root() (*entry, error) {
	e := &entry{}
	for i := range c.roots {
		e.refs = append(e.refs, ref{i, ""})
	}
	st, err := statAt(c.roots[0].fd, "")
	if err != nil {
		return nil, fmt.Errorf("stat lower layer %s: %w", c.roots[0].path, err)
	}
	e.st = st
	return e, nil
}

// search is the state of one lookup through the layers. Compare: fs/overlayfs/namei.c:struct ovl_lookup_data.
type search struct {
	dir      []ref  // directories still to look in
	name     string // in each of them
	found    *entry
	metacopy bool // a metacopy file was found, its data is wanted
	opaque   bool // nothing below counts
}

// lookup finds name in the merged directory whose real directories are dir; at is the path of the result in the merged
// lower view. Nil, nil: there is no such name.
//
// Errors: EINVAL for an impossible redirect, EIO for a metacopy file without data and unreadable xattrs; both name layer and path.
// Compare: fs/overlayfs/namei.c:ovl_lookup(), ovl_lookup_single().
func (c *chain) lookup(dir []ref, name, at string) (*entry, error) {
	s := search{dir: dir, name: name}
	for len(s.dir) > 0 && !s.opaque {
		r := s.dir[0]
		s.dir = s.dir[1:]
		if err := c.lookupLayer(&s, r); err != nil {
			return nil, err
		}
	}
	return c.finish(&s, at)
}

func (c *chain) finish(s *search, at string) (*entry, error) {
	if s.found == nil {
		return nil, nil
	}
	if s.metacopy {
		r := s.found.refs[len(s.found.refs)-1]
		return nil, fmt.Errorf("metacopy file %s: no data below it: %w", c.where(r), unix.EIO)
	}
	s.found.path = at
	return s.found, nil
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
	case s.found != nil && s.found.isDir() && !isDir(st.Mode): // a file ends the merge of directories
		s.opaque = true
		return nil
	}
	if s.found == nil {
		s.found = &entry{st: st}
	}
	s.found.refs = append(s.found.refs, here)
	if isDir(st.Mode) {
		return c.afterDir(s, d.fd, here)
	}
	return c.afterFile(s, d.fd, here, &st)
}

// afterDir reads what a found directory says about the layers below it.
func (c *chain) afterDir(s *search, parent int, here ref) error {
	m, err := readDirMarks(procAt(parent, s.name), c.prefix)
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
	p := procAt(parent, s.name)
	data, _, err := readData(p, c.prefix, 0)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", c.where(here), err)
	case data == dataPartial:
		return fmt.Errorf("%s: partial file in a lower layer, which was never completed (flushed): %w", c.where(here), unix.EIO)
	case data == dataHere:
		s.opaque = true
		return nil
	}
	s.metacopy = true
	redirect, err := readRedirect(p, c.prefix)
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
	s.dir, s.name = dir, redirect[strings.LastIndexByte(redirect, '/')+1:]
	return nil
}

// walkBelow are the directories of path p in the merged view of the layers below layer i. None: it does not exist there.
func (c *chain) walkBelow(i int, p string) ([]ref, error) {
	var dir []ref
	for j := i + 1; j < len(c.roots); j++ {
		dir = append(dir, ref{j, ""})
	}
	at := ""
	for p != "" && len(dir) > 0 {
		name, rest, _ := strings.Cut(p, "/")
		at = joinPath(at, name)
		e, err := c.lookup(dir, name, at)
		if err != nil {
			return nil, err
		}
		if e == nil || !e.isDir() {
			return nil, nil
		}
		dir, p = e.refs, rest
	}
	return dir, nil
}

// walk finds the path p (no leading slash) in the merged view of all lower layers. Nil, nil: there is no such path.
func (c *chain) walk(p string) (*entry, error) {
	dir, err := c.walkBelow(-1, dirOf(p))
	if err != nil || len(dir) == 0 {
		return nil, err
	}
	return c.lookup(dir, p[strings.LastIndexByte(p, '/')+1:], p)
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
	marked, err := hasXattr(procAt(dir, name), c.prefix+"whiteout")
	if err != nil {
		return false, fmt.Errorf("read whiteout: %w", err)
	}
	return marked && c.xwhiteouts(procAt(dir, ".")), nil
}
