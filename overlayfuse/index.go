package overlayfuse

import (
	"fmt"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// A lower file with several names is copied up once: its upper is entered in the index (work/index) under the name of its origin,
// and every name of the lower file that is looked up later leads there.
//
//	work/index/<origin in hex>   hard link of the upper file
//	overlay.nlink on it          "L+1": one name more than the lower file has
//
// At the flush for a commit every name gets its own link in the upper, and the index is emptied.
// Compare: fs/overlayfs/inode.c:ovl_set_nlink_common(), Documentation/filesystems/overlayfs.rst "Index".
type index struct {
	dir *dirFD // borrowed from layers; its reference is never given up here

	// mu is a leaf.
	mu     sync.RWMutex
	byName map[string]objKey // upper objects
}

// soleMark on an upper file says that it is the only copy of its origin although that has several names: it has been through the index,
// and keeps its identity when a flush has emptied that. Ours alone; other readers of the layer ignore it.
const soleMark = "sole"

// linkCount is what an indexed inode knows of its names.
type linkCount struct {
	index string // entry in the index; "" if the upper's own link count is right
	names int    // names in the mount
	lower int    // names that the lower file has
}

func openIndex(root layerRoot, lock *dirFD) (*index, error) {
	x := &index{dir: lock, byName: map[string]objKey{}}
	names, err := listNames(root.fd)
	if err != nil {
		return nil, fmt.Errorf("read index %s: %w", root.path, err)
	}
	for _, n := range names {
		st, err := statAt(root.fd, n)
		if err != nil {
			return nil, fmt.Errorf("index entry %s/%s: %w", root.path, n, err)
		}
		if isWhiteout(&st) || isDir(st.Mode) {
			continue // the kernel's marks of removed or directory entries: not ours to judge
		}
		x.byName[n] = keyOf(&st)
	}
	return x, nil
}

func (x *index) empty() bool {
	if x == nil {
		return true
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.byName) == 0
}

func (x *index) find(name string) (objKey, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	k, ok := x.byName[name]
	return k, ok
}

func (x *index) add(name string, k objKey) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.byName[name] = k
}

// remove takes an entry out whose last name is gone.
func (x *index) remove(name string) error {
	if err := unix.Unlinkat(x.dir.fd, name, 0); err != nil && err != unix.ENOENT {
		return fmt.Errorf("remove index entry %s: %w", name, err)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.byName, name)
	return nil
}

// formatNlink is the stored form of a link count, relative to the lower file's. It may be too large after a crash, never too small.
func formatNlink(l linkCount) []byte {
	return []byte(fmt.Sprintf("L%+d", l.names-l.lower))
}

// parseNlink reads the stored form.
//
// Errors: EINVAL.
func parseNlink(v []byte, lower, upper int) (int, error) {
	s := string(v)
	base := 0
	switch {
	case strings.HasPrefix(s, "L"):
		base = lower
	case strings.HasPrefix(s, "U"):
		base = upper
	default:
		return 0, fmt.Errorf("link count %q: %w", s, unix.EINVAL)
	}
	d, err := strconv.Atoi(s[1:])
	if err != nil || base+d < 0 {
		return 0, fmt.Errorf("link count %q with %d links: %w", s, base, unix.EINVAL)
	}
	return base + d, nil
}
