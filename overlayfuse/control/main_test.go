package control

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

// command is the command overlayfuse, built for this run.
var command string

// dialEnv makes the test binary dial the socket that it names, and print the error.
const dialEnv = "OVERLAYFUSE_TEST_DIAL"

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if socket := os.Getenv(dialEnv); socket != "" {
		_, err := Dial(context.Background(), socket)
		fmt.Println(err)
		return 0
	}
	dir, err := os.MkdirTemp("", "ofctl") // short: socket paths lie below
	if err == nil {
		defer func() { _ = os.RemoveAll(dir) }()                          // a mount left behind fails the run below
		err = errors.Join(os.Chmod(dir, 0o755), os.Setenv("TMPDIR", dir)) // for every test's own directory
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	command = filepath.Join(dir, "overlayfuse")
	if out, err := exec.Command("go", "build", "-race="+raceDetector(), "-o", command, "../../cmd/overlayfuse").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	code := m.Run()
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(mounts, []byte(" "+dir)) {
		fmt.Fprintln(os.Stderr, "mounts left behind", err)
		return 1
	}
	return code
}

// process is a running mount server.
type process struct {
	*exec.Cmd
	socket string
	client *Client
	log    *bytes.Buffer
	ended  chan struct{}
}

// startServer runs a server in dir, and ends it with the test.
func startServer(t *testing.T, dir string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(command, "serve", "--socket", dir+"/s", "--log-level", "debug"),
		socket: dir + "/s", log: &bytes.Buffer{}, ended: make(chan struct{})}
	p.Stderr = p.log
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.Wait() // its exit code is in ProcessState
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.kill(t)
		if t.Failed() {
			t.Logf("server:\n%s", p.log)
		}
	})
	ctx := testContext(t)
	for {
		c, err := Dial(ctx, p.socket)
		if err == nil {
			p.client = c
			return p
		}
		select {
		case <-p.ended:
			t.Fatalf("server ended:\n%s", p.log)
		case <-ctx.Done():
			t.Fatal(err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// kill ends the server as a crash would.
func (p *process) kill(t *testing.T) {
	t.Helper()
	if err := p.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	p.waitEnd(t)
}

func (p *process) waitEnd(t *testing.T) {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the server does not end")
	}
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// envIO is the io= of every mount, if it is set.
const envIO = "OVERLAYFUSE_TEST_IO"

// testSpec makes the directories of a mount below dir, with a file "lower" in the lower layer.
func testSpec(t *testing.T, dir, id string) Spec {
	t.Helper()
	d := filepath.Join(dir, id)
	for _, n := range []string{"l", "u", "w", "m"} {
		if err := os.MkdirAll(filepath.Join(d, n), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(d+"/l/lower", []byte("from "+id), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for unix.Unmount(d+"/m", unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
		}
	})
	s := Spec{ID: id, MountPoint: d + "/m", Lower: []string{d + "/l"}, Upper: d + "/u", Work: d + "/w"}
	if mode := os.Getenv(envIO); mode != "" {
		s.Options = []string{"io=" + mode}
	}
	return s
}

// mustMount mounts and looks that the layers are there.
func mustMount(t *testing.T, p *process, s Spec) {
	t.Helper()
	if err := p.client.Mount(testContext(t), s); err != nil {
		t.Fatalf("mount %s: %v", s.ID, err)
	}
	checkAlive(t, s)
}

func checkAlive(t *testing.T, s Spec) {
	t.Helper()
	got, err := os.ReadFile(s.MountPoint + "/lower")
	if err != nil || string(got) != "from "+s.ID {
		t.Fatalf("%s: %q, %v", s.MountPoint, got, err)
	}
}

func stateOf(t *testing.T, p *process, id string) State {
	t.Helper()
	infos, err := p.client.List(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range infos {
		if i.Spec.ID == id {
			return i.State
		}
	}
	return ""
}

func wantError(t *testing.T, err, want error, text string) {
	t.Helper()
	if !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v, want %v and %q", err, want, text)
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
