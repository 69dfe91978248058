package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFsckExitCodes: those of fsck(8).
func TestFsckExitCodes(t *testing.T) {
	dir, err := os.MkdirTemp("", "fsck-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	for _, d := range []string{"l", "u", "w"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	options := "lowerdir=" + dir + "/l,upperdir=" + dir + "/u,workdir=" + dir + "/w"
	bad := func(value string) {
		t.Helper()
		path := filepath.Join(dir, "u", "f")
		if err := os.WriteFile(path, make([]byte, 100), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := unix.Setxattr(path, "trusted.overlay.metacopy", []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	run := func(want int, args ...string) {
		t.Helper()
		if got := fsckCommand(args); got != want {
			t.Errorf("fsck %v: exit code %d, want %d", args, got, want)
		}
	}
	run(exitFsckClean, "-o", options)
	run(exitFsckClean, "--help")
	run(exitFsckUsage, "-n", "-y", "-o", options)
	run(exitFsckUsage, "-o", "lowerdir="+dir+"/l")
	run(exitFsckUsage, "-o", options, "more")
	run(exitFsckOperational, "-o", "upperdir="+dir+"/none,workdir="+dir+"/w")
	bad("zz")
	run(exitFsckUncorrected, "-o", options)
	run(exitFsckUncorrected, "-y", "-o", options)
	if err := os.Remove(filepath.Join(dir, "u", "f")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "l", "f"), make([]byte, 100), 0o644); err != nil {
		t.Fatal(err)
	}
	bad("") // data that is nobody's
	run(exitFsckUncorrected, "-o", options)
	run(exitFsckCorrected, "-y", "-o", options)
	run(exitFsckClean, "-o", options)
}

// fsckFile makes an empty file in the upper with a mark.
func fsckFile(t *testing.T, dir, name, mark, value string, data string) {
	t.Helper()
	if err := os.WriteFile(dir+"/u/"+name, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(dir+"/u/"+name, "trusted.overlay."+mark, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

func TestFsckExitCodesAreThoseOfFsck(t *testing.T) {
	stale := func(t *testing.T, dir string) { fsckFile(t, dir, "lower", "metacopy", "", "stale") }
	unknown := func(t *testing.T, dir string) { fsckFile(t, dir, "unknown", "metacopy", "?", "") }
	both := func(t *testing.T, dir string) { stale(t, dir); unknown(t, dir) }
	note := func(t *testing.T, dir string) { fsckFile(t, dir, "own", "limit", "", "") }
	gone := func(t *testing.T, dir string) { fsckFile(t, dir, "gone", "metacopy", "", "") }
	volatile := func(t *testing.T, dir string) {
		if err := os.MkdirAll(dir+"/w/work/incompat/volatile/boot-0", 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		make   func(t *testing.T, dir string)
		args   []string // after -o lowerdir=l,upperdir=u,workdir=w
		code   int
		stdout []string // parts of it, in this order
		silent bool     // and nothing else
	}{
		"clean":             {nil, nil, exitFsckClean, []string{"u: clean\n"}, true},
		"clean, verbose":    {nil, []string{"-v"}, exitFsckClean, []string{"u: clean; 1 directories, 0 files, "}, true},
		"errors":            {stale, nil, exitFsckUncorrected, []string{"error: u/lower: ", "data of its own", "u: 1 errors; -y repairs what can be\n"}, true},
		"errors, -n":        {stale, []string{"-n"}, exitFsckUncorrected, []string{"error: u/lower: "}, false},
		"errors, --check":   {stale, []string{"--check"}, exitFsckUncorrected, []string{"error: u/lower: "}, false},
		"errors, -y":        {stale, []string{"-y"}, exitFsckCorrected, []string{"error (repaired): u/lower: ", "u: 1 errors corrected, 0 left\n"}, true},
		"errors, --repair":  {stale, []string{"--repair"}, exitFsckCorrected, []string{"error (repaired): u/lower: "}, false},
		"not correctable":   {unknown, []string{"-y"}, exitFsckUncorrected, []string{`metacopy mark "?" is unknown`, "0 errors corrected, 1 left"}, true},
		"some correctable":  {both, []string{"-y"}, exitFsckCorrected | exitFsckUncorrected, []string{"1 errors corrected, 1 left"}, false},
		"note":              {note, nil, exitFsckClean, []string{"u: clean\n"}, true},
		"note, -v":          {note, []string{"--verbose"}, exitFsckClean, []string{"note: u/own: left over: limit", "u: clean"}, true},
		"note, -yv":         {note, []string{"-yv"}, exitFsckClean, []string{"note (repaired): u/own: left over: limit", "u: clean"}, true},
		"volatile":          {volatile, nil, exitFsckUncorrected, []string{"error: w/work/incompat/volatile: the upper was last written by a volatile mount"}, false},
		"lower data gone":   {gone, nil, exitFsckUncorrected, []string{"error: u/gone: metacopy file without lower data"}, false},
		"-n and -y":         {nil, []string{"-n", "-y"}, exitFsckUsage, nil, true},
		"unknown flag":      {nil, []string{"-x"}, exitFsckUsage, nil, true},
		"unknown option":    {nil, []string{"-o", "nonsense"}, exitFsckUsage, nil, true},
		"an argument":       {nil, []string{"u"}, exitFsckUsage, nil, true},
		"upper not there":   {nil, []string{"-o", "upperdir=gone"}, exitFsckOperational, nil, true},
		"lower not there":   {nil, []string{"-o", "lowerdir=gone"}, exitFsckOperational, nil, true},
		"upper is a file":   {nil, []string{"-o", "upperdir=l/lower"}, exitFsckOperational, nil, true},
		"no work directory": {nil, []string{"-o", "workdir=l/lower"}, exitFsckOperational, nil, true},
		"help":              {nil, []string{"--help"}, exitFsckClean, []string{"Usage: overlayfuse fsck ", "Exit codes: "}, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := testDirs(t)
			if c.make != nil {
				c.make(t, dir)
			}
			code, out, errOut := runIn(t, dir, "overlayfuse", append([]string{"fsck", "-o", "lowerdir=l,upperdir=u,workdir=w"}, c.args...)...)
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			rest := out
			for i, want := range c.stdout {
				at := strings.Index(rest, want)
				if at < 0 || i == 0 && c.silent && at > 0 && !strings.HasPrefix(rest, "error: u/unknown: ") {
					t.Fatalf("output %q, want %q", out, c.stdout)
				}
				rest = rest[at+len(want):]
			}
			failed := code&(exitFsckOperational|exitFsckUsage) != 0
			if failed != (errOut != "") || failed && (out != "" || !strings.HasPrefix(errOut, "overlayfuse: ")) {
				t.Errorf("output %q, error output %q", out, errOut)
			}
		})
	}
}

func TestFsckWithoutLowersSaysSo(t *testing.T) {
	dir := testDirs(t)
	fsckFile(t, dir, "gone", "metacopy", "", "")
	code, out, errOut := runIn(t, dir, "overlayfuse", "fsck", "-o", "upperdir=u,workdir=w")
	if code != exitFsckClean || errOut != "" || !strings.HasPrefix(out, "not checked: no lowerdir: ") || !strings.HasSuffix(out, "u: clean\n") {
		t.Errorf("exit code %d, output %q, error output %q", code, out, errOut)
	}
	code, out, errOut = runIn(t, dir, "overlayfuse", "fsck", "-o", "lowerdir+=l,upperdir=u,workdir=w")
	if code != exitFsckUncorrected || !strings.HasPrefix(out, "error: u/gone: ") || errOut != "" {
		t.Errorf("lowerdir+: exit code %d, output %q, error output %q", code, out, errOut)
	}
	code, _, errOut = runIn(t, dir, "overlayfuse", "fsck", "-o", "lowerdir=l")
	if code != exitFsckUsage || !strings.Contains(errOut, "upperdir= is missing") {
		t.Errorf("no upper: exit code %d, error output %q", code, errOut)
	}
	code, _, errOut = runIn(t, dir, "overlayfuse", "fsck", "-o", "upperdir=u")
	if code != exitFsckUsage || !strings.Contains(errOut, "needs a workdir") {
		t.Errorf("no workdir: exit code %d, error output %q", code, errOut)
	}
}

func TestFsckRefusesAMountedUpper(t *testing.T) {
	dir := testDirs(t)
	mustMount(t, dir, "overlayfuse", "-o", writable(dir), dir+"/m")
	for _, flag := range []string{"-n", "-y"} {
		code, out, errOut := runIn(t, dir, "overlayfuse", "fsck", flag, "-o", "lowerdir=l,upperdir=u,workdir=w")
		if code != exitFsckOperational || out != "" || errOut != "overlayfuse: upperdir u is in use by another mount: device or resource busy\n" {
			t.Errorf("%s: exit code %d, output %q, error output %q", flag, code, out, errOut)
		}
	}
	if err := unix.Unmount(dir+"/m", 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server ends and the upper is free", func() bool {
		code, _, _ := runIn(t, dir, "overlayfuse", "fsck", "-o", writable(dir))
		return code == exitFsckClean
	})
}

func TestFsckPrintsNoControlCharacters(t *testing.T) {
	dir := testDirs(t)
	fsckFile(t, dir, "a\nerror: b\x1b[2J\xff", "metacopy", "?", "")
	fsckFile(t, dir, "größe", "metacopy", "?", "")
	code, out, _ := runIn(t, dir, "overlayfuse", "fsck", "-o", "lowerdir=l,upperdir=u,workdir=w")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if code != exitFsckUncorrected || len(lines) != 3 || !strings.HasPrefix(lines[0], `error: "u/a\nerror: b\x1b[2J\xff": `) ||
		!strings.HasPrefix(lines[1], "error: u/größe: ") {
		t.Errorf("exit code %d, output %q", code, out)
	}
}
