package overlayfuse_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse"
	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/internal/fstool"
)

// upperUnderTest is an upper that a test builds by hand, over a lower with the file "f" of 20,000 bytes.
type upperUnderTest struct {
	t   *testing.T
	dir string
}

func newUpperUnderTest(t *testing.T) *upperUnderTest {
	u := &upperUnderTest{t, testDir(t, "fsck")}
	u.build()
	return u
}

func (u *upperUnderTest) build() {
	u.t.Helper()
	for _, d := range []string{"l", "u", "w", "w/work", "w/index"} {
		u.must(os.Mkdir(u.path(d), 0o755))
	}
	u.must(os.WriteFile(u.path("l/f"), bytes.Repeat([]byte("low."), 5000), 0o644))
}

// onBtrfs puts all of it on a new btrfs, where a crash may lose a size.
func (u *upperUnderTest) onBtrfs() {
	u.t.Helper()
	u.dir = filepath.Join(u.dir, "btrfs")
	mountSmall(u.t, u.dir, limited{mkfs: []string{"mkfs.btrfs", "-q", "--mixed"}, mib: 64})
	u.build()
}

// lostSize makes f a file whose data is in the lower, and that has lost its size.
func (u *upperUnderTest) lostSize(mark string) {
	u.t.Helper()
	u.onBtrfs()
	u.file("f", 0, map[string]string{"metacopy": mark})
}

func (u *upperUnderTest) must(err error) {
	u.t.Helper()
	if err != nil {
		u.t.Fatal(err)
	}
}

func (u *upperUnderTest) path(p string) string { return filepath.Join(u.dir, p) }

// file makes a sparse file of the upper with pieces of data of 4 KiB and marks.
func (u *upperUnderTest) file(name string, size int64, marks map[string]string, blocks ...int64) {
	u.t.Helper()
	f, err := os.Create(u.path("u/" + name))
	u.must(err)
	u.must(f.Truncate(size))
	for _, b := range blocks {
		_, err := f.WriteAt(bytes.Repeat([]byte("UP"), int(min(4096, size-b*4096))/2), b*4096)
		u.must(err)
	}
	u.must(f.Close())
	for k, v := range marks {
		u.must(unix.Setxattr(u.path("u/"+name), "trusted.overlay."+k, []byte(v), 0))
	}
}

func (u *upperUnderTest) config() overlayfuse.Config {
	return overlayfuse.Config{Lower: []string{u.path("l")}, Upper: u.path("u"), Work: u.path("w")}
}

func (u *upperUnderTest) check(repair bool) overlayfuse.CheckReport {
	u.t.Helper()
	r, err := overlayfuse.Check(context.Background(), u.config(), overlayfuse.CheckOptions{Repair: repair})
	u.must(err)
	return r
}

// sum describes the whole upper and workdir: names, attributes, xattrs and content.
func (u *upperUnderTest) sum() string {
	u.t.Helper()
	a, err := fstool.Tree(u.path("u"))
	u.must(err)
	b, err := fstool.Tree(u.path("w"))
	u.must(err)
	return a + b
}

func limitValue(n uint64) string { return string(binary.LittleEndian.AppendUint64(nil, n)) }

