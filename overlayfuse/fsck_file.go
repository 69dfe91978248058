package overlayfuse

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/copyup"
)

// checkedFile is an object of the upper that is no directory.
type checkedFile struct {
	fd    int // O_PATH
	st    unix.Stat_t
	names []objectName // those in the upper before the one in the index
	marks map[string][]byte
	lower checkedLower
	limit int64 // bytes: the lower limit of a partial file
}

// checkedLower is what the names of a file lead to in the lowers.
type checkedLower struct {
	known   bool         // of every name
	entry   *entry       // one of them; nil for none
	size    int64        // bytes: of the longest data, math.MaxInt64 if not all are known
	lacking []objectName // names without lower data
}

// checkFile checks the marks of a regular file and the data that they speak of.
func (c *checker) checkFile(f *checkedFile) {
	v, has := f.marks[metacopyMark]
	switch {
	case !has:
		c.checkLeftover(f, limitMark, "is complete")
		c.checkLeftover(f, "redirect", "is complete")
		c.checkLeftover(f, wasMark, "is complete")
	case len(v) == 0 || len(v) >= metacopyMin:
		c.report.Metacopies++
		c.checkMetacopy(f)
	case isPartial([]byte(v)):
		c.report.Partials++
		c.checkPartial(f)
	default:
		c.foundAt(f.names[0], SeverityError, "metacopy mark %q is unknown: %v", v, unix.EUCLEAN)
	}
}

// checkLeftover removes a mark that says nothing of this file. It harms nobody: whoever gives the file its next state sets or removes the mark.
func (c *checker) checkLeftover(f *checkedFile, mark, of string) {
	if v, has := f.marks[mark]; has {
		problem := fmt.Sprintf("left over: %s %q of a file that %s", mark, short(v), of)
		c.fixFile(f, f.names[0], SeverityNote, problem, func() error { return c.removeMark(f.fd, mark) })
	}
}

// The kernel's form of a metacopy mark with a digest. Source: fs/overlayfs/overlayfs.h:struct ovl_metacopy (Linux 6.18).
//
//	offset 0          1             2      3       4
//	       version=0  length (all)  flags  digest  digest
//	                                       type
const (
	metacopyMin = 4
	metacopyMax = 68
)

// checkMetacopy checks a file of which the upper has only the attributes.
func (c *checker) checkMetacopy(f *checkedFile) {
	v := f.marks[metacopyMark]
	if len(v) > 0 && (v[0] != 0 || int(v[1]) != len(v) || len(v) > metacopyMax) {
		c.foundAt(f.names[0], SeverityWarning, "metacopy mark %q is not in the kernel's form: taken for one without digest", short(v))
	}
	// A copy-up that was interrupted before the file became partial.
	c.checkLeftover(f, limitMark, "has no data yet")
	c.checkQuiet(f)
	there := c.findLower(f)
	if there {
		for _, n := range f.lower.lacking {
			c.foundAt(n, SeverityError, "metacopy file without lower data: %v", unix.EIO)
		}
		if c.lostSize(f, math.MaxInt64) {
			return
		}
	}
	file, err := openReal(f.fd, unix.O_RDONLY)
	if err != nil {
		c.foundAt(f.names[0], SeverityError, "%v", err)
		return
	}
	defer func() { _ = file.Close() }() // read-only: nothing to lose
	data, err := copyup.DataOf(file, f.st.Size)
	switch {
	case err != nil:
		c.foundAt(f.names[0], SeverityError, "%v", err)
	case len(data) > 0:
		severity := SeverityError
		if _, killed := f.marks[wasMark]; killed { // a completion that shared blocks or copied, and did not come to its mark
			severity = SeverityNote
		}
		c.fixFile(f, f.names[0], severity, fmt.Sprintf("metacopy file with data of its own, from offset %d, which nothing shows", data[0].Off),
			func() error {
				if !there || !f.lower.known || len(f.lower.lacking) > 0 {
					return fmt.Errorf("perhaps there is no other: %w", unix.EIO)
				}
				return keepQuiet(int(file.Fd()), c.prefix, func() error { return punchAll(f.fd, f.st.Size) })
			})
	}
}

// checkQuiet looks for what a completion that was killed has changed of a file without all of its data. The next mount puts it back, as a
// repair does.
//
// Compare: FS.endQuiet.
func (c *checker) checkQuiet(f *checkedFile) {
	v, has := f.marks[wasMark]
	if !has {
		return
	}
	q, err := decodeQuiet(v)
	if err != nil { // the file can't be looked up
		c.fixFile(f, f.names[0], SeverityError, err.Error(), func() error { return c.removeMark(f.fd, wasMark) })
		return
	}
	c.fixFile(f, f.names[0], SeverityNote, "a completion was killed: it has other times than it had, and perhaps no capability", func() (err error) {
		file, err := openReal(f.fd, unix.O_RDONLY)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, file.Close()) }()
		if err := q.restore(int(file.Fd())); err != nil {
			return err
		}
		return c.removeMark(f.fd, wasMark)
	})
}

