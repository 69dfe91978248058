package overlayfuse

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/copyup"
)

// fixFile is fix for a file, unless it has names that this check does not know: they could be of a lower.
func (c *checker) fixFile(f *checkedFile, n objectName, s Severity, problem string, repair func() error) {
	c.fix(c.where(n), s, problem, func() error {
		if others := int64(f.st.Nlink) - int64(len(f.names)); others > 0 {
			return fmt.Errorf("%d of its names are not in the upper: %w", others, unix.EMLINK)
		}
		return repair()
	})
}

func (c *checker) removeMark(fd int, mark string) error {
	if err := unix.Removexattr(procFD(fd), c.prefix+mark); err != nil && !noXattr(err) {
		return fmt.Errorf("remove %s%s: %w", c.prefix, mark, err)
	}
	return nil
}

// complete takes the marks from a file that has all of its data, here open for reading.
//
// Errors: EOPNOTSUPP where holes cannot be told from data.
// Crash: the data is on disk before a mark goes. The first mark that goes is the one that counts; the others are then left over.
// Compare: FS.complete.
func (c *checker) complete(f *checkedFile, file *os.File) error {
	if f.limit > 0 {
		if err := c.holes.check(c.layers.work.fd); err != nil {
			return err
		}
	}
	if err := file.Sync(); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	c.keepIdentity(f)
	for _, mark := range []string{metacopyMark, limitMark, "redirect", wasMark} {
		if err := c.removeMark(f.fd, mark); err != nil {
			return err
		}
	}
	return nil
}

// keepIdentity gives a file that is complete the mark of its origin, for its inode number to stay. It is as good without.
func (c *checker) keepIdentity(f *checkedFile) {
	e := f.lower.entry
	if _, has := f.marks["origin"]; has || e == nil || e.st.Nlink > 1 {
		return
	}
	fd, err := c.lower.open(e.top(), unix.O_PATH)
	if err != nil {
		return
	}
	defer closeFD(fd)
	if mark, err := c.origin.encode(fd, "", e.st.Dev); err == nil && mark != nil {
		_ = unix.Setxattr(procFD(f.fd), c.prefix+"origin", mark, 0) // may have no room
	}
}

// punchAll makes a file of size bytes, open by its path or for reading, a hole.
//
// Crash: some of the data is gone.
func punchAll(fd int, size int64) (err error) {
	file, err := openReal(fd, unix.O_RDWR)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	_, err = ignoringEINTR(func() (int, error) {
		return 0, unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, copyup.WholeBlocks(size))
	})
	if err != nil {
		return fmt.Errorf("punch hole: %w", err)
	}
	data, err := copyup.DataOf(file, size)
	if err == nil && len(data) > 0 {
		err = fmt.Errorf("still data at %d: %w", data[0].Off, unix.EOPNOTSUPP)
	}
	return err
}

// giveSize makes an empty file, open by its path, a hole of size bytes, and keeps its times and capabilities.
//
// Crash: as of noteQuiet.
func giveSize(fd int, prefix string, size int64) (err error) {
	file, err := openReal(fd, unix.O_RDWR)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return keepQuiet(int(file.Fd()), prefix, func() error { return file.Truncate(size) })
}

// holeTest finds out, once, whether the upper's file system tells data from holes. One that does not makes every partial
// file look complete.
type holeTest struct {
	done bool
	err  error
}

func (h *holeTest) check(dir int) error {
	if !h.done {
		h.done, h.err = true, tellsHoles(dir)
	}
	return h.err
}

func tellsHoles(dir int) error {
	fd, err := openIn(dir, ".", unix.O_TMPFILE|unix.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("make file in the workdir: %w", err)
	}
	file := os.NewFile(uintptr(fd), "probe")
	defer func() { _ = file.Close() }() // it has no name, and nothing that matters
	unit, err := copyup.ProbeUnit(file)
	if err == nil && unit == 0 {
		err = fmt.Errorf("the file system does not tell data from holes: %w", unix.EOPNOTSUPP)
	}
	return err
}
