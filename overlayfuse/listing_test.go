package overlayfuse

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// openFS is a file system that nothing is mounted of.
func openFS(t testing.TB, cfg Config) *FS {
	t.Helper()
	fs, err := New(cfg)
	must(t, err)
	t.Cleanup(func() {
		if err := fs.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return fs
}

// withoutListings is the same file system with every lookup and readdir made in the layers: the oracle of the listings.
func withoutListings(t *testing.T, cfg Config) *FS {
	t.Helper()
	fs := openFS(t, cfg)
	c := *fs.chain
	c.dirs = newDirCache()
	c.share = &sharedChain{cache: newListingCache(0)}
	t.Cleanup(c.dirs.close)
	fs.chain = &c
	return fs
}

// describe says all that is known of an entry.
func describe(e *entry, err error) string {
	if err != nil || e == nil {
		return fmt.Sprint("none, ", err)
	}
	s := fmt.Sprintf("%q %v %v %d %+v", e.path(), e.top(), e.bottom(), e.depth(), e.st)
	if e.isDir() {
		s += fmt.Sprint(e.dirs())
	}
	return s
}

// compareDirs looks every name up in both, twice, lists both, and goes down.
func compareDirs(t *testing.T, fs, oracle *FS, dir, same *entry) (names int) {
	t.Helper()
	for range 2 {
		for _, name := range append([]string{"none", strings.Repeat("n", nameMax+1)}, layerNames...) {
			got, err := fs.chain.child(dir, name)
			want, wantErr := oracle.chain.lookup(same, name)
			if g, w := describe(got, err), describe(want, wantErr); g != w {
				t.Errorf("%q in %q:\n got %s\nwant %s", name, dir.path(), g, w)
			}
			if got == nil || want == nil {
				continue
			}
			names++
			if again, _ := fs.chain.child(dir, name); again != got {
				t.Errorf("%q in %q is another entry the second time", name, dir.path())
			}
		}
		got, err := fs.list(&inode{fs: fs, typ: unix.S_IFDIR, lower: dir})
		want, wantErr := oracle.list(&inode{fs: oracle, typ: unix.S_IFDIR, lower: same})
		if !slices.Equal(got, want) || fmt.Sprint(err) != fmt.Sprint(wantErr) {
			t.Errorf("list of %q:\n got %v, %v\nwant %v, %v", dir.path(), got, err, want, wantErr)
		}
	}
	for _, name := range layerNames {
		got, _ := fs.chain.child(dir, name)
		want, _ := oracle.chain.lookup(same, name)
		if got != nil && want != nil && got.isDir() && want.isDir() {
			names += compareDirs(t, fs, oracle, got, want)
		}
	}
	return names
}

// TestListingsAgreeWithTheLayers: every name of random layers means the same by the listings as by a search of all layers, and
// every directory lists the same, in the same order; errors are the same too.
func TestListingsAgreeWithTheLayers(t *testing.T) {
	seed := rand.Uint64()
	names := 0
	for i := range 12 {
		g := rand.New(rand.NewPCG(seed, uint64(i)))
		cfg := randomLayers(t, g, 1+g.IntN(6))
		fs, oracle := openFS(t, cfg), withoutListings(t, cfg)
		names += compareDirs(t, fs, oracle, fs.root.lower, oracle.root.lower)
		for range 50 {
			p := strings.TrimPrefix(randomRedirect(g), "../")
			p = strings.TrimPrefix(p, "/")
			got, err := fs.chain.walk(fs.root.lower, p)
			want, wantErr := oracle.chain.walk(oracle.root.lower, p)
			if g, w := describe(got, err), describe(want, wantErr); g != w {
				t.Errorf("walk to %q:\n got %s\nwant %s", p, g, w)
			}
		}
		if t.Failed() {
			t.Fatalf("seed %d, %d", seed, i)
		}
	}
	if names < 500 {
		t.Errorf("%d names were compared: too few to mean anything", names)
	}
}

// deepLayers makes n layers with a file of its own each in the one directory d, which all have.
func deepLayers(t testing.TB, n int) Config {
	t.Helper()
	dir := t.TempDir()
	var cfg Config
	for i := range n {
		p := fmt.Sprint(dir, "/l", i)
		cfg.Lower = append(cfg.Lower, p)
		must(t, os.MkdirAll(p+"/d", 0o755))
		must(t, os.WriteFile(fmt.Sprint(p, "/d/f", i), nil, 0o644))
	}
	return cfg
}

// TestKnownNamesNeedNoSystemCall: without any descriptor of the layers, a name that was looked up is still found, one that
// does not exist is still missing, and the directory is listed.
func TestKnownNamesNeedNoSystemCall(t *testing.T) {
	fs := openFS(t, deepLayers(t, 16))
	c := fs.chain
	d, err := c.child(fs.root.lower, "d")
	must(t, err)
	for i := range 16 {
		e, err := c.child(d, fmt.Sprint("f", i))
		if e == nil || err != nil {
			t.Fatalf("f%d: %v, %v", i, e, err)
		}
	}
	c.dirs.close()
	roots := c.roots
	defer func() { c.roots = roots }()
	c.roots = make([]layerRoot, len(roots))
	for i := range c.roots {
		c.roots[i].fd = -1
	}
	for i := range 16 {
		e, err := c.child(d, fmt.Sprint("f", i))
		if e == nil || err != nil {
			t.Errorf("f%d: %v, %v", i, e, err)
		}
		in := &inode{fs: fs, typ: unix.S_IFREG, lower: e}
		if st, err := fs.stat(in); err != nil || !isReg(st.Mode) {
			t.Errorf("stat of f%d: %v, %v", i, st, err)
		}
	}
	if e, err := c.child(d, "none"); e != nil || err != nil {
		t.Errorf("a name that does not exist: %v, %v", e, err)
	}
	if es, err := fs.list(&inode{fs: fs, typ: unix.S_IFDIR, lower: d}); err != nil || len(es) != 16 {
		t.Errorf("list: %d entries, %v", len(es), err)
	}
}

// TestUnreadableDirectoryHidesNoNameAboveIt: a directory that can't be read makes an error of the list and of what may be in it,
// and of nothing that is found before it. It is tried again.
func TestUnreadableDirectoryHidesNoNameAboveIt(t *testing.T) {
	fs := openFS(t, deepLayers(t, 3))
	c := fs.chain
	d, err := c.child(fs.root.lower, "d")
	must(t, err)
	c.dirs.close()
	good := c.roots[2].fd
	c.roots[2].fd = -1
	if e, err := c.child(d, "f0"); e == nil || err != nil {
		t.Errorf("f0: %v, %v", e, err)
	}
	if _, err := c.child(d, "none"); !errors.Is(err, unix.EBADF) {
		t.Errorf("a name that may be in the directory: %v, want EBADF", err)
	}
	if _, err := fs.list(&inode{fs: fs, typ: unix.S_IFDIR, lower: d}); !errors.Is(err, unix.EBADF) {
		t.Errorf("list: %v, want EBADF", err)
	}
	c.roots[2].fd = good
	if e, err := c.child(d, "f2"); e == nil || err != nil {
		t.Errorf("f2: %v, %v", e, err)
	}
	if d.stack.listing.Load() == nil {
		t.Error("no listing was kept")
	}
}

// TestChangedLayerIsNoForeignFile: a file that was replaced in its layer is not opened as the one that was looked up.
func TestChangedLayerIsNoForeignFile(t *testing.T) {
	cfg := deepLayers(t, 1)
	fs := openFS(t, cfg)
	d, err := fs.chain.walk(fs.root.lower, "d/f0")
	must(t, err)
	in := &inode{fs: fs, typ: unix.S_IFREG, lower: d}
	p := cfg.Lower[0] + "/d/f0"
	must(t, os.WriteFile(p+".new", []byte("foreign"), 0o644))
	must(t, os.Rename(p+".new", p))
	if _, err := (&target{in: in}).OpenLower(); !errors.Is(err, unix.ESTALE) {
		t.Errorf("open of its data: %v, want ESTALE", err)
	}
	if _, _, err := fs.openPath(in); !errors.Is(err, unix.ESTALE) {
		t.Errorf("open of the object: %v, want ESTALE", err)
	}
	must(t, os.Remove(p))
	if _, err := (&target{in: in}).OpenLower(); !errors.Is(err, unix.ENOENT) {
		t.Errorf("open of its data: %v, want ENOENT", err)
	}
}
