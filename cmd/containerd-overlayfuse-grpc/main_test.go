package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/overlayfuse/overlayfuse-snapshotter/config"
)

// testDir holds the binaries and everything that is mounted.
var testDir string

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests mount file systems and need root")
		return 1
	}
	dir, err := os.MkdirTemp("", "grpc-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	testDir = dir
	for _, command := range []string{"containerd-overlayfuse-grpc", "overlayfuse"} {
		out, err := exec.Command("go", "build", "-o", filepath.Join(dir, command),
			"github.com/overlayfuse/overlayfuse-snapshotter/cmd/"+command).CombinedOutput()
		if err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n%s", command, err, out)
			return 1
		}
	}
	code := m.Run()
	left, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for _, l := range left {
		fmt.Fprintln(os.Stderr, "left mounted:", l.Mountpoint)
		_ = unix.Unmount(l.Mountpoint, unix.MNT_DETACH) // the failure is reported already
		code = max(code, 1)
	}
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// site is a directory with the paths of a daemon and its mount server.
type site struct {
	t                                 *testing.T
	dir, root, address, control, file string
}

func newSite(t *testing.T, more string) *site {
	t.Helper()
	dir, err := os.MkdirTemp(testDir, "s")
	require.NoError(t, err)
	s := &site{t: t, dir: dir, root: dir + "/root", address: dir + "/run/grpc.sock", control: dir + "/run/control.sock", file: dir + "/config.toml"}
	text := fmt.Sprintf("root = %q\naddress = %q\n%s\n[server]\nsocket = %q\ncommand = [%q, \"serve\", \"--socket\", %q]\n",
		s.root, s.address, more, s.control, testDir+"/overlayfuse", s.control)
	require.NoError(t, os.WriteFile(s.file, []byte(text), 0o600))
	t.Cleanup(func() {
		left, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
		require.NoError(t, err)
		for _, l := range left {
			require.NoError(t, unix.Unmount(l.Mountpoint, unix.MNT_DETACH))
		}
		s.stopMountServer()
	})
	return s
}

// stopMountServer ends the mount server that the daemon started, if it did.
func (s *site) stopMountServer() {
	pid := s.mountServerPID()
	if pid == 0 {
		return
	}
	require.NoError(s.t, unix.Kill(pid, unix.SIGKILL))
	require.Eventually(s.t, func() bool { return s.mountServerPID() == 0 }, 10*time.Second, 10*time.Millisecond)
}

// mountServerPID finds the process by its command line, which names our own control socket; 0 if there is none.
func (s *site) mountServerPID() int {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(s.t, err)
	for _, d := range dirs {
		line, err := os.ReadFile(d + "/cmdline")
		if err != nil || !bytes.Contains(line, []byte("\x00"+s.control+"\x00")) {
			continue
		}
		var pid int
		_, err = fmt.Sscanf(d, "/proc/%d", &pid)
		require.NoError(s.t, err)
		return pid
	}
	return 0
}

// daemon is a running containerd-overlayfuse-grpc.
type daemon struct {
	*site
	cmd    *exec.Cmd
	lines  chan string // its log
	exited chan struct{}
	once   sync.Once
}

// start runs the daemon until it says that it is ready, by sd_notify.
func (s *site) start(args ...string) *daemon {
	s.t.Helper()
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.dir + "/notify", Net: "unixgram"})
	require.NoError(s.t, err)
	defer func() {
		require.NoError(s.t, ready.Close())
		require.NoError(s.t, os.Remove(s.dir+"/notify"))
	}()
	d := s.command(append([]string{"--config", s.file}, args...), "NOTIFY_SOCKET="+s.dir+"/notify")
	require.NoError(s.t, ready.SetReadDeadline(time.Now().Add(20*time.Second)))
	buf := make([]byte, 256)
	n, err := ready.Read(buf)
	require.NoError(s.t, err)
	require.Equal(s.t, "READY=1", string(buf[:n]))
	return d
}

func (s *site) command(args []string, env ...string) *daemon {
	s.t.Helper()
	cmd := exec.Command(testDir+"/containerd-overlayfuse-grpc", args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.StderrPipe()
	require.NoError(s.t, err)
	require.NoError(s.t, cmd.Start())
	d := &daemon{site: s, cmd: cmd, lines: make(chan string, 10000), exited: make(chan struct{})}
	go func() {
		r := bufio.NewScanner(out)
		for r.Scan() {
			d.lines <- r.Text()
		}
		close(d.lines)
		_ = cmd.Wait() // the exit code is asked for by who wants it
		close(d.exited)
	}()
	s.t.Cleanup(func() { d.signal(unix.SIGKILL) })
	return d
}

// signal sends one signal and waits for the end. It returns the exit code.
func (d *daemon) signal(sig unix.Signal) int {
	d.once.Do(func() { _ = d.cmd.Process.Signal(sig) }) // it may have ended by itself
	return d.wait()
}

func (d *daemon) wait() int {
	select {
	case <-d.exited:
	case <-time.After(30 * time.Second):
		d.t.Error("the daemon does not end")
		_ = d.cmd.Process.Kill() // reported above
		<-d.exited
	}
	return d.cmd.ProcessState.ExitCode()
}

// log is everything that it said; it has ended.
func (d *daemon) log() string {
	var all []string
	for l := range d.lines {
		all = append(all, l)
	}
	return strings.Join(all, "\n")
}

// client is containerd's side of the socket.
func (d *daemon) client() (context.Context, snapshots.Snapshotter) {
	d.t.Helper()
	conn, err := grpc.NewClient("unix://"+d.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(d.t, err)
	d.t.Cleanup(func() { require.NoError(d.t, conn.Close()) })
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), "test"), time.Minute)
	d.t.Cleanup(cancel)
	return ctx, proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "overlayfuse")
}

