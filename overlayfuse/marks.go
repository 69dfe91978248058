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
//	overlay.limit      8 bytes          little endian: bytes of the lower that still show. Left out while all do that the
//	                                    sizes of upper and lower let show. Ours alone
//	overlay.redirect   absolute path    where the lower is, if not under the file's own name. As the kernel has it
//	overlay.was        times, caps      what a completion that was killed has changed of a partial file (target.go). Ours alone
const partialValue = "p"

const (
	metacopyMark = "metacopy"
	limitMark    = "limit"
	wasMark      = "was"
)

// readData reads what the marks of a regular file say of its data, and the lower limit that is stored with it, or
// most if there is none.
//
// Errors: EUCLEAN for a value that nobody writes.
func readData(o objectAt, prefix string, most int64) (upperData, int64, error) {
	v, err := getXattr(o, prefix+metacopyMark)
	switch {
	case noXattr(err):
		return dataHere, most, nil
	case err != nil:
		return dataHere, 0, fmt.Errorf("read metacopy: %w", err)
	case len(v) == 0 || len(v) >= 4: // with the digest of the data (fs-verity), which is not checked here
		return dataBelow, most, nil
	case string(v) != partialValue:
		return dataHere, 0, fmt.Errorf("metacopy %q: %w", v, unix.EUCLEAN)
	}
	v, err = getXattr(o, prefix+limitMark)
	switch {
	case noXattr(err):
		return dataPartial, most, nil
	case err != nil:
		return dataHere, 0, fmt.Errorf("read lower limit: %w", err)
	case len(v) != 8 || binary.LittleEndian.Uint64(v) > math.MaxInt64:
		return dataHere, 0, fmt.Errorf("lower limit %x: %w", v, unix.EUCLEAN)
	}
	return dataPartial, min(most, int64(binary.LittleEndian.Uint64(v))), nil
}

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
