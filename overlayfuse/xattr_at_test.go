package overlayfuse

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// hostRoot is open for onHost as long as the tests run.
var hostRoot, errHostRoot = unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)

// onHost is the object at an absolute path.
func onHost(path string) objectAt { return objectAt{hostRoot, strings.TrimPrefix(path, "/")} }

// TestXattrsAreReadWithAndWithoutGetxattrat: both ways give the same values and errors, and follow no symlink.
func TestXattrsAreReadWithAndWithoutGetxattrat(t *testing.T) {
	must(t, errHostRoot)
	old := noXattrAt.Load()
	defer noXattrAt.Store(old)
	dir := t.TempDir()
	must(t, os.WriteFile(dir+"/f", nil, 0o644))
	must(t, os.Symlink("f", dir+"/s"))
	long := strings.Repeat("v", 1000)
	setMarkAt(t, dir+"/f", "long", long)
	setMarkAt(t, dir+"/f", "empty", "")
	for _, without := range []bool{false, true} {
		noXattrAt.Store(without)
		for _, c := range []struct {
			name, attr, want string
			err              error
		}{
			{"f", "long", long, nil}, {"f", "empty", "", nil}, {"f", "none", "", unix.ENODATA},
			{"s", "long", "", unix.ENODATA}, {"none", "long", "", unix.ENOENT}, {".", "none", "", unix.ENODATA},
		} {
			o := onHost(dir + "/" + c.name)
			v, err := getXattr(o, mark+c.attr)
			if string(v) != c.want || !errors.Is(err, c.err) {
				t.Errorf("without getxattrat %v: %s of %s: %d bytes, %v, want %d, %v", without, c.attr, c.name, len(v), err, len(c.want), c.err)
			}
			has, err := hasXattr(o, mark+c.attr)
			if has != (c.err == nil) || err != nil {
				t.Errorf("without getxattrat %v: %s has %s: %v, %v", without, c.name, c.attr, has, err)
			}
		}
	}
}