func TestConfigDefaultIsAFileThatSaysTheDefaults(t *testing.T) {
	var out, errs bytes.Buffer
	require.Equal(t, exitOK, run(t.Context(), []string{"config", "default"}, &out, &errs))
	c, err := config.Parse("-", out.Bytes())
	require.NoError(t, err)
	require.Equal(t, config.Default(), c)
}

func TestConfigCheck(t *testing.T) {
	good, bad := filepath.Join(t.TempDir(), "good"), filepath.Join(t.TempDir(), "bad")
	require.NoError(t, os.WriteFile(good, []byte("root = \"/x\"\n"), 0o600))
	require.NoError(t, os.WriteFile(bad, []byte("\nrot = \"/x\"\n"), 0o600))
	for _, args := range [][]string{{"config", "check"}, {"config", "check", "--config"}} {
		var out, errs bytes.Buffer
		require.Equal(t, exitOK, run(t.Context(), append(args, good), &out, &errs))
		require.Equal(t, good+": ok\n", out.String())
		require.Equal(t, exitUsage, run(t.Context(), append(args, bad), &out, &errs))
		require.Contains(t, errs.String(), bad+":2: rot: unknown key")
	}
}

func TestWrongCommandLines(t *testing.T) {
	for text, args := range map[string][]string{
		"unknown command":       {"start"},
		"not defined":           {"--foo"},
		"usage:":                {"config"},
		"108 bytes, at most":    {"--address", "/" + strings.Repeat("s", 107)},
		"--root: path":          {"--root", "relative"},
		"not a log level":       {"--log-level", "loud"},
		"no such file":          {"--config", "/nonexistent/c.toml"},
		"address and server":    {"--address", config.Default().Server.Socket.String()},
		"mount options cannot ": {"--root", "/a:b"},
	} {
		var errs bytes.Buffer
		require.Equal(t, exitUsage, run(t.Context(), args, io.Discard, &errs), "%v", args)
		require.Contains(t, errs.String(), text)
	}
}

func TestVersion(t *testing.T) {
	var out bytes.Buffer
	require.Equal(t, exitOK, run(t.Context(), []string{"--version"}, &out, io.Discard))
	require.Regexp(t, `^containerd-overlayfuse-grpc \S+ go1\.`, out.String())
}

// TestServesAndStops: the socket is private, a stale one is replaced, and SIGTERM ends the daemon cleanly.
func TestServesAndStops(t *testing.T) {
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT} {
		s := newSite(t, "[log]\nformat = \"json\"\nlevel = \"debug\"")
		stale, err := net.Listen("unix", s.dir+"/stale")
		require.NoError(t, err)
		listener, ok := stale.(*net.UnixListener)
		require.True(t, ok)
		listener.SetUnlinkOnClose(false)
		require.NoError(t, stale.Close())
		require.NoError(t, os.Mkdir(filepath.Dir(s.address), 0o700))
		require.NoError(t, os.Rename(s.dir+"/stale", s.address))

		d := s.start()
		st, err := os.Stat(s.address)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), st.Mode().Perm())
		ctx, sn := d.client()
		_, err = sn.Prepare(ctx, "extract-1 a", "")
		require.NoError(t, err)
		require.NoError(t, sn.Commit(ctx, "a", "extract-1 a"))
		require.Zero(t, d.signal(sig))
		require.NoFileExists(t, s.address)
		for _, line := range strings.Split(d.log(), "\n") {
			var fields map[string]any
			require.NoError(t, json.Unmarshal([]byte(line), &fields), "%s", line)
			require.Contains(t, fields, "level")
			require.Contains(t, fields, "msg")
		}
	}
}

func TestSecondDaemon(t *testing.T) {
	s := newSite(t, "")
	d := s.start()
	second := s.command([]string{"--config", s.file, "--address", s.dir + "/run/second.sock"})
	require.Equal(t, exitFailure, second.wait())
	require.Contains(t, second.log(), fmt.Sprintf("in use by process %d", d.cmd.Process.Pid))

	other := s.command([]string{"--config", s.file, "--root", s.dir + "/other"})
	require.Equal(t, exitFailure, other.wait())
	require.Contains(t, other.log(), "somebody listens there")
	require.FileExists(t, s.address)
	_, sn := d.client()
	_, err := sn.Prepare(namespaces.WithNamespace(t.Context(), "test"), "extract-1 a", "")
	require.NoError(t, err, "the first goes on")
}

