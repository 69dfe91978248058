package fstool

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// EnvAgent in the environment makes a test binary call Main.
const EnvAgent = "OVERLAYFUSE_FSTOOL"

// Reply is the answer to one request: the result, or the errno's name, or what was wrong with the request.
type Reply struct {
	Out   string
	Errno string
	Bad   string
}

// Agent is one fstool process, driven by a test.
type Agent struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
	timeout time.Duration
	mu      sync.Mutex // one request at a time
}

// Start runs binary as an fstool process in dir. cred nil: the caller's own.
func Start(binary, dir string, cred *syscall.Credential, timeout time.Duration) (*Agent, error) {
	cmd := exec.Command(binary)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), EnvAgent+"=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred, Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start fstool: %w", err)
	}
	return &Agent{cmd: cmd, in: in, out: bufio.NewReaderSize(out, 1<<20), timeout: timeout}, nil
}

// ErrTimeout is what Do returns when the process did not answer in time: it hangs in a system call.
var ErrTimeout = errors.New("fstool: no answer in time")

// Do makes one request and waits for its answer.
func (a *Agent) Do(words []string) (Reply, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	req, err := json.Marshal(words)
	if err != nil {
		return Reply{}, err
	}
	if _, err := a.in.Write(append(req, '\n')); err != nil {
		return Reply{}, fmt.Errorf("fstool: %w", err)
	}
	type answer struct {
		line []byte
		err  error
	}
	done := make(chan answer, 1)
	go func() {
		line, err := a.out.ReadBytes('\n')
		done <- answer{line, err}
	}()
	select {
	case got := <-done:
		if got.err != nil {
			return Reply{}, fmt.Errorf("fstool: %w", got.err)
		}
		var r Reply
		err := json.Unmarshal(got.line, &r)
		return r, err
	case <-time.After(a.timeout):
		return Reply{}, ErrTimeout
	}
}

// Stop ends the process; its descriptors and locks go with it.
func (a *Agent) Stop() error {
	_ = a.in.Close() // end of input ends it; if it is stuck, the kill below does
	done := make(chan error, 1)
	go func() { done <- a.cmd.Wait() }()
	select {
	case err := <-done:
		return err
	case <-time.After(a.timeout):
		_ = a.cmd.Process.Kill() // the process may just have ended
		return ErrTimeout
	}
}

// Main serves requests from stdin until it ends.
func Main() {
	syscall.Umask(0o022)
	p := newProcess()
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	out := json.NewEncoder(os.Stdout)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		var words []string
		if err := json.Unmarshal(line, &words); err != nil {
			os.Exit(2)
		}
		if err := out.Encode(p.serve(words)); err != nil {
			os.Exit(2)
		}
	}
}
