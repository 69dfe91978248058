package powercut_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// built is the overlayfuse under test and what it knows.
var built = sync.OnceValues(func() (command, error) {
	c := command{path: os.Getenv(envBinary)}
	if c.path == kernelOverlay {
		return c, nil
	}
	if c.path == "" {
		c.path = filepath.Join(testRoot, "overlayfuse")
		build := exec.Command("go", "build", "-o", c.path, "../../cmd/overlayfuse")
		if out, err := build.CombinedOutput(); err != nil {
			return c, fmt.Errorf("build the server: %w\n%s", err, out)
		}
	}
	// An option that it does not know is refused by name, before anything else is looked at.
	out, _ := exec.Command(c.path, "-f", "-o", "lowerdir=/nonexistent,partial_above=0", "/nonexistent").CombinedOutput()
	c.partial = !strings.Contains(string(out), "unknown option")
	help, _ := exec.Command(c.path, "--help").CombinedOutput()
	fsckHelp, err := exec.Command(c.path, "fsck", "--help").CombinedOutput()
	c.fsck = err == nil && strings.Contains(string(help), "\n  fsck ") && !strings.Contains(string(fsckHelp), "unknown")
	return c, nil
})

// kernelOverlay in the place of a binary is the kernel's overlayfs: what it fails is a fault of the test, or of more than us.
const kernelOverlay = "kernel"

// command is a binary of overlayfuse.
type command struct {
	path    string
	partial bool // it has the option partial_above
	fsck    bool // it has the sub-command fsck
}

func theBinary(t *testing.T) command {
	c, err := built()
	if err != nil {
		t.Fatal(err)
	}
	if !c.fsck {
		t.Log("NOT TESTED: this overlayfuse has no fsck; the copies are not checked by it")
	}
	if !c.partial {
		t.Log("NOT TESTED: this overlayfuse does not know partial_above; every round runs with its own threshold")
	}
	return c
}

// layerOptions names the three directories that writeLower makes.
func layerOptions(disk string) string {
	return fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s",
		filepath.Join(disk, "lower"), filepath.Join(disk, "upper"), filepath.Join(disk, "work"))
}

// server is a running overlayfuse, mounted.
type server struct {
	cmd   *exec.Cmd // nil: the kernel's overlayfs
	dir   string
	log   bytes.Buffer
	ended chan struct{}
	err   error // of its end; after ended
}

const serverLimit = 30 * time.Second

// mount starts a server for the directories on disk and waits for its mount.
func (c command) mount(disk, dir, options string) (*server, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if c.path == kernelOverlay {
		return &server{dir: dir}, unix.Mount("overlay", dir, "overlay", 0, layerOptions(disk)+options+",redirect_dir=on,metacopy=on")
	}
	s := &server{dir: dir, ended: make(chan struct{})}
	s.cmd = exec.Command(c.path, "-f", "-o", layerOptions(disk)+options, dir)
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { s.err = s.cmd.Wait(); close(s.ended) }()
	for deadline := time.Now().Add(serverLimit); time.Now().Before(deadline); {
		if up, err := mounted(dir); up || err != nil {
			return s, err
		}
		select {
		case <-s.ended:
			return nil, fmt.Errorf("the server does not come up: %w\n%s", s.err, &s.log)
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil, errors.Join(fmt.Errorf("no mount in %v", serverLimit), s.kill())
}

// mounted looks into the table of mounts: it does not touch the mount.
func mounted(dir string) (bool, error) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	return strings.Contains(string(info), " "+dir+" "), err
}

// stop ends the server as an operator does.
func (s *server) stop() error {
	if s.cmd == nil {
		return unmount(s.dir)
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended, which is seen below
	select {
	case <-s.ended:
	case <-time.After(serverLimit):
		return errors.Join(fmt.Errorf("the server does not end on SIGTERM"), s.kill())
	}
	if s.err != nil {
		return errors.Join(fmt.Errorf("the server ended with %w\n%s", s.err, &s.log), s.kill())
	}
	up, err := mounted(s.dir)
	if up {
		err = errors.Join(errors.New("the server left its mount"), s.kill())
	}
	return err
}

// kill ends the server without a warning and takes its dead mount away.
func (s *server) kill() error {
	_ = s.cmd.Process.Kill() // it may have ended
	<-s.ended
	if err := unix.Unmount(s.dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("umount -l %s: %w", s.dir, err)
	}
	return nil
}

// check runs fsck on the directories of a disk; it must find nothing.
func (c command) check(disk string) error {
	if !c.fsck {
		return nil
	}
	fsck := exec.Command(c.path, "fsck", "-n", "-o", layerOptions(disk))
	if out, err := fsck.CombinedOutput(); err != nil {
		return fmt.Errorf("fsck -n: %w\n%s", err, out)
	}
	return nil
}
