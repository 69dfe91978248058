package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// command is the built program; the names that mount(8) uses for it lie beside it.
var command string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "overlayfuse-cmd")
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()                          // a mount left behind fails the run below
		err = errors.Join(os.Chmod(dir, 0o755), os.Setenv("TMPDIR", dir)) // for every test's own directory
	}
	command = filepath.Join(dir, "overlayfuse")
	if err == nil {
		var out []byte
		if out, err = exec.Command("go", "build", "-race="+raceDetector(), "-o", command, ".").CombinedOutput(); err != nil {
			err = fmt.Errorf("build: %w\n%s", err, out)
		}
	}
	for _, name := range []string{"/mount.overlayfuse", "/mount.fuse.overlayfuse"} {
		if err == nil {
			err = os.Symlink(command, dir+name)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(mounts, []byte(" "+dir)) {
		fmt.Fprintln(os.Stderr, "mounts left behind", err)
		return 1
	}
	return code
}

// testDirs makes l, u, w and m below a new directory, with a file "lower" in l.
func testDirs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, n := range []string{"l", "u", "w", "m"} {
		if err := os.Mkdir(filepath.Join(dir, n), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(dir+"/l/lower", []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for unix.Unmount(dir+"/m", unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
		}
	})
	return dir
}

// envIO is the io= of every mount that says none, if it is set.
const envIO = "OVERLAYFUSE_TEST_IO"

func writable(dir string) string {
	options := "lowerdir=" + dir + "/l,upperdir=" + dir + "/u,workdir=" + dir + "/w"
	if mode := os.Getenv(envIO); mode != "" {
		options += ",io=" + mode
	}
	return options
}

// runIn runs the program in dir, and gives its exit code, output and error output.
func runIn(t *testing.T, dir, name string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(filepath.Dir(command), name), args...)
	var out, errOut bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
}

// mustMount runs the program, which must mount on dir/m and say nothing.
func mustMount(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	code, out, errOut := runIn(t, dir, name, args...)
	if code != exitOK || out+errOut != "" {
		t.Fatalf("exit code %d, output %q, error output %q", code, out, errOut)
	}
	got, err := os.ReadFile(dir + "/m/lower")
	if err != nil || string(got) != "hello" {
		t.Fatalf("read through the mount: %q, %v", got, err)
	}
}

// mountLine is the line of /proc/self/mounts for dir/m, "" if there is none.
func mountLine(t *testing.T, dir string) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, " "+dir+"/m ") {
			return line
		}
	}
	return ""
}

// eventually waits for a condition that another process brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// raceDetector is "true" if this test runs under it: the program then does too.
func raceDetector() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "-race" {
				return s.Value
			}
		}
	}
	return "false"
}
