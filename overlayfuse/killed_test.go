package overlayfuse_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse"
	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/internal/fstool"
)

// Commands that work on an upper without a mount are killed (SIGKILL) at instants of a fixed seed, and go on where the last one was.

// killed runs the binary until it ends or some time has passed, and tells whether it was killed. Exit code 1 is fsck's, of a repair.
func killed(t *testing.T, after time.Duration, args ...string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), after)
	defer cancel()
	cmd := exec.CommandContext(ctx, serverBinary(), args...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() > 1 {
		t.Fatalf("%v: %v: %s", args, err, out)
	}
	return !cmd.ProcessState.Exited()
}

// killOften kills runs of a command until one comes to its end, and calls look after each. The time that one gets grows.
func killOften(t *testing.T, look func(), args ...string) (kills int) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	const first = 4 * time.Millisecond
	for most := first; ; most += most / 8 {
		if !killed(t, time.Duration(r.Int64N(int64(most)))+first, args...) {
			break
		}
		kills++
		look()
	}
	t.Logf("%v: %d kills", args[0], kills)
	if kills < 5 {
		t.Errorf("%d kills: there is too little to do", kills)
	}
	look()
	return kills
}

// TestKilledFlush: whenever "overlayfuse flush" is killed, the mount shows what it did before, and fsck finds nothing wrong.
func TestKilledFlush(t *testing.T) {
	s, err := newPlainScript(t, "overlayfuse", "killed-flush")
	if err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do := func(words ...string) string { t.Helper(); return s.mustDo(t, words...) }
	random := rand.NewChaCha8([32]byte{1})
	lower := func(name string, size int) {
		t.Helper()
		data := make([]byte, size)
		_, _ = random.Read(data) // never fails
		must(errors.Join(os.MkdirAll(filepath.Join(s.dir, "l1", filepath.Dir(name)), 0o755), os.WriteFile(filepath.Join(s.dir, "l1", name), data, 0o644)))
	}
	const files = 24
	for i := range files {
		lower(fmt.Sprintf("d%d/large", i), 2<<20)
		lower(fmt.Sprintf("d%d/small", i), 6000)
		lower(fmt.Sprintf("d%d/linked", i), 6000)
	}
	for i := range files {
		must(os.Link(fmt.Sprintf("%s/l1/d%d/linked", s.dir, i), fmt.Sprintf("%s/l1/d%d/other", s.dir, (i+1)%files)))
	}
	m, err := s.parseMount(nil)
	must(err)
	must(s.mount(m))
	for i := range files {
		d := fmt.Sprintf("m/d%d/", i)
		do("open", "a", d+"large", "rw")
		do("fill", "a", "1000000", "100", "b")
		do("close", "a")
		do("chmod", d+"small", "0600")
		do("chmod", d+"linked", "0640")
	}
	want := do("sum", "m")
	m, err = s.umount("m")
	must(err)
	look := func() {
		t.Helper()
		report, err := overlayfuse.Check(t.Context(), overlayfuse.Config{Lower: []string{s.dir + "/l1"}, Upper: s.dir + "/u", Work: s.dir + "/w"},
			overlayfuse.CheckOptions{})
		must(err)
		for _, f := range report.Findings {
			if f.Severity > overlayfuse.SeverityNote {
				t.Errorf("fsck: %+v", f)
			}
		}
		must(s.mount(m))
		if got := do("sum", "m"); got != want {
			t.Fatalf("the mount shows %s, want %s", got, want)
		}
		m, err = s.umount("m")
		must(err)
	}
	look()
	killOften(t, look, "flush", "-o", s.optionsOf(m))
	for i := range files {
		for _, name := range []string{"large", "small", "linked", "other"} {
			path := fmt.Sprintf("%s/u/d%d/%s", s.dir, i, name)
			if _, err := unix.Lgetxattr(path, "trusted.overlay.metacopy", nil); !errors.Is(err, unix.ENODATA) {
				t.Errorf("%s: its mark: %v, want none", path, err)
			}
		}
	}
}

// TestKilledRepair: whenever "overlayfuse fsck -y" is killed, the next one makes of the upper what one alone does, but for the time of a file
// of which it was about to put the time back (punchAll).
func TestKilledRepair(t *testing.T) {
	u := newUpperUnderTest(t)
	const files = 400
	for i := range files {
		name := fmt.Sprintf("f%d", i)
		u.must(os.Link(u.path("l/f"), u.path("l/"+name)))
		switch i % 4 {
		case 0:
			u.file(name, 20000, map[string]string{"metacopy": ""}, 2)
		case 1:
			u.file(name, 20000, map[string]string{"metacopy": "p"}, 0, 1, 2, 3, 4)
		case 2:
			u.file(name, 20000, map[string]string{"metacopy": "p", "limit": limitValue(0)}, 3)
		case 3:
			u.file(name, 20000, map[string]string{"limit": limitValue(7)}, 0, 1, 2, 3, 4)
		}
		u.must(os.WriteFile(u.path(fmt.Sprintf("w/work/#%d", i)), nil, 0o600))
	}
	alone := &upperUnderTest{t, filepath.Join(testDir(t, "fsck"), "alone")}
	runTool(t, "cp", "-a", u.dir, alone.dir)
	options := func(u *upperUnderTest) string {
		return fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", u.path("l"), u.path("u"), u.path("w"))
	}
	if killed(t, time.Minute, "fsck", "-y", "-o", options(alone)) {
		t.Fatal("it does not end")
	}
	upper := func(u *upperUnderTest) []string {
		text, err := fstool.Tree(u.path("u"))
		u.must(err)
		return strings.Split(text, "\n")
	}
	before, want := upper(u), upper(alone)
	kills := killOften(t, func() {}, "fsck", "-y", "-o", options(u))
	repaired, late := 0, 0
	const mtime = 6 // the field of a line
	for i, got := range upper(u) {
		if before[i] != want[i] {
			repaired++
		}
		if got == want[i] {
			continue
		}
		late++
		g, w := strings.Fields(got), strings.Fields(want[i])
		if g[mtime], w[mtime] = "", ""; !slices.Equal(g, w) {
			t.Errorf("was %s\nrepaired at once %s\nafter kills %s", before[i], want[i], got)
		}
	}
	if repaired < files/2 || late > kills {
		t.Errorf("%d files were repaired, %d have another time, after %d kills", repaired, late, kills)
	}
	if f := u.check(false).Findings; len(f) > 0 {
		t.Errorf("%d findings, %+v first", len(f), f[0])
	}
}
