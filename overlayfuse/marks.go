package overlayfuse

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// dirMarks is what the xattrs of a real directory say.
type dirMarks struct {
	opaque   bool
	redirect string // "" for none
}

// readDirMarks reads the marks of the directory at path (procAt or procFD with a trailing dot).
func readDirMarks(path, prefix string) (dirMarks, error) {
	var m dirMarks
	v, err := getXattr(path, prefix+"opaque")
	switch {
	case err == nil:
		m.opaque = string(v) == "y"
	case !noXattr(err):
		return m, fmt.Errorf("read opaque: %w", err)
	}
	if m.opaque {
		return m, nil
	}
	m.redirect, err = readRedirect(path, prefix)
	return m, err
}

// readRedirect is the redirect of a directory or metacopy file, "" for none.
//
// Errors: EINVAL for one that is empty, holds an empty, "." or ".." component, or is relative with more than one component.
// Compare: fs/overlayfs/util.c:ovl_get_redirect_xattr().
func readRedirect(path, prefix string) (string, error) {
	v, err := getXattr(path, prefix+"redirect")
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

func hasXattr(path, attr string) (bool, error) {
	_, err := unix.Lgetxattr(path, attr, nil)
	if err == nil {
		return true, nil
	}
	if noXattr(err) || errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return false, err
}
