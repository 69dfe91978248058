package overlayfuse

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"

	"golang.org/x/sys/unix"
)

// workSubdir opens a directory of the workdir; noRoot if there is none.
func (c *checker) workSubdir(name string) layerRoot {
	path := c.layers.work.path + "/" + name
	fd, err := openBeneath(c.layers.work.fd, name, unix.O_PATH|unix.O_DIRECTORY)
	switch {
	case errors.Is(err, unix.ENOENT): // no mount yet
		return noRoot
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		c.found(path, SeverityWarning, "not a directory: the next mount replaces it")
		return noRoot
	case err != nil:
		c.found(path, SeverityError, "open: %v", err)
		return noRoot
	}
	r, err := rootOf(fd, path)
	if err != nil {
		closeFD(fd)
		c.found(path, SeverityError, "%v", err)
		return noRoot
	}
	return r
}

// checkVolatile looks for the mark of a volatile mount, and of features that are unknown here. An upper of either is not repaired.
//
// Compare: layers.settleVolatile.
func (c *checker) checkVolatile() error {
	if c.layers.temp.fd < 0 {
		return nil
	}
	where := c.layers.temp.path + "/" + incompatDirName
	bad := func(format string, args ...any) {
		c.doubtful = true
		c.found(where, SeverityError, format, args...)
	}
	features, err := readNames(c.layers.temp.fd, incompatDirName)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		bad("read: %v", err)
		return nil
	}
	for _, f := range features {
		if f != volatileDirName {
			bad("the upper uses the feature %q, which is unknown here: nothing in it is repaired", f)
		}
	}
	if !slices.Contains(features, volatileDirName) {
		return nil
	}
	where += "/" + volatileDirName
	marks, err := readNames(c.layers.temp.fd, incompatDirName+"/"+volatileDirName)
	if err != nil {
		bad("read: %v", err)
		return nil
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	if !slices.Contains(marks, bootDirPrefix+boot) {
		bad("the upper was last written by a volatile mount, perhaps before a crash, so data may be missing: nothing in it is repaired. " +
			"Discard it, or remove this directory to use it as it is")
		return nil
	}
	c.found(where, SeverityNote, "last written by a volatile mount in this boot: the next mount makes it durable")
	return nil
}

// checkLost tells of writes that were lost and of which nobody was told yet. They can't be repaired; the next flush fails with them.
func (c *checker) checkLost() {
	for _, line := range readLost(c.layers.work) {
		c.found(c.layers.work.path+"/"+lostName, SeverityWarning, "writes were lost before they reached the disk: %s", line)
	}
}

// checkTemp looks for what mounts left in work/work.
func (c *checker) checkTemp() {
	if c.layers.temp.fd < 0 {
		return
	}
	names, err := readNames(c.layers.temp.fd, ".")
	if err != nil {
		c.found(c.layers.temp.path, SeverityError, "read directory: %v", err)
		return
	}
	names = slices.DeleteFunc(names, func(n string) bool { return n == incompatDirName })
	if len(names) > 0 {
		c.fix(c.layers.temp.path, SeverityNote, fmt.Sprintf("%d unfinished objects of a mount that has ended", len(names)),
			func() error { return emptyDir(c.layers.temp.fd, incompatDirName) })
	}
}

// checkIndex checks the entries of work/index. Their data is checked with their other names, or where there are none in
// the upper, alone: the file then has names in lower layers only.
func (c *checker) checkIndex() error {
	x := c.layers.index
	if x.fd < 0 {
		return nil
	}
	names, err := listNames(x.fd)
	if err != nil {
		c.found(x.path, SeverityError, "read directory: %v", err)
		return nil
	}
	slices.Sort(names)
	for _, name := range names {
		if err := c.alive(); err != nil {
			return err
		}
		if err := c.checkIndexEntry(name); err != nil {
			c.found(x.path+"/"+name, SeverityError, "%v", err)
		}
	}
	return nil
}

func (c *checker) checkIndexEntry(name string) error {
	fd, err := openIn(c.layers.index.fd, name, unix.O_PATH, 0)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer closeFD(fd)
	st, err := statAt(fd, "")
	if err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if isWhiteout(&st) || isDir(st.Mode) {
		return nil // the kernel's marks of removed or directory entries
	}
	l := c.putAside(keyOf(&st), objectName{name: name})
	l.lowerLinks = c.checkOriginName(name, &st)
	return nil
}

// checkOriginName gives the number of links of the lower file that an index entry is named for, a large one if that is not known.
func (c *checker) checkOriginName(name string, st *unix.Stat_t) int {
	where := c.layers.index.path + "/" + name
	mark, err := hex.DecodeString(name)
	if err != nil || len(mark) <= originHeader || mark[0] != 0 || mark[1] != originMagic || int(mark[2]) != len(mark) {
		c.found(where, SeverityError, "not named for an origin: no name of a lower file leads here")
		return math.MaxInt32
	}
	if c.origin == nil {
		return math.MaxInt32
	}
	lower, ok := c.origin.decode(mark, st.Mode&unix.S_IFMT)
	if ok {
		return int(lower.Nlink)
	}
	if hasCapability(unix.CAP_DAC_READ_SEARCH) { // for open_by_handle_at(2)
		c.found(where, SeverityWarning, "the lower layers have no such file: no name of theirs leads here")
	}
	return math.MaxInt32
}
