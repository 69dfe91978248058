package overlayfuse

import (
	"bytes"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// checkedDir is a directory of the upper. The chain of parents is its path: a tree of any depth costs a name for each directory.
type checkedDir struct {
	parent *checkedDir // nil for the root
	name   string
	below  lowerView
}

// lowerView is what a directory of the upper merges with.
type lowerView struct {
	known bool   // false: no lowers were given, or an error above hides it, which has been reported
	dir   *entry // nil: nothing
}

// path is the path inside the upper.
func (d *checkedDir) path() string {
	var names []string
	for ; d.parent != nil; d = d.parent {
		names = append(names, d.name)
	}
	slices.Reverse(names)
	return strings.Join(names, "/")
}

// objectName is a name of an object: in a directory of the upper, the directory itself (""), or with dir nil in the index.
type objectName struct {
	dir  *checkedDir
	name string
}

// where is the object's path in a finding.
func (c *checker) where(n objectName) string {
	p := c.layers.index.path
	if n.dir != nil {
		p = c.layers.upper.path
		if in := n.dir.path(); in != "" {
			p += "/" + in
		}
	}
	if n.name != "" {
		p += "/" + n.name
	}
	return p
}

func (c *checker) foundAt(n objectName, s Severity, format string, args ...any) {
	c.found(c.where(n), s, format, args...)
}

// walk visits the whole upper. Directories wait on a list of our own and are opened one at a time.
func (c *checker) walk() error {
	root := &checkedDir{}
	if c.lower != nil {
		e, err := c.lower.root()
		if err != nil {
			return err
		}
		c.root = e
		root.below = lowerView{known: true, dir: e}
	}
	if m, ok := c.readMarks(c.layers.upper.fd, objectName{dir: root}); ok {
		c.checkOpaque(objectName{dir: root}, m)
	}
	for todo := []*checkedDir{root}; len(todo) > 0; {
		if err := c.alive(); err != nil {
			return err
		}
		d := todo[len(todo)-1]
		subs := c.checkDir(d)
		slices.Reverse(subs)
		todo = append(todo[:len(todo)-1], subs...)
	}
	return nil
}

// checkDir visits what is in d, and gives the directories among it.
func (c *checker) checkDir(d *checkedDir) (subs []*checkedDir) {
	c.report.Dirs++
	dir, err := c.upper.lowerDir(0, d.path())
	if err != nil {
		c.foundAt(objectName{dir: d}, SeverityError, "open directory: %v", err)
		return nil
	}
	defer dir.release()
	names, err := listNames(dir.fd)
	if err != nil {
		c.foundAt(objectName{dir: d}, SeverityError, "read directory: %v", err)
		return nil
	}
	slices.Sort(names)
	for _, name := range names {
		if sub := c.checkName(objectName{d, name}, dir.fd); sub != nil {
			subs = append(subs, sub)
		}
	}
	return subs
}

// checkName checks one object of a directory, open as dir. The result is to be visited, if it is a directory itself.
func (c *checker) checkName(n objectName, dir int) *checkedDir {
	fd, err := openIn(dir, n.name, unix.O_PATH, 0)
	if err != nil {
		c.foundAt(n, SeverityError, "open: %v", err)
		return nil
	}
	defer closeFD(fd)
	st, err := statAt(fd, "")
	if err != nil {
		c.foundAt(n, SeverityError, "stat: %v", err)
		return nil
	}
	if isDir(st.Mode) {
		return c.enterDir(n, fd)
	}
	c.report.Files++
	switch {
	case isWhiteout(&st):
	case st.Nlink > 1:
		c.putAside(keyOf(&st), n)
	default:
		c.checkObject(&checkedFile{fd: fd, st: st, names: []objectName{n}})
	}
	return nil
}

// checkObject checks what is no directory.
func (c *checker) checkObject(f *checkedFile) {
	var ok bool
	if f.marks, ok = c.readMarks(f.fd, f.names[0]); ok && isReg(f.st.Mode) {
		c.checkFile(f)
	}
}

// enterDir reads what a directory says of the lower ones. What it merges with is unknown if it says nothing that makes sense.
func (c *checker) enterDir(n objectName, fd int) *checkedDir {
	sub := &checkedDir{parent: n.dir, name: n.name}
	m, ok := c.readMarks(fd, n)
	if !ok {
		return sub
	}
	if c.checkOpaque(n, m) {
		sub.below.known = c.lower != nil
		return sub
	}
	redirect, ok := c.checkRedirect(n, m)
	if !ok {
		return sub
	}
	e, known, err := c.below(n, redirect)
	switch {
	case err != nil:
		c.foundAt(n, SeverityError, "the lower directory: %v", err)
		return sub
	case !known:
		return sub
	case e != nil && e.isDir():
		sub.below.dir = e
	case redirect != "":
		c.foundAt(n, SeverityWarning, "redirect %q leads to no lower directory", redirect)
	}
	sub.below.known = true
	return sub
}

// below is the lower object that a name in the upper stands on.
//
// Compare: FS.below.
func (c *checker) below(n objectName, redirect string) (e *entry, known bool, err error) {
	v, name := n.dir.below, n.name
	if c.lower != nil && strings.HasPrefix(redirect, "/") {
		e, err = c.lower.walk(c.root, redirect[1:])
		return e, err == nil, err
	}
	if !v.known {
		return nil, false, nil
	}
	if v.dir == nil {
		return nil, true, nil
	}
	if redirect != "" {
		name = redirect
	}
	e, err = c.lower.lookup(v.dir, name)
	return e, err == nil, err
}

// markNames are the marks that are read of an object of the upper.
var markNames = []string{"opaque", "redirect", metacopyMark, limitMark, wasMark, "origin", "impure", soleMark}

// readMarks reads the overlay's marks of what fd (O_PATH) names. False: they cannot be read, which is reported.
func (c *checker) readMarks(fd int, at objectName) (map[string][]byte, bool) {
	names, err := listXattrFD(fd)
	if err != nil {
		c.foundAt(at, SeverityError, "list extended attributes: %v", err)
		return nil, false
	}
	marks, ok := map[string][]byte{}, true
	for _, n := range names {
		mark, own := strings.CutPrefix(n, c.prefix)
		if !own || !slices.Contains(markNames, mark) {
			continue
		}
		v, err := getXattrFD(fd, n)
		switch {
		case noXattr(err):
		case err != nil:
			c.foundAt(at, SeverityError, "read %s: %v", mark, err)
			ok = false
		default:
			marks[mark] = v
		}
	}
	return marks, ok
}

// checkOpaque tells whether a directory is opaque. Compare: readDirMarks.
func (c *checker) checkOpaque(at objectName, m map[string][]byte) bool {
	v, has := m["opaque"]
	if has && !bytes.Equal(v, []byte("y")) && !bytes.Equal(v, []byte("x")) {
		c.foundAt(at, SeverityWarning, "opaque %q is neither \"y\" nor \"x\": the directory is not opaque", short(v))
	}
	return string(v) == "y"
}

// checkRedirect is the redirect of an object, "" for none. False: it is malformed, which is reported.
func (c *checker) checkRedirect(at objectName, m map[string][]byte) (string, bool) {
	v, has := m["redirect"]
	if !has {
		return "", true
	}
	if err := checkRedirect(string(v)); err != nil {
		c.foundAt(at, SeverityError, "redirect %q: %v", short(v), err)
		return "", false
	}
	return string(v), true
}

// short is what a message shows of a value.
func short(v []byte) []byte { return v[:min(len(v), 64)] }
