package transport

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// server is a process that serves mounts.
type server struct {
	t      *testing.T
	cmd    *exec.Cmd
	exited chan ending
	stderr bytes.Buffer
}

// ending is how a process ended.
type ending struct{ err error }

// self is this test binary in another role.
func self(role string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), "TRANSPORT_TEST="+role)
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	return cmd
}

// start starts a server process and gives the first line that it prints. It is killed at the end of the test if it lives.
func start(t *testing.T, cmd *exec.Cmd) (*server, string) {
	t.Helper()
	s := &server{t: t, cmd: cmd, exited: make(chan ending, 1)}
	cmd.Stderr = &s.stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, errRead := bufio.NewReader(out).ReadString('\n')
	go func() { s.exited <- ending{cmd.Wait()} }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		select {
		case <-s.exited: // it was killed, or the test has seen it
		case <-time.After(5 * time.Second):
		}
	})
	if errRead != nil {
		t.Fatalf("server: %v: %s", errRead, s.stderr.String())
	}
	return s, strings.TrimSpace(line)
}

// mounted serves n mounts in one other process.
func mounted(t *testing.T, n int) (*server, []string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount")
	}
	var dirs []string
	for range n {
		dirs = append(dirs, mountDir(t))
	}
	s, _ := start(t, self("serve", dirs...))
	return s, dirs
}

// ends waits for the server to exit of itself, without an error.
func (s *server) ends() {
	s.t.Helper()
	select {
	case e := <-s.exited:
		s.exited <- e
		if e.err != nil {
			s.t.Fatalf("server: %v: %s", e.err, s.stderr.String())
		}
	case <-time.After(10 * time.Second):
		s.t.Fatal("the server does not end")
	}
}

// status reads a number from the server's /proc/PID/status.
func (s *server) status(field string) int {
	s.t.Helper()
	return statusOf(s.t, fmt.Sprintf("/proc/%d", s.cmd.Process.Pid), field)
}

func statusOf(t *testing.T, dir, field string) int {
	t.Helper()
	text, err := os.ReadFile(dir + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.Atoi(strings.Fields(v)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %s in status", field)
	return 0
}

// within runs f and fails the test if it takes longer.
func within(t *testing.T, limit time.Duration, what string, f func()) {
	t.Helper()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f()
	}()
	select {
	case <-ended:
	case <-time.After(limit):
		t.Fatalf("%s takes longer than %v", what, limit)
	}
}

func stat(path string) (int64, error) {
	for {
		var st unix.Stat_t
		err := unix.Stat(path, &st)
		if err != unix.EINTR { //nolint:errorlint // Stat gives it as it is
			return st.Size, err
		}
	}
}