// TestCheckFindsAndRepairs: each fault is found as what it is, a check alone changes nothing, and after a repair of what can be
// repaired a second check is clean, but for what can't.
func TestCheckFindsAndRepairs(t *testing.T) {
	for name, c := range map[string]struct {
		make     func(u *upperUnderTest)
		finding  string // in the only finding; "": none
		severity overlayfuse.Severity
		repairs  bool
	}{
		"nothing":  {make: func(*upperUnderTest) {}},
		"metacopy": {make: func(u *upperUnderTest) { u.file("f", 20000, map[string]string{"metacopy": ""}) }},
		"partial":  {make: func(u *upperUnderTest) { u.file("f", 20000, map[string]string{"metacopy": "p"}, 1) }},
		"partial and cut": {make: func(u *upperUnderTest) {
			u.file("f", 30000, map[string]string{"metacopy": "p", "limit": limitValue(9000)}, 0)
		}},
		"unknown metacopy":  {func(u *upperUnderTest) { u.file("f", 20000, map[string]string{"metacopy": "zz"}) }, "unknown", overlayfuse.SeverityError, false},
		"limit of 3 bytes":  {func(u *upperUnderTest) { u.file("f", 20000, map[string]string{"metacopy": "p", "limit": "abc"}) }, "8 bytes", overlayfuse.SeverityError, false},
		"no lower":          {func(u *upperUnderTest) { u.file("g", 20000, map[string]string{"metacopy": ""}) }, "without lower data", overlayfuse.SeverityError, false},
		"partial, no lower": {func(u *upperUnderTest) { u.file("g", 20000, map[string]string{"metacopy": "p"}, 1) }, "without lower data", overlayfuse.SeverityError, false},
		"redirect":          {func(u *upperUnderTest) { u.file("g", 20000, map[string]string{"metacopy": "", "redirect": "/f"}) }, "", 0, false},
		"bad redirect":      {func(u *upperUnderTest) { u.file("g", 20000, map[string]string{"metacopy": "", "redirect": "/../f"}) }, "redirect", overlayfuse.SeverityError, false},
		"metacopy with data": {func(u *upperUnderTest) { u.file("f", 20000, map[string]string{"metacopy": ""}, 2) }, "data of its own",
			overlayfuse.SeverityError, true},
		"complete partial": {func(u *upperUnderTest) { u.file("f", 20000, map[string]string{"metacopy": "p"}, 0, 1, 2, 3, 4) }, "but complete",
			overlayfuse.SeverityNote, true},
		"nothing of the lower shows": {func(u *upperUnderTest) {
			u.file("f", 20000, map[string]string{"metacopy": "p", "limit": limitValue(0)}, 3)
		},
			"but complete", overlayfuse.SeverityNote, true},
		"limit of a complete file": {func(u *upperUnderTest) { u.file("f", 20000, map[string]string{"limit": limitValue(7)}, 0, 1, 2, 3, 4) }, "left over",
			overlayfuse.SeverityNote, true},
		"limit of a metacopy file": {func(u *upperUnderTest) { u.file("f", 20000, map[string]string{"metacopy": "", "limit": limitValue(7)}) }, "left over",
			overlayfuse.SeverityNote, true},
		"lost size":          {func(u *upperUnderTest) { u.lostSize("p") }, "size 0", overlayfuse.SeverityNote, true},
		"lost size, no data": {func(u *upperUnderTest) { u.lostSize("") }, "size 0", overlayfuse.SeverityNote, true},
		"unfinished object":  {func(u *upperUnderTest) { u.must(os.WriteFile(u.path("w/work/#1"), nil, 0o600)) }, "unfinished", overlayfuse.SeverityNote, true},
		"opaque": {func(u *upperUnderTest) {
			u.must(os.Mkdir(u.path("u/d"), 0o755))
			u.must(unix.Setxattr(u.path("u/d"), "trusted.overlay.opaque", []byte("q"), 0))
		}, "opaque", overlayfuse.SeverityWarning, false},
		"redirect of a directory": {func(u *upperUnderTest) {
			u.must(os.Mkdir(u.path("u/d"), 0o755))
			u.must(unix.Setxattr(u.path("u/d"), "trusted.overlay.redirect", []byte("/nowhere"), 0))
		}, "leads to no lower", overlayfuse.SeverityWarning, false},
		"volatile of another boot": {func(u *upperUnderTest) { u.must(os.MkdirAll(u.path("w/work/incompat/volatile/boot-x"), 0o755)) }, "volatile",
			overlayfuse.SeverityError, false},
		"index entry": {func(u *upperUnderTest) { u.must(os.WriteFile(u.path("w/index/nothex"), nil, 0o600)) }, "not named for an origin",
			overlayfuse.SeverityError, false},
	} {
		t.Run(name, func(t *testing.T) {
			u := newUpperUnderTest(t)
			c.make(u)
			lower, err := fstool.Tree(u.path("l"))
			u.must(err)
			before := u.sum()
			r := u.check(false)
			if after := u.sum(); after != before {
				t.Errorf("a check changed the upper:\n%s\n%s", before, after)
			}
			switch {
			case c.finding == "" && len(r.Findings) > 0, c.finding != "" && len(r.Findings) != 1:
				t.Fatalf("findings %+v", r.Findings)
			case c.finding == "":
				return
			}
			if f := r.Findings[0]; !strings.Contains(f.Problem, c.finding) || f.Severity != c.severity || f.Repaired {
				t.Errorf("found %+v", f)
			}
			if r = u.check(true); len(r.Findings) != 1 || r.Findings[0].Repaired != c.repairs {
				t.Errorf("repair: %+v", r.Findings)
			}
			if r = u.check(false); c.repairs && len(r.Findings) > 0 || !c.repairs && len(r.Findings) != 1 {
				t.Errorf("after the repair: %+v", r.Findings)
			}
			if now, err := fstool.Tree(u.path("l")); err != nil || now != lower {
				t.Errorf("the lower changed: %v", err)
			}
		})
	}
}

// TestRepairKeepsWhatIsShown: the file reads the same before and after what a repair does with it.
func TestRepairKeepsWhatIsShown(t *testing.T) {
	want := bytes.Repeat([]byte("low."), 5000)
	u := newUpperUnderTest(t)
	u.file("f", 20000, map[string]string{"metacopy": "p"}, 0, 1, 2, 3, 4)
	whole := bytes.Repeat([]byte("UP"), 10000)
	u.check(true)
	if got, err := os.ReadFile(u.path("u/f")); err != nil || !bytes.Equal(got, whole) {
		t.Errorf("completed: %v", err)
	}
	if _, err := unix.Getxattr(u.path("u/f"), "trusted.overlay.metacopy", nil); !errors.Is(err, unix.ENODATA) {
		t.Errorf("still marked: %v", err)
	}
	u = newUpperUnderTest(t)
	u.lostSize("p")
	u.check(true)
	u.must(os.Mkdir(u.path("m"), 0o755))
	server := exec.Command(serverBinary(), "-f", "-o", "lowerdir="+u.path("l")+",upperdir="+u.path("u")+",workdir="+u.path("w"), u.path("m"))
	u.must(server.Start())
	out, err := exec.Command("timeout", "20", "sh", "-c", `until mountpoint -q "$1"; do sleep 0.05; done; cat "$1/f"`, "sh", u.path("m")).Output()
	u.must(unix.Unmount(u.path("m"), unix.MNT_DETACH))
	u.must(server.Wait()) // none is to be left when the tests end
	if err != nil || !bytes.Equal(out, want) {
		t.Errorf("lost size: %d bytes, %v", len(out), err)
	}
}

// TestCheckRefusesAnUpperInUse: a mount's lock is a check's.
func TestCheckRefusesAnUpperInUse(t *testing.T) {
	u := newUpperUnderTest(t)
	fd, err := unix.Open(u.path("u"), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	u.must(err)
	defer func() { _ = unix.Close(fd) }()
	u.must(unix.Flock(fd, unix.LOCK_EX))
	if _, err := overlayfuse.Check(context.Background(), u.config(), overlayfuse.CheckOptions{}); !errors.Is(err, unix.EBUSY) {
		t.Errorf("got %v", err)
	}
}
