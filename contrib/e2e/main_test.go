package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// stack is the private containerd that the tests of one run share.
var stack struct {
	dir         string   // of containerd, the snapshotter and the mount server
	env         []string // for nerdctl, ctr and the rest
	vars        map[string]string
	snapshotter string
	treedump    string // the built command
	tmp         string
}

func TestMain(m *testing.M) {
	os.Exit(runTests(m))
}

func runTests(m *testing.M) (status int) {
	if err := startStack(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: the stack cannot be made ready:", err)
		status = 1
	} else {
		status = m.Run()
	}
	if stack.dir != "" {
		if text, err := script(time.Minute*3, "stack.sh", "down", stack.dir); err != nil {
			fmt.Fprintln(os.Stderr, "e2e: the stack cannot be taken down:", err, text)
			status = 1
		}
	}
	if stack.tmp != "" {
		if err := os.RemoveAll(stack.tmp); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			status = 1
		}
	}
	return status
}

// startStack installs what lacks, builds the commands and brings the stack up.
func startStack() error {
	stack.snapshotter = os.Getenv("SNAPSHOTTER")
	if stack.snapshotter == "" {
		stack.snapshotter = "overlayfuse"
	}
	if _, err := script(15*time.Minute, "install.sh", "test"); err != nil {
		return err
	}
	var err error
	if stack.tmp, err = os.MkdirTemp("", "ofs-test-"); err != nil {
		return err
	}
	stack.treedump = filepath.Join(stack.tmp, "treedump")
	builds := [][]string{{"-o", stack.treedump, "./contrib/e2e/treedump"}}
	if stack.snapshotter == "overlayfuse" {
		builds = append(builds, []string{"-o", "bin/", "./cmd/overlayfuse", "./cmd/containerd-overlayfuse-grpc"})
	}
	for _, args := range builds {
		cmd := command(5*time.Minute, "go", append([]string{"build", "-trimpath"}, args...)...)
		cmd.Dir = "../.."
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := output(cmd); err != nil {
			return fmt.Errorf("go build %v: %w: %s", args, err, text)
		}
	}
	dir, err := os.MkdirTemp("", "ofs-e2e-")
	if err != nil {
		return err
	}
	if err := os.Remove(dir); err != nil { // stack.sh makes it
		return err
	}
	stack.dir = dir
	if _, err := script(2*time.Minute, "stack.sh", "up", dir); err != nil {
		return err
	}
	text, err := script(time.Minute, "stack.sh", "env", dir)
	if err != nil {
		return err
	}
	stack.vars = map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			stack.vars[name] = value
		}
	}
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); stack.vars[name] == "" {
			stack.env = append(stack.env, entry)
		}
	}
	for name, value := range stack.vars {
		stack.env = append(stack.env, name+"="+value)
	}
	return os.Setenv("PATH", stack.vars["PATH"])
}

// command is a process in a group of its own that is killed, group and all, at its deadline.
func command(limit time.Duration, name string, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		defer cancel()
		return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	cmd.WaitDelay = 5 * time.Second
	cmd.Env = stack.env
	return cmd
}

// output runs a command to its end and returns what it printed; its error holds what it said on standard error.
func output(cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it ended well; something it started holds its output open
	}
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), err
}

// script runs one of contrib/stack's scripts.
func script(limit time.Duration, name string, args ...string) (string, error) {
	cmd := command(limit, filepath.Join("../stack", name), args...)
	cmd.Env = os.Environ()
	return output(cmd)
}

// run runs a command of the stack, which must succeed.
func run(t *testing.T, limit time.Duration, name string, args ...string) string {
	t.Helper()
	text, err := output(command(limit, name, args...))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// nerdctl runs nerdctl on a snapshotter.
func nerdctl(t *testing.T, snapshotter string, args ...string) string {
	t.Helper()
	return run(t, 4*time.Minute, "nerdctl", append([]string{"--snapshotter", snapshotter}, args...)...)
}

// loadImage makes an image (see image.sh) and loads it for a snapshotter.
func loadImage(t *testing.T, namespace, snapshotter string, image ...string) {
	t.Helper()
	path, err := script(10*time.Minute, "image.sh", image...)
	if err != nil {
		t.Fatal(err)
	}
	nerdctl(t, snapshotter, "--namespace", namespace, "load", "--quiet", "-i", strings.TrimSpace(path))
}

// startContainer runs a container in the background until the test ends.
func startContainer(t *testing.T, snapshotter, name string, args ...string) {
	t.Helper()
	t.Cleanup(func() {
		if _, err := output(command(time.Minute, "nerdctl", "rm", "-f", name)); err != nil {
			t.Error(err)
		}
	})
	nerdctl(t, snapshotter, append([]string{"run", "-d", "--name", name, "--net", "none"}, args...)...)
}

// snapshotKeys lists the snapshots of a namespace.
func snapshotKeys(t *testing.T, namespace, snapshotter string) map[string]bool {
	t.Helper()
	keys := map[string]bool{}
	text := run(t, time.Minute, "ctr", "-n", namespace, "snapshots", "--snapshotter", snapshotter, "ls")
	for i, line := range strings.Split(strings.TrimSpace(text), "\n") {
		if fields := strings.Fields(line); i > 0 && len(fields) > 0 {
			keys[fields[0]] = true
		}
	}
	return keys
}

// eventually waits until ok holds.
func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}
