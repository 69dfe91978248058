package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// reserveBytes stay free on the scratch file system: a child is killed before it takes the last of them.
const reserveBytes = 3 << 30

// ending is how a process ended.
type ending struct{ err error }

var errDeadline = fmt.Errorf("deadline: %w", unix.ETIMEDOUT)

// childAttributes keep a child from the terminal's SIGINT, for which it is this process that ends it, and from
// outliving this process.
func childAttributes() *unix.SysProcAttr {
	return &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
}

// child runs cmd to its end. If cmd outlives the deadline, it is killed, and m's server with it: a process that waits
// for a FUSE request that the server has already read cannot be killed otherwise.
//
// Errors: errDeadline; with what cmd wrote to its standard error.
func (b *bench) child(deadline time.Duration, m *mounted, cmd *exec.Cmd) error {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.SysProcAttr = childAttributes()
	if err := cmd.Start(); err != nil {
		return err
	}
	exited := make(chan ending, 1)
	go func() { exited <- ending{cmd.Wait()} }()
	ended, err := b.await(deadline, exited)
	switch {
	case err == nil:
		return nil
	case ended:
		return fmt.Errorf("%s: %w: %s", cmd.Args[0], err, strings.TrimSpace(stderr.String()))
	}
	_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // the group; it may have ended by now
	select {
	case <-exited:
	case <-time.After(2 * time.Second):
		if m != nil {
			m.kill()
		}
		<-exited
	}
	return err
}

// await returns how the child ended, or why not to wait for that any longer.
func (b *bench) await(deadline time.Duration, exited <-chan ending) (ended bool, err error) {
	late := time.After(deadline)
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case e := <-exited:
			return true, e.err
		case <-late:
			return false, errDeadline
		case <-b.ctx.Done():
			return false, b.ctx.Err()
		case <-tick.C:
			var fs unix.Statfs_t
			if err := unix.Statfs(b.base, &fs); err != nil {
				return false, err
			}
			if fs.Bavail*uint64(fs.Bsize) < reserveBytes {
				return false, fmt.Errorf("less than %d GiB free: %w", reserveBytes>>30, unix.ENOSPC)
			}
		}
	}
}

// worker runs one of this program's workers on m and returns what it measured.
func (b *bench) worker(deadline time.Duration, m *mounted, name string, args ...string) (values, error) {
	cmd := exec.Command("/proc/self/exe", append([]string{"-worker", name}, args...)...)
	// The runtime preempts goroutines with signals, and a signal interrupts FUSE requests.
	cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1")
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	if err := b.child(deadline, m, cmd); err != nil {
		return nil, err
	}
	var v values
	if err := json.Unmarshal(stdout.Bytes(), &v); err != nil {
		return nil, fmt.Errorf("worker %s: %w", name, err)
	}
	return v, nil
}

// timed runs cmd to its end and returns the seconds that it took.
func (b *bench) timed(deadline time.Duration, m *mounted, cmd *exec.Cmd) (float64, error) {
	start := time.Now()
	err := b.child(deadline, m, cmd)
	return time.Since(start).Seconds(), err
}
