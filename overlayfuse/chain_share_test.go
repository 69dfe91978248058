package overlayfuse

import (
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
)

// manyDirs makes one layer with n directories, each with the file f.
func manyDirs(t testing.TB, n int) Config {
	t.Helper()
	dir := t.TempDir()
	for i := range n {
		p := fmt.Sprint(dir, "/d", i)
		must(t, os.Mkdir(p, 0o755))
		must(t, os.WriteFile(p+"/f", nil, 0o644))
	}
	return Config{Lower: []string{dir}}
}

// TestMountsOfOneChainShareIt: mounts with the same layers have one chain, its descriptors and its listings, whatever their other
// options; the last one closes it.
func TestMountsOfOneChainShareIt(t *testing.T) {
	const layers, mounts = 16, 20
	cfg := deepLayers(t, layers)
	before := openDescriptors(t)
	open := func(cfg Config) *FS {
		t.Helper()
		fs, err := New(cfg)
		must(t, err)
		return fs
	}
	first := open(cfg)
	d, err := first.chain.walk(first.root.lower, "d/f7")
	must(t, err)
	one := openDescriptors(t) - before
	if one < layers {
		t.Errorf("a chain of %d layers has %d descriptors", layers, one)
	}

	all := []*FS{first}
	for i := range mounts {
		other := cfg
		other.NoXattrs, other.StaticNlink = i%2 == 0, i%3 == 0
		if i%4 == 0 {
			other.UIDMap = []IDMap{{Host: 0, Mapped: 1000, Length: 10}}
		}
		fs := open(other)
		all = append(all, fs)
		if fs.chain != first.chain {
			t.Fatal("the same layers are another chain")
		}
		e, err := fs.chain.walk(fs.root.lower, "d/f7")
		if e != d || err != nil {
			t.Errorf("d/f7 is %p in one mount and %p in the other, %v", d, e, err)
		}
	}
	if n := openDescriptors(t) - before; n > one {
		t.Errorf("%d mounts have %d descriptors, one had %d", mounts+1, n, one)
	}
	for i, fs := range all { // the first one first: who has opened it does not own it
		if i > 0 {
			if e, err := fs.chain.walk(fs.root.lower, fmt.Sprint("d/f", i%layers)); e == nil || err != nil {
				t.Errorf("d/f%d: %v, %v", i%layers, e, err)
			}
		}
		must(t, fs.Close())
	}
	if n := openDescriptors(t); n != before {
		t.Errorf("%d descriptors before, %d after", before, n)
	}
	if len(chains.open) != 0 || allListings.bytes != 0 {
		t.Errorf("%d chains and %d bytes of listings are left", len(chains.open), allListings.bytes)
	}
}

// TestOtherLayersAreAnotherChain: another order, another number of layers and another namespace share nothing.
func TestOtherLayersAreAnotherChain(t *testing.T) {
	cfg := deepLayers(t, 3)
	first := openFS(t, cfg)
	reversed, fewer, user, link := cfg, cfg, cfg, cfg
	reversed.Lower = slices.Clone(cfg.Lower)
	slices.Reverse(reversed.Lower)
	fewer.Lower = cfg.Lower[:2]
	user.Namespace = NamespaceUser
	for name, other := range map[string]Config{"reversed": reversed, "fewer": fewer, "user namespace": user} {
		if openFS(t, other).chain == first.chain {
			t.Errorf("%s: the same chain", name)
		}
	}
	link.Lower = slices.Clone(cfg.Lower)
	link.Lower[1] = t.TempDir() + "/link"
	must(t, os.Symlink(cfg.Lower[1], link.Lower[1]))
	if openFS(t, link).chain != first.chain {
		t.Error("the same layers by another path are another chain")
	}
}

// TestFailedMountLeavesNoChain: a mount that is refused after its chain was opened gives it up.
func TestFailedMountLeavesNoChain(t *testing.T) {
	before := openDescriptors(t)
	dir := tree(t, "l", "u", "w")
	cfg := writableConfig(dir)
	cfg.Work = "/dev/shm"
	if fs, err := New(cfg); err == nil {
		_ = fs.Close()
		t.Fatal("an upper and a workdir on two file systems")
	}
	if n := openDescriptors(t); n != before || len(chains.open) != 0 {
		t.Errorf("%d descriptors before, %d after, %d chains", before, n, len(chains.open))
	}
}

// TestMountsComeAndGoAtOnce: mounts of one chain that are made, used and closed at the same time each see all of it, and the last
// one leaves nothing.
func TestMountsComeAndGoAtOnce(t *testing.T) {
	const layers = 5
	cfg := deepLayers(t, layers)
	before := openDescriptors(t)
	var users sync.WaitGroup
	for user := range 8 {
		users.Go(func() {
			for range 20 {
				fs, err := New(cfg)
				if err != nil {
					t.Error(err)
					return
				}
				e, err := fs.chain.walk(fs.root.lower, fmt.Sprint("d/f", user%layers))
				if e == nil || err != nil {
					t.Errorf("d/f%d: %v, %v", user%layers, e, err)
				}
				if err := fs.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	users.Wait()
	if n := openDescriptors(t); n != before || len(chains.open) != 0 || allListings.bytes != 0 {
		t.Errorf("%d descriptors before, %d after, %d chains, %d bytes of listings", before, n, len(chains.open), allListings.bytes)
	}
}
