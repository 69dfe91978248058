package overlayfuse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"

	"golang.org/x/sys/unix"
)

// dirMarks is what the xattrs of a real directory say.
type dirMarks struct {
	opaque   bool
	redirect string // "" for none
}

// readDirMarks reads the marks of a directory.
func readDirMarks(o objectAt, prefix string) (dirMarks, error) {
	var m dirMarks
	v, err := getXattr(o, prefix+"opaque")
	switch {
	case err == nil:
		m.opaque = string(v) == "y"
	case !noXattr(err):
		return m, fmt.Errorf("read opaque: %w", err)
	}
	if m.opaque {
		return m, nil
	}
	m.redirect, err = readRedirect(o, prefix)
	return m, err
}

// readRedirect is the redirect of a directory or metacopy file, "" for none.
//
// Errors: EINVAL for one that is empty, holds an empty, "." or ".." component, or is relative with more than one component.
// Compare: fs/overlayfs/util.c:ovl_get_redirect_xattr().
func readRedirect(o objectAt, prefix string) (string, error) {
	v, err := getXattr(o, prefix+"redirect")
	if noXattr(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read redirect: %w", err)
	}
	s := string(v)
	if err := checkRedirect(s); err != nil {
		return "", fmt.Errorf("redirect %q: %w", s, err)
	}
	return s, nil
}

var errRedirect = fmt.Errorf("neither a name nor a clean absolute path: %w", unix.EINVAL)

func checkRedirect(s string) error {
	rest := s
	if strings.HasPrefix(s, "/") {
		rest = s[1:]
	} else if strings.Contains(s, "/") {
		return errRedirect
	}
	for part := range strings.SplitSeq(rest, "/") {
		if part == "" || part == "." || part == ".." || strings.IndexByte(part, 0) >= 0 {
			return errRedirect
		}
		if len(part) > nameMax {
			return errRedirect
		}
	}
	return nil
}

// The marks of a regular file whose data is not all in the upper:
//
//	overlay.metacopy   ""               metacopy: no data. The kernel's own form
//	overlay.metacopy   "p"              partial: what is no hole is data. The kernel's overlayfs refuses the file with EIO, as it does
//	                                    any value of one to three bytes, so it never takes it for a metacopy file
//	                                    (fs/overlayfs/namei.c:ovl_check_metacopy_xattr(), Linux 6.18)
//	overlay.metacopy   "p0"             partial, and where a crash may lose a size (copyup.Options.LooseNames), a size of 0 is meant
//	overlay.limit      8 bytes          little endian: bytes of the lower that still show. Left out while all do that the
//	                                    sizes of upper and lower let show. Ours alone
//	overlay.redirect   absolute path    where the lower is, if not under the file's own name. As the kernel has it
//	overlay.was        times, caps      what a completion that was killed has changed of a file (target.go). Ours alone
const (
	partialValue = "p"
	emptiedValue = "p0"
)

const (
	metacopyMark = "metacopy"
	limitMark    = "limit"
	wasMark      = "was"
)

// dataMarks is what the marks of a regular file say of its data.
type dataMarks struct {
	data    upperData
	limit   int64 // bytes of the lower that show; what readData was told if nothing is stored
	emptied bool  // a size of 0 is meant
}

// readData reads the marks of a regular file; most is the limit if there is none.
//
// Errors: EUCLEAN for a value that nobody writes.
func readData(o objectAt, prefix string, most int64) (dataMarks, error) {
	m := dataMarks{data: dataHere, limit: most}
	v, err := getXattr(o, prefix+metacopyMark)
	switch {
	case noXattr(err):
		return m, nil
	case err != nil:
		return m, fmt.Errorf("read metacopy: %w", err)
	case len(v) == 0 || len(v) >= 4: // with the digest of the data (fs-verity), which is not checked here
		m.data = dataBelow
		return m, nil
	case !isPartial(v):
		return m, fmt.Errorf("metacopy %q: %w", v, unix.EUCLEAN)
	}
	m.data, m.emptied = dataPartial, string(v) == emptiedValue
	v, err = getXattr(o, prefix+limitMark)
	switch {
	case noXattr(err):
		return m, nil
	case err != nil:
		return m, fmt.Errorf("read lower limit: %w", err)
	case len(v) != 8 || binary.LittleEndian.Uint64(v) > math.MaxInt64:
		return m, fmt.Errorf("lower limit %x: %w", v, unix.EUCLEAN)
	}
	m.limit = min(most, int64(binary.LittleEndian.Uint64(v)))
	return m, nil
}

// isPartial tells the values of overlay.metacopy that say partial.
func isPartial(v []byte) bool { return string(v) == partialValue || string(v) == emptiedValue }

func hasXattr(o objectAt, attr string) (bool, error) {
	_, err := o.read(attr, nil)
	if err == nil {
		return true, nil
	}
	if noXattr(err) || errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return false, err
}
