package snapshotter

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// serverBinary is the mount server under test, built by TestMain.
func serverBinary() string { return filepath.Join(testDir, "overlayfuse") }

// testServer is a mount server, in a process of its own: a process must never use a mount that it serves.
type testServer struct {
	socket string
	cmd    *exec.Cmd
	ended  chan struct{}
}

// startTestServer runs a mount server until the test ends. Whatever it still serves then is gone.
func startTestServer(t *testing.T) *testServer {
	t.Helper()
	dir, err := os.MkdirTemp(testDir, "s")
	require.NoError(t, err)
	s := &testServer{socket: dir + "/control.sock", ended: make(chan struct{})}
	s.cmd = exec.Command(serverBinary(), "serve", "--socket", s.socket)
	s.cmd.Stdout, s.cmd.Stderr = t.Output(), t.Output()
	require.NoError(t, s.cmd.Start())
	go func() {
		_ = s.cmd.Wait() // it is killed in the end
		close(s.ended)
	}()
	t.Cleanup(func() { s.kill(t) })
	require.Eventually(t, func() bool {
		_, err := s.mounter(t).Mounted(t.Context())
		return err == nil
	}, 10*time.Second, 10*time.Millisecond, "the mount server answers")
	return s
}

func (s *testServer) kill(t *testing.T) {
	t.Helper()
	select {
	case <-s.ended:
		return
	default:
	}
	require.NoError(t, s.cmd.Process.Signal(unix.SIGKILL))
	select {
	case <-s.ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the killed mount server does not end")
	}
}

func (s *testServer) mounter(t *testing.T) *MountServer {
	return &MountServer{Socket: s.socket, Log: testLog(t)}
}
