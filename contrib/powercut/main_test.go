package powercut_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	envRole   = "POWERCUT_ROLE" // of this process: see TestMain
	envSeed   = "POWERCUT_SEED"
	envCuts   = "POWERCUT_CUTS"
	envFirst  = "POWERCUT_FIRST"
	envKills  = "POWERCUT_KILLS"
	envFS     = "POWERCUT_FS"
	envBinary = "POWERCUT_BINARY"
	envStrict = "POWERCUT_STRICT"
	envKeep   = "POWERCUT_KEEP"

	roleNamespaced = "namespaced" // the test itself, in its own mount namespace
	roleWorker     = "worker"
	roleReader     = "reader"
)

// testRoot is the directory of everything that a run makes.
var testRoot string

// runSeed is what the run's content and operations are made from.
var runSeed uint64

func TestMain(m *testing.M) {
	switch os.Getenv(envRole) {
	case roleWorker:
		os.Exit(workerMain())
	case roleReader:
		os.Exit(readerMain())
	case roleNamespaced:
		code, err := runTests(m)
		if err != nil {
			fmt.Fprintln(os.Stderr, "powercut:", err)
			code = 1
		}
		os.Exit(code)
	}
	os.Exit(enterNamespace())
}

// enterNamespace runs the test binary again in a mount namespace of its own, so that the kernel takes every mount away at
// its end, whatever that is. Not root: the tests say so themselves.
func enterNamespace() int {
	self := exec.Command("/proc/self/exe", os.Args[1:]...)
	// With the race detector, children sleep a second at their end otherwise.
	self.Env = append(os.Environ(), envRole+"="+roleNamespaced, "GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=0")
	self.Stdin, self.Stdout, self.Stderr = os.Stdin, os.Stdout, os.Stderr
	self.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() == 0 {
		self.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
	}
	err := self.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() >= 0 {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "powercut:", err)
		return 1
	}
	return 0
}

func runTests(m *testing.M) (code int, err error) {
	syscall.Umask(0o022)
	if err := dropOthers(); err != nil {
		return 1, err
	}
	if testRoot, err = os.MkdirTemp("", "powercut-"); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, removeRoot()) }()
	runSeed = uint64(1)
	if s := os.Getenv(envSeed); s != "" {
		if runSeed, err = strconv.ParseUint(s, 0, 64); err != nil {
			return 1, fmt.Errorf("%s: %w", envSeed, err)
		}
	} else if os.Getenv(envCuts) != "" || os.Getenv(envKills) != "" {
		runSeed = uint64(time.Now().UnixNano())
	}
	fmt.Printf("powercut: %s=%d\n", envSeed, runSeed)
	return m.Run(), nil
}

// dropOthers lets go of the FUSE mounts that came with the namespace: those of other tests, whose servers would not end with their
// unmount.
func dropOthers() error {
	if os.Geteuid() != 0 {
		return nil // there is no namespace of its own
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(info)) {
		mount, system, _ := strings.Cut(line, " - ")
		if f := strings.Fields(mount); len(f) > 4 && strings.HasPrefix(system, "fuse.overlayfuse ") {
			// It may have gone with one above it; its path may hold escapes (proc_pid_mountinfo(5)), which tests' paths don't.
			_ = syscall.Unmount(f[4], syscall.MNT_DETACH)
		}
	}
	return nil
}

// removeRoot removes what is left of the run, but for the copies that are to be kept.
func removeRoot() error {
	if err := leftMounts(); err != nil {
		return err
	}
	kept, err := filepath.Glob(filepath.Join(testRoot, "kept-*"))
	if err != nil {
		return err
	}
	if len(kept) > 0 {
		fmt.Printf("powercut: kept: %s\n", strings.Join(kept, " "))
		return nil
	}
	return os.RemoveAll(testRoot)
}

// leftMounts is an error if a test left a mount below testRoot.
func leftMounts() error {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	if strings.Contains(string(info), " "+testRoot+"/") {
		return fmt.Errorf("a test left a mount below %s:\n%s", testRoot, info)
	}
	return nil
}

// count is the number in an environment variable.
func count(t *testing.T, name string, otherwise int) int {
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

func needRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}