func TestAddressThatIsNoSocket(t *testing.T) {
	s := newSite(t, "")
	require.NoError(t, os.Mkdir(filepath.Dir(s.address), 0o700))
	require.NoError(t, os.WriteFile(s.address, []byte("precious"), 0o600))
	d := s.command([]string{"--config", s.file})
	require.Equal(t, exitFailure, d.wait())
	require.Contains(t, d.log(), "no socket")
	text, err := os.ReadFile(s.address)
	require.NoError(t, err)
	require.Equal(t, "precious", string(text))
}

// TestKilledDaemon: a container's mount works while no daemon lives, through stop, kill and restart, and the new daemon
// finds it. The mount server was started by the first daemon.
func TestKilledDaemon(t *testing.T) {
	s := newSite(t, "")
	d := s.start()
	ctx, sn := d.client()
	mounts, err := sn.Prepare(ctx, "extract-1 base", "")
	require.NoError(t, err)
	upper := ""
	for _, o := range mounts[0].Options {
		if u, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = u
		}
	}
	require.NoError(t, os.WriteFile(upper+"/lower", []byte("from the image"), 0o644))
	require.NoError(t, sn.Commit(ctx, "base", "extract-1 base"))
	mounts, err = sn.Prepare(ctx, "c", "base")
	require.NoError(t, err)
	rootfs := s.dir + "/rootfs"
	require.NoError(t, os.Mkdir(rootfs, 0o755))
	require.NoError(t, mount.All(mounts, rootfs))
	log, err := os.OpenFile(rootfs+"/log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	require.NoError(t, err)

	server := s.mountServerPID()
	require.NotZero(t, server, "the daemon started the mount server")
	for i, sig := range []unix.Signal{unix.SIGKILL, unix.SIGTERM, unix.SIGINT} {
		d.signal(sig)
		text, err := os.ReadFile(rootfs + "/lower")
		require.NoError(t, err, "without a daemon")
		require.Equal(t, "from the image", string(text))
		_, err = fmt.Fprintf(log, "%d", i)
		require.NoError(t, err)

		d = s.start()
		require.Equal(t, server, s.mountServerPID(), "the mount server lives on")
		_, err = fmt.Fprint(log, "+")
		require.NoError(t, err)
		ctx, sn = d.client()
		again, err := sn.Mounts(ctx, "c")
		require.NoError(t, err)
		require.Equal(t, mounts, again)
		second := fmt.Sprintf("%s/again%d", s.dir, i)
		require.NoError(t, os.Mkdir(second, 0o755))
		require.NoError(t, mount.All(again, second))
		text, err = os.ReadFile(second + "/log")
		require.NoError(t, err)
		require.Equal(t, "0+1+2+"[:2*i+2], string(text), "it is the same mount")
		require.NoError(t, unix.Unmount(second, 0))
	}
	require.NoError(t, log.Close())
	require.NoError(t, unix.Unmount(rootfs, 0))
	require.NoError(t, sn.Commit(ctx, "committed", "c"))
	mounts, err = sn.View(ctx, "v", "committed")
	require.NoError(t, err)
	require.NoError(t, mount.All(mounts, rootfs))
	text, err := os.ReadFile(rootfs + "/log")
	require.NoError(t, err)
	require.Equal(t, "0+1+2+", string(text))
}

// TestWithoutAMountServer: autostart is off and nothing listens: the error names the socket, images can still be unpacked.
func TestWithoutAMountServer(t *testing.T) {
	s := newSite(t, "")
	text, err := os.ReadFile(s.file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(s.file, append(text, "autostart = false\n"...), 0o600))
	d := s.start()
	ctx, sn := d.client()
	_, err = sn.Prepare(ctx, "extract-1 base", "")
	require.NoError(t, err)
	require.NoError(t, sn.Commit(ctx, "base", "extract-1 base"))
	_, err = sn.Prepare(ctx, "c", "base")
	require.ErrorContains(t, err, s.control)
	_, err = sn.Stat(ctx, "c")
	require.Error(t, err, "the failed Prepare left nothing")
	cleaner, ok := sn.(snapshots.Cleaner)
	require.True(t, ok)
	require.NoError(t, cleaner.Cleanup(ctx))
}

// TestMountServerThatCannotStart: its last words are in the error.
func TestMountServerThatCannotStart(t *testing.T) {
	s := newSite(t, "")
	text, err := os.ReadFile(s.file)
	require.NoError(t, err)
	text = bytes.Replace(text, []byte(testDir+"/overlayfuse"), []byte("/bin/ls"), 1)
	require.NoError(t, os.WriteFile(s.file, text, 0o600))
	d := s.start()
	ctx, sn := d.client()
	_, err = sn.Prepare(ctx, "extract-1 base", "")
	require.NoError(t, err)
	require.NoError(t, sn.Commit(ctx, "base", "extract-1 base"))
	_, err = sn.Prepare(ctx, "c", "base")
	require.ErrorContains(t, err, "the started mount server ended: exit status 2")
	require.ErrorContains(t, err, "ls:")
}
