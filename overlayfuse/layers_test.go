package overlayfuse

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// tree makes the named directories below a new temporary one, which it returns.
func tree(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, n := range names {
		if err := os.MkdirAll(filepath.Join(dir, n), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// writableConfig is an overlay of one lower layer in dir, which holds l, u and w.
func writableConfig(dir string) Config {
	return Config{Lower: []string{dir + "/l"}, Upper: dir + "/u", Work: dir + "/w"}
}

func openForTest(t *testing.T, cfg Config) *layers {
	t.Helper()
	l, err := openLayers(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return l
}

func TestLowerLayerCannotBeWrittenThroughItsDescriptor(t *testing.T) {
	dir := tree(t, "l")
	if err := os.WriteFile(dir+"/l/f", []byte("x"), 0o666); err != nil {
		t.Fatal(err)
	}
	l := openForTest(t, Config{Lower: []string{dir + "/l"}})
	for _, flags := range []uint64{unix.O_RDWR, unix.O_WRONLY, unix.O_RDONLY | unix.O_TRUNC} {
		fd, err := openBeneath(l.lower[0].fd, "f", flags)
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("open with %#x: fd %d, %v, want EROFS", flags, fd, err)
		}
	}
	if err := unix.Mkdirat(l.lower[0].fd, "d", 0o755); !errors.Is(err, unix.EROFS) {
		t.Errorf("mkdir: %v, want EROFS", err)
	}
	fd, err := openBeneath(l.lower[0].fd, "f", unix.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }() // read-only: nothing to lose
	if err := unix.Fsetxattr(fd, "user.x", nil, 0); !errors.Is(err, unix.EROFS) {
		t.Errorf("setxattr: %v, want EROFS", err)
	}
}

func TestUpperAndWorkdirShareOneMount(t *testing.T) {
	for name, dirs := range map[string][2]string{
		"siblings":            {"s/u", "s/w"},
		"different depths":    {"u", "a/b/c/w"},
		"only root in common": {"x/y/u", "z/w"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := tree(t, "l", dirs[0], dirs[1])
			l := openForTest(t, Config{Lower: []string{dir + "/l"}, Upper: filepath.Join(dir, dirs[0]), Work: filepath.Join(dir, dirs[1])})
			if err := unix.Mkdirat(l.temp.fd, "new", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := unix.Renameat(l.temp.fd, "new", l.upper.fd, "new"); err != nil {
				t.Fatalf("rename from work to upper: %v", err)
			}
			if _, err := os.Stat(filepath.Join(dir, dirs[0], "new")); err != nil {
				t.Errorf("the renamed directory is not in the upper: %v", err)
			}
		})
	}
}

func TestUpperFollowsTheAtimePolicy(t *testing.T) {
	for policy, want := range map[AtimePolicy]int64{AtimeNone: unix.ST_NOATIME, AtimeRelative: unix.ST_RELATIME, AtimeStrict: 0} {
		dir := tree(t, "l", "u", "w")
		cfg := writableConfig(dir)
		cfg.Atime = policy
		l := openForTest(t, cfg)
		for _, r := range []layerRoot{l.upper, l.work, l.temp, l.index} {
			var st unix.Statfs_t
			if err := unix.Fstatfs(r.fd, &st); err != nil {
				t.Fatal(err)
			}
			if got := int64(st.Flags) & (unix.ST_NOATIME | unix.ST_RELATIME); got != want {
				t.Errorf("%v: statfs flags of %s are %#x, want %#x", policy, r.path, got, want)
			}
		}
	}
}

func TestNoSymlinkIsFollowedOnALayer(t *testing.T) {
	dir := tree(t, "l/d", "u/d", "w")
	for _, p := range []string{"/l/s", "/u/s"} {
		if err := os.Symlink("d", dir+p); err != nil {
			t.Fatal(err)
		}
	}
	l := openForTest(t, writableConfig(dir))
	for _, r := range []layerRoot{l.lower[0], l.upper} {
		fd, err := unix.Openat(r.fd, "s", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.ELOOP) {
			t.Errorf("open of %s/s: fd %d, %v, want ELOOP", r.path, fd, err)
		}
	}
}

func TestBadLayersAreRefused(t *testing.T) {
	dir := tree(t, "l/in", "l2", "u/in", "w/in")
	if err := os.WriteFile(dir+"/file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(dir+"/fifo", 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("l", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	shm, err := os.MkdirTemp("/dev/shm", "overlayfuse")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(shm) })

	in := func(names ...string) (paths []string) {
		for _, n := range names {
			if n != "" && !filepath.IsAbs(n) {
				n = dir + "/" + n
			}
			paths = append(paths, n)
		}
		return paths
	}
	for name, c := range map[string]struct {
		lower       []string
		upper, work string
		want        error
		text        string
	}{
		"nothing":              {nil, "", "", unix.EINVAL, "no lower layer"},
		"501 layers":           {make([]string, 501), "", "", unix.EINVAL, "501 lower layers"},
		"empty path":           {in(""), "", "", unix.EINVAL, "lower layer 1 of 1 has an empty path"},
		"missing layer":        {in("gone"), "", "", unix.ENOENT, dir + "/gone"},
		"file as a layer":      {in("l", "file"), "", "", unix.ENOTDIR, dir + "/file: is a regular file"},
		"fifo as a layer":      {in("fifo"), "", "", unix.ENOTDIR, "is a FIFO"},
		"fifo as upper":        {in("l"), "fifo", "w", unix.ENOTDIR, "upperdir " + dir + "/fifo: is a FIFO"},
		"missing workdir":      {in("l"), "u", "gone", unix.ENOENT, "workdir " + dir + "/gone"},
		"the same layer twice": {in("l", "link"), "", "", unix.ELOOP, "are the same directory"},
		"lower in lower":       {in("l", "l/in"), "", "", unix.ELOOP, "/l/in is inside lower layer " + dir + "/l"},
		"upper in lower":       {in("l"), "l/in", "w", unix.ELOOP, "is inside lower layer"},
		"lower in upper":       {in("l2", "u/in"), "u", "w", unix.ELOOP, "is inside upperdir"},
		"upper is lower":       {in("l"), "link", "w", unix.ELOOP, "are the same directory"},
		"workdir in upper":     {in("l"), "u", "u/in", unix.ELOOP, "is inside upperdir"},
		"upper in workdir":     {in("l"), "w/in", "w", unix.ELOOP, "is inside workdir"},
		"upper is workdir":     {in("l"), "u", "u", unix.ELOOP, "are the same directory"},
		"workdir in lower":     {in("l"), "u", "l/in", unix.ELOOP, "is inside lower layer"},
		"workdir elsewhere":    {in("l"), "u", shm, unix.EXDEV, "not on the same mount"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := Config{Lower: c.lower}
			if c.upper != "" {
				cfg.Upper, cfg.Work = in(c.upper)[0], in(c.work)[0]
			}
			l, err := openLayers(cfg)
			if err == nil {
				_ = l.close()
				t.Fatal("accepted")
			}
			if !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if !strings.Contains(err.Error(), c.text) {
				t.Errorf("%v, want %q in it", err, c.text)
			}
		})
	}
	for _, f := range []string{"l", "l2", "u"} {
		left, err := os.ReadDir(filepath.Join(dir, f))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range left {
			if e.Name() != "in" {
				t.Errorf("%s/%s was left by a refused mount", f, e.Name())
			}
		}
	}
}

// TestLayersSeenThroughABind: a bind hides nothing of where a layer lies, and what is mounted inside a layer is no part of it. The kernel's
// overlayfs is asked too.
func TestLayersSeenThroughABind(t *testing.T) {
	dir := tree(t, "l/in/er", "u/in", "w/work/x", "w2", "bind", "other")
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	precious := dir + "/w/work/x/precious" // which who owns the workdir may empty, and nobody else
	for name, c := range map[string]struct {
		of, on string // what is bound where; a tmpfs if of is empty
		lower  []string
		upper  string
		want   error
		text   string
	}{
		"lower in workdir":     {"w/work/x", "bind", []string{"bind", "l"}, "u", unix.ELOOP, "/bind is inside workdir " + dir + "/w, seen through"},
		"lower in upper":       {"u/in", "bind", []string{"bind"}, "u", unix.ELOOP, "/bind is inside upperdir"},
		"lower in lower":       {"l/in", "bind", []string{"l", "bind/er"}, "u", unix.ELOOP, "/bind/er is inside lower layer"},
		"upper in a lower":     {"u", "bind", []string{"bind"}, "u/in", unix.ELOOP, "upperdir " + dir + "/u/in is inside lower layer"},
		"workdir is a lower":   {"w", "bind", []string{"bind"}, "u", unix.ELOOP, "are the same directory"},
		"workdir in a lower":   {".", "bind", []string{"bind"}, "u", unix.ELOOP, "is inside lower layer"},
		"mounted in the upper": {"", "u/in", []string{"u/in"}, "u", nil, ""},
		"mounted in the lower": {"", "l/in", []string{"l", "l/in"}, "u", nil, ""},
		"beside each other":    {"l", "bind", []string{"bind"}, "u", nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			must(t, os.MkdirAll(dir+"/w/work/x", 0o755))
			must(t, os.WriteFile(precious, nil, 0o644))
			on := filepath.Join(dir, c.on)
			if c.of == "" {
				must(t, unix.Mount("alias", on, "tmpfs", 0, ""))
			} else {
				must(t, unix.Mount(filepath.Join(dir, c.of), on, "", unix.MS_BIND, ""))
			}
			defer func() { must(t, unix.Unmount(on, unix.MNT_DETACH)) }()
			cfg := Config{Upper: filepath.Join(dir, c.upper), Work: dir + "/w"}
			for _, l := range c.lower {
				cfg.Lower = append(cfg.Lower, filepath.Join(dir, l))
			}
			_, check := Check(t.Context(), cfg, CheckOptions{Repair: true})
			l, err := openLayers(cfg)
			if err == nil {
				must(t, l.close())
			}
			if c.want != nil {
				_, lost := os.Stat(precious)
				must(t, lost)
			}
			kernel := unix.Mount("oracle", dir+"/other", "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,index=off",
				strings.Join(cfg.Lower, ":"), cfg.Upper, cfg.Work))
			if kernel == nil {
				must(t, unix.Unmount(dir+"/other", unix.MNT_DETACH))
			}
			for who, err := range map[string]error{"mount": err, "check": check, "kernel": kernel} {
				want := c.want
				if who == "kernel" && strings.HasSuffix(name, "in a lower") {
					want = nil // it writes to that lower layer
				}
				if !errors.Is(err, want) {
					t.Errorf("%s: %v, want %v", who, err, want)
				}
			}
			if c.want != nil && !strings.Contains(err.Error(), c.text) {
				t.Errorf("%v, want %q in it", err, c.text)
			}
		})
	}
}

func TestOneMountAtATimeUsesAnUpperOrAWorkdir(t *testing.T) {
	dir := tree(t, "l", "u", "w", "u2", "w2")
	first, err := openLayers(writableConfig(dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/w/work/unfinished", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]Config{
		"upperdir " + dir + "/u": {Lower: []string{dir + "/l"}, Upper: dir + "/u", Work: dir + "/w2"},
		"workdir " + dir + "/w":  {Lower: []string{dir + "/l"}, Upper: dir + "/u2", Work: dir + "/w"},
	} {
		l, err := openLayers(cfg)
		if err == nil {
			_ = l.close()
		}
		if !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), name+" is in use by another mount") {
			t.Errorf("%v, want EBUSY for %s", err, name)
		}
	}
	if _, err := os.Stat(dir + "/w/work/unfinished"); err != nil {
		t.Errorf("a refused mount emptied the workdir of a live one: %v", err)
	}
	if err := first.close(); err != nil {
		t.Fatal(err)
	}
	openForTest(t, writableConfig(dir))
	if _, err := os.Stat(dir + "/w/work/unfinished"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("leftover of a crash: %v, want it gone", err)
	}
}

func TestFiveHundredLayersOpenAndLeaveNoDescriptor(t *testing.T) {
	dir := tree(t, "u", "w")
	cfg := Config{Upper: dir + "/u", Work: dir + "/w"}
	for i := range MaxLayers {
		p := fmt.Sprintf("%s/l%d", dir, i)
		if err := os.Mkdir(p, 0o755); err != nil {
			t.Fatal(err)
		}
		cfg.Lower = append(cfg.Lower, p)
	}
	before := openDescriptors(t)
	l, err := openLayers(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	if err := l.close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	cfg.Lower[MaxLayers-1] = dir + "/gone"
	if _, err := openLayers(cfg); !errors.Is(err, unix.ENOENT) {
		t.Fatal(err)
	}
	if after := openDescriptors(t); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
