package overlayfuse_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/internal/fstool"
)

// Every object of a fresh layer has an old modification time, in seconds: what is changed later has one of today.
const (
	oldTime   = 1_000_000_000
	todayTime = 1_500_000_000
)

var twinNames = []string{"a", "b", "c", "d", "e"}

// layerMaker fills one lower layer with all that a layer may have. Layers share few names, so they meet.
type layerMaker struct {
	*rand.Rand
	root  string
	below []string // the layers below it
	stray bool     // has whiteouts that hide nothing
	made  []string // in the order of making: parents first
	links []string // what can be linked to
}

// makeLayers makes dir/l1 (topmost) to dir/lN, from below, and returns their names. Each has the directories tops, with a
// tree in each of them; no tops: one tree from the root.
func makeLayers(g *rand.Rand, dir string, tops []string) ([]string, error) {
	n := 2 + g.IntN(3)
	var names []string
	for i := n; i > 0; i-- {
		name := fmt.Sprint("l", i)
		m := &layerMaker{Rand: g, root: filepath.Join(dir, name), stray: g.IntN(4) == 0}
		for _, below := range names {
			m.below = append(m.below, filepath.Join(dir, below))
		}
		if err := os.Mkdir(m.root, 0o755); err != nil {
			return nil, err
		}
		if err := m.fillTops(tops); err != nil {
			return nil, err
		}
		if err := m.age(); err != nil {
			return nil, err
		}
		names = append([]string{name}, names...)
	}
	return names, nil
}

// hides tells whether a whiteout may be made here: it has something to hide, or the layer may have stray ones. (The kernel's
// overlayfs lists a whiteout where no directories merge, though there is no such name.)
func (m *layerMaker) hides(path string) bool {
	rel := strings.TrimPrefix(path, m.root)
	for _, below := range m.below {
		if _, err := os.Lstat(below + rel); err == nil {
			return true
		}
	}
	return m.stray
}

func (m *layerMaker) fillTops(tops []string) error {
	if len(tops) == 0 {
		return m.fill(m.root, 1)
	}
	for _, top := range tops {
		m.links = nil
		path := filepath.Join(m.root, top)
		if err := os.Mkdir(path, 0o777); err != nil {
			return err
		}
		m.made = append(m.made, path)
		if err := m.fill(path, 2); err != nil {
			return err
		}
	}
	return nil
}

func (m *layerMaker) fill(dir string, depth int) error {
	for _, name := range twinNames {
		if m.IntN(100) >= 60 {
			continue
		}
		if err := m.object(filepath.Join(dir, name), depth); err != nil {
			return err
		}
	}
	return nil
}

func (m *layerMaker) object(path string, depth int) error {
	kind := m.IntN(100)
	switch {
	case kind < 40 && depth < 4:
		return m.directory(path, depth)
	case kind < 46 && len(m.links) > 0:
		err := os.Link(m.links[m.IntN(len(m.links))], path)
		m.made = append(m.made, path)
		return err
	case kind < 54 && m.hides(path):
		return unix.Mknod(path, unix.S_IFCHR, 0)
	}
	var err error
	switch {
	case kind < 60:
		err = os.Symlink([]string{"a", "b", "c/d", "none", "a/b/c"}[m.IntN(5)], path)
	case kind < 64:
		err = unix.Mknod(path, unix.S_IFIFO|0o644, 0)
	case kind < 66:
		err = unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3)))
	case kind < 68:
		err = unix.Mknod(path, unix.S_IFSOCK|0o666, 0)
	default:
		err = m.file(path)
	}
	if err != nil {
		return err
	}
	m.links = append(m.links, path)
	return m.dress(path)
}

func (m *layerMaker) directory(path string, depth int) error {
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	if err := m.dress(path); err != nil {
		return err
	}
	if m.IntN(7) == 0 {
		if err := unix.Setxattr(path, "trusted.overlay.opaque", []byte("y"), 0); err != nil {
			return err
		}
	}
	return m.fill(path, depth+1)
}

// file makes a file, some of them sparse.
func (m *layerMaker) file(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	size := []int{0, 1 + m.IntN(100), 4096, 1 + m.IntN(20000), 1 + m.IntN(300000)}[m.IntN(5)]
	if m.IntN(4) == 0 {
		err = f.Truncate(int64(size) + int64(m.IntN(50000)))
	}
	_, werr := f.WriteAt(fstool.Noise(size, m.Uint64()), int64(m.IntN(2)*m.IntN(9000)))
	return errors.Join(err, werr, f.Close())
}

// dress gives a new object its attributes.
func (m *layerMaker) dress(path string) error {
	if err := os.Lchown(path, 1000*m.IntN(3), 1000*m.IntN(3)); err != nil {
		return err
	}
	st, err := os.Lstat(path)
	if err != nil {
		return err
	}
	m.made = append(m.made, path)
	switch {
	case st.Mode()&os.ModeSymlink != 0:
		return nil
	case m.IntN(2) == 0:
		if err := unix.Chmod(path, randomMode(m.Rand)); err != nil {
			return err
		}
	}
	if m.IntN(4) == 0 {
		if err := unix.Setxattr(path, "trusted.t", []byte{byte(m.IntN(256))}, 0); err != nil {
			return err
		}
	}
	if m.IntN(4) == 0 && (st.IsDir() || st.Mode().IsRegular()) {
		return unix.Setxattr(path, "user.u", []byte(strings.Repeat("v", m.IntN(300))), 0)
	}
	return nil
}

// age sets the times, when nothing is made any more.
func (m *layerMaker) age() error {
	for i, path := range append([]string{m.root}, m.made...) {
		ts := []unix.Timespec{{Sec: oldTime}, {Sec: oldTime + int64(i)}}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	return nil
}

func randomMode(g *rand.Rand) uint32 {
	modes := []uint32{0o644, 0o600, 0o755, 0o777, 0o4755, 0o2755, 0o6711, 0o1777, 0o2775, 0, 0o444}
	return modes[g.IntN(len(modes))]
}
