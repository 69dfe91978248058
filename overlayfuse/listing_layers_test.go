package overlayfuse

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// layerNames are few, so that layers meet.
var layerNames = []string{"a", "b", "c", "d", "e", "f"}

// randomLayers makes n lower layers with all that a layer may hold, sound or not, and returns the configuration of a mount of them.
func randomLayers(t *testing.T, g *rand.Rand, n int) Config {
	t.Helper()
	dir := t.TempDir()
	var cfg Config
	for i := range n {
		p := filepath.Join(dir, fmt.Sprint("l", i))
		cfg.Lower = append(cfg.Lower, p)
		must(t, os.Mkdir(p, 0o755))
		fillLayer(t, g, p, 0)
	}
	return cfg
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func fillLayer(t *testing.T, g *rand.Rand, dir string, depth int) {
	t.Helper()
	for _, name := range layerNames {
		if g.IntN(3) == 0 {
			continue
		}
		p := filepath.Join(dir, name)
		switch kind := g.IntN(100); {
		case kind < 55 && depth < 3:
			must(t, os.Mkdir(p, 0o755))
			markRandomDir(t, g, p)
			fillLayer(t, g, p, depth+1)
		case kind < 65:
			must(t, unix.Mknod(p, unix.S_IFCHR, 0))
		case kind < 70:
			must(t, unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
		case kind < 75:
			must(t, os.Symlink("a", p))
		default:
			must(t, os.WriteFile(p, []byte(strings.Repeat("x", g.IntN(3)*2000)), 0o644))
			markRandomFile(t, g, p)
		}
	}
}

func markRandomDir(t *testing.T, g *rand.Rand, p string) {
	t.Helper()
	switch kind := g.IntN(100); {
	case kind < 10:
		setMarkAt(t, p, "opaque", "y")
	case kind < 40:
		setMarkAt(t, p, "opaque", "x")
	case kind < 60:
		setMarkAt(t, p, "redirect", randomRedirect(g))
	}
}

func markRandomFile(t *testing.T, g *rand.Rand, p string) {
	t.Helper()
	switch kind := g.IntN(100); {
	case kind < 20:
		setMarkAt(t, p, "whiteout", "")
	case kind < 40:
		setMarkAt(t, p, metacopyMark, "")
	case kind < 60:
		setMarkAt(t, p, metacopyMark, "")
		setMarkAt(t, p, "redirect", randomRedirect(g))
	case kind < 65:
		setMarkAt(t, p, metacopyMark, partialValue)
	}
}

func randomRedirect(g *rand.Rand) string {
	name := func() string { return layerNames[g.IntN(len(layerNames))] }
	switch g.IntN(10) {
	case 0:
		return "../" + name()
	case 1, 2, 3:
		return name()
	case 4, 5, 6:
		return "/" + name()
	}
	return "/" + name() + "/" + name()
}

func setMarkAt(t *testing.T, p, name, value string) {
	t.Helper()
	if err := unix.Setxattr(p, mark+name, []byte(value), 0); err != nil {
		t.Fatalf("%s %s: %v", p, name, err)
	}
}