// checkPartial checks a file of which the upper has some data.
func (c *checker) checkPartial(f *checkedFile) {
	c.checkQuiet(f)
	stored := int64(math.MaxInt64)
	if v, has := f.marks[limitMark]; has {
		if len(v) != 8 || binary.LittleEndian.Uint64(v) > math.MaxInt64 {
			c.foundAt(f.names[0], SeverityError, "lower limit %x is not a number of 8 bytes: %v", short(v), unix.EUCLEAN)
			return
		}
		stored = int64(binary.LittleEndian.Uint64(v))
	}
	if !c.findLower(f) || c.lostSize(f, stored) {
		return
	}
	limit := min(f.st.Size, stored, f.lower.size)
	f.limit = limit
	file, err := openReal(f.fd, unix.O_RDONLY)
	if err != nil {
		c.foundAt(f.names[0], SeverityError, "%v", err)
		return
	}
	defer func() { _ = file.Close() }() // read-only: nothing to lose
	data, err := copyup.DataOf(file, limit)
	if err != nil {
		c.foundAt(f.names[0], SeverityError, "%v", err)
		return
	}
	own := measureData(data, limit, f.st.Size, c.unit)
	if own.crooked {
		c.foundAt(f.names[0], SeverityError, "data of a partial file at %d to %d, not aligned to %d: %v", own.off, own.end, c.unit, unix.EIO)
		return
	}
	// Perhaps its size, in a crash.
	lost := c.mayLoseSize(f) && stored > 0 && (!f.lower.known || len(f.lower.lacking) > 0)
	complete := own.missing == 0 && !lost
	for _, n := range f.lower.lacking {
		if !complete {
			c.foundAt(n, SeverityError, "metacopy file without lower data, %d bytes of which are missing: %v", own.missing, unix.EIO)
		}
	}
	switch {
	case complete && len(f.lower.lacking) > 0:
		c.fixFile(f, f.names[0], SeverityError, fmt.Sprintf("metacopy file without lower data, but none is missing: %v", unix.EIO),
			func() error { return c.complete(f, file) })
	case complete:
		c.fixFile(f, f.names[0], SeverityNote, "marked partial, but complete", func() error { return c.complete(f, file) })
	}
}

// lostSize tells a file without all of its data that has size 0 although its lower has data that shows, up to the limit stored: a crash
// on btrfs leaves that (see "Crash" of package copyup). The next mount gives it the size back, as a repair does.
//
// Preconditions: findLower. Of a metacopy file no limit counts.
// Compare: FS.readUpperData.
func (c *checker) lostSize(f *checkedFile, stored int64) bool {
	if !c.mayLoseSize(f) || !f.lower.known || len(f.lower.lacking) > 0 {
		return false
	}
	size := min(stored, f.lower.size)
	if size == 0 {
		return false
	}
	problem := fmt.Sprintf("size 0, lost in a crash: it has %d bytes in the lower", size)
	c.fixFile(f, f.names[0], SeverityNote, problem, func() error { return giveSize(f.fd, c.prefix, size) })
	return true
}

// mayLoseSize tells that a file of size 0 may have had one. Compare: FS.readUpperData.
func (c *checker) mayLoseSize(f *checkedFile) bool {
	return f.st.Size == 0 && string(f.marks[metacopyMark]) != emptiedValue && !keepsOrder(c.layers.upper.fsType)
}

// findLower fills f.lower in. False: what the marks and layers say makes no sense, which is reported.
func (c *checker) findLower(f *checkedFile) bool {
	f.lower = checkedLower{known: true}
	redirect, ok := c.checkRedirect(f.names[0], f.marks)
	if !ok {
		return false
	}
	for i, n := range f.names {
		if n.dir == nil && i > 0 {
			break // the names in the upper say it
		}
		e, size, known, err := c.lowerData(n, redirect)
		switch {
		case err != nil:
			c.foundAt(n, SeverityError, "the lower file: %v", err)
			ok = false
		case !known:
			f.lower.known = false
		case e == nil && size < 0:
			f.lower.lacking = append(f.lower.lacking, n)
		default:
			f.lower.size = max(f.lower.size, size)
			if f.lower.entry == nil {
				f.lower.entry = e
			}
		}
	}
	if !f.lower.known || len(f.lower.lacking) > 0 {
		f.lower.size = math.MaxInt64
	}
	return ok
}

// lowerData is the lower file that a name stands on, and how much data it has: -1 for none. That of an index entry is found
// by the origin that it is named for, and has no entry.
func (c *checker) lowerData(n objectName, redirect string) (e *entry, size int64, known bool, err error) {
	if n.dir == nil {
		mark, err := hex.DecodeString(n.name)
		if err != nil || c.origin == nil {
			return nil, 0, false, nil // a bad name is reported with the index
		}
		st, ok := c.origin.decode(mark, unix.S_IFREG)
		return nil, st.Size, ok, nil
	}
	e, known, err = c.below(n, redirect)
	if err != nil || !known {
		return nil, 0, false, err
	}
	if e == nil || !isReg(e.st.Mode) {
		return nil, -1, true, nil
	}
	fd, err := c.lower.open(e.bottom(), unix.O_PATH)
	if err != nil {
		return nil, 0, false, err
	}
	defer closeFD(fd)
	st, err := statAt(fd, "")
	if err != nil {
		return nil, 0, false, fmt.Errorf("stat %s: %w", c.lower.where(e.bottom()), err)
	}
	return e, min(st.Size, e.st.Size), true, nil
}
