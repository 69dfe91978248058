package snapshotter

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// logTail is how much of a failed mount server's log an error shows, in bytes.
const logTail = 1024

// startServer starts the mount server as a process that outlives this one: in a session of its own, in the root directory,
// and with its output in a file, because a pipe to us would break with us.
//
// The channel gets its end. Whether it answers is for the caller to find out.
func (m *MountServer) startServer() (<-chan error, error) {
	if len(m.Command) == 0 {
		return nil, errors.New("start the mount server: no command")
	}
	if err := os.MkdirAll(filepath.Dir(m.Socket), 0o700); err != nil {
		return nil, fmt.Errorf("start the mount server: %w", err)
	}
	output, err := os.OpenFile(m.logFile(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start the mount server: %w", err)
	}
	defer func() { _ = output.Close() }() // the child has its own
	cmd := exec.Command(m.Command[0], m.Command[1:]...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = output, output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// READY=1 is ours to say
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "NOTIFY_SOCKET=") })
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the mount server: %w", err)
	}
	m.Log.WithField("pid", cmd.Process.Pid).WithField("command", strings.Join(m.Command, " ")).Info("mount server started")
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		if err == nil {
			err = errors.New("exit status 0")
		}
		ended <- err
	}()
	return ended, nil
}

// logFile is where a mount server that we started writes.
func (m *MountServer) logFile() string { return m.Socket + ".log" }

// lastWords is the end of the mount server's log, for an error.
func (m *MountServer) lastWords() string {
	f, err := os.Open(m.logFile())
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }() // only read
	if st, err := f.Stat(); err == nil && st.Size() > logTail {
		if _, err := f.Seek(-logTail, io.SeekEnd); err != nil {
			return ""
		}
	}
	text, err := io.ReadAll(io.LimitReader(f, logTail))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
