package overlayfuse

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestReplacedUpperIsStale: what was put in the place of an upper object, behind the mount's back, is not taken for it, and not changed.
func TestReplacedUpperIsStale(t *testing.T) {
	o := newOffline(t, map[string]int{"f": 5000, "d/g": 5000})
	f, d := o.touch("f"), o.get("d")
	g := o.write("d/g", "x", 100)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	u := o.dir + "/u/"
	must(errors.Join(os.Rename(u+"f", u+"moved"), os.Rename(u+"d", u+"d.moved"), os.Mkdir(u+"d", 0o755)))
	for _, path := range []string{"f", "d/g"} {
		must(os.WriteFile(u+path, []byte("foreign"), 0o640))
	}
	o.dirs.drop(dirKey{in: d}) // it need not be there
	o.closeDropped()
	for name, call := range map[string]func() error{
		"stat":            func() error { _, err := o.stat(f); return err },
		"open":            func() error { _, err := o.openUpperPath(f); return err },
		"chmod":           func() error { return o.onUpper(f, func(fd int) error { return chmodFD(fd, 0o777) }) },
		"directory":       func() error { _, err := o.upperDir(d); return err },
		"stat below it":   func() error { _, err := o.stat(g); return err },
		"chmod below it":  func() error { return o.onUpper(g, func(fd int) error { return chmodFD(fd, 0o777) }) },
		"complete a file": func() error { return o.data(f).Complete(t.Context()) },
		"write to a file": func() error { _, err := o.data(f).WriteAt([]byte("y"), 0, 0); return err },
	} {
		if err := call(); !errors.Is(err, unix.ESTALE) {
			t.Errorf("%s: %v, want ESTALE", name, err)
		}
	}
	for _, path := range []string{"f", "d/g"} {
		text, err := os.ReadFile(u + path)
		st, err2 := os.Stat(u + path)
		must(errors.Join(err, err2))
		if string(text) != "foreign" || st.Mode() != 0o640 {
			t.Errorf("%s is %q, %v", path, text, st.Mode())
		}
	}
}

// TestMendUnused: what a crash left is mended where no inode has the file; of one that is in use, it is what somebody is about to do.
func TestMendUnused(t *testing.T) {
	o := newOffline(t, map[string]int{"f": 5000})
	o.write("f", "x", 100)
	if err := os.WriteFile(o.dir+"/u/other", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"f": false, "other": true} {
		at := onHost(o.dir + "/u/" + name)
		var st unix.Stat_t
		if err := unix.Lstat(o.dir+"/u/"+name, &st); err != nil {
			t.Fatal(err)
		}
		mended := false
		if err := o.mendUnused(at, &st, func(int) error { mended = true; return nil }); err != nil || mended != want {
			t.Errorf("%s: mended %t, want %t; %v", name, mended, want, err)
		}
	}
}

// TestLayerThatCannotBeCloned: without its private mount, a layer is refused.
func TestLayerThatCannotBeCloned(t *testing.T) {
	dir := tree(t, "l", "m/l", "m/u", "m/w", "u", "w")
	m := dir + "/m"
	if err := errors.Join(unix.Mount(m, m, "", unix.MS_BIND, ""), unix.Mount("", m, "", unix.MS_UNBINDABLE, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	for name, cfg := range map[string]Config{
		"lower": {Lower: []string{m + "/l"}, Upper: dir + "/u", Work: dir + "/w"},
		"upper": {Lower: []string{dir + "/l"}, Upper: m + "/u", Work: m + "/w"},
	} {
		l, err := openLayers(cfg)
		if err == nil {
			_ = l.close()
		}
		if !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s: %v, want EINVAL", name, err)
		}
	}
}
