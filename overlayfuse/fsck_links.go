package overlayfuse

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// linkedObject is what has several names.
type linkedObject struct {
	names      []objectName
	lowerLinks int // of one with an entry in the index: names of the lower file that it was copied from
}

func (c *checker) putAside(k objKey, n objectName) *linkedObject {
	l := c.links[k]
	if l == nil {
		l = &linkedObject{}
		c.links[k] = l
		c.linkOrder = append(c.linkOrder, k)
	}
	l.names = append(l.names, n)
	return l
}

// checkLinked checks what was put aside, each object once.
func (c *checker) checkLinked() error {
	for _, k := range c.linkOrder {
		if err := c.alive(); err != nil {
			return err
		}
		l := c.links[k]
		if err := c.checkLinkedObject(k, l); err != nil {
			c.foundAt(l.names[0], SeverityError, "%v", err)
		}
	}
	return nil
}

func (c *checker) checkLinkedObject(k objKey, l *linkedObject) error {
	dir := c.layers.index.fd
	if d := l.names[0].dir; d != nil {
		open, err := c.upper.lowerDir(0, d.path())
		if err != nil {
			return fmt.Errorf("open directory: %w", err)
		}
		defer open.release()
		dir = open.fd
	}
	fd, err := openIn(dir, l.names[0].name, unix.O_PATH, 0)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer closeFD(fd)
	st, err := statAt(fd, "")
	if err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if keyOf(&st) != k {
		return fmt.Errorf("somebody changes the upper: %w", unix.ESTALE)
	}
	f := &checkedFile{fd: fd, st: st, names: l.names}
	c.checkObject(f)
	for _, n := range l.names {
		if n.dir == nil {
			c.checkNlink(f, n, l.lowerLinks)
		}
	}
	return nil
}

// checkNlink reads the count of names of an indexed object. One that makes no sense is replaced by one that is not too small: beside
// all names that the lower file has, the upper cannot have more than it has links.
func (c *checker) checkNlink(f *checkedFile, n objectName, lower int) {
	v, err := getXattrFD(f.fd, c.prefix+"nlink")
	switch {
	case noXattr(err):
		return
	case err != nil:
		c.foundAt(n, SeverityError, "read nlink: %v", err)
		return
	}
	links := int(f.st.Nlink)
	if _, err := parseNlink(v, lower, links); err != nil {
		problem := fmt.Sprintf("link count %q of a file with %d links: %v", short(v), links, unix.EINVAL)
		c.fixFile(f, n, SeverityError, problem, func() error {
			most := formatNlink(linkCount{names: links - 1})
			if err := unix.Setxattr(procFD(f.fd), c.prefix+"nlink", most, 0); err != nil {
				return fmt.Errorf("set %snlink: %w", c.prefix, err)
			}
			return nil
		})
	}
}
