package control

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

func TestSocketOfALiveServerIsRefused(t *testing.T) {
	dir := t.TempDir()
	p := startServer(t, dir)
	st, err := os.Stat(p.socket)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v, want mode 0600", st.Mode(), err)
	}
	out, err := exec.Command(command, "serve", "--socket", p.socket).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(string(out), "already served by pid "+strconv.Itoa(p.Process.Pid)) {
		t.Errorf("second server: %v, %s", err, out)
	}
	if _, err := p.client.Ping(testContext(t)); err != nil {
		t.Errorf("first server afterwards: %v", err)
	}
}

func TestBadSocketPathsAreRefused(t *testing.T) {
	long := "/tmp/" + strings.Repeat("x", 103)
	_, err := Listen(long)
	wantError(t, err, unix.ENAMETOOLONG, "108 bytes long, at most 107")
	_, err = Dial(testContext(t), long)
	wantError(t, err, unix.ENAMETOOLONG, "108 bytes long")
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Listen(file)
	wantError(t, err, unix.EEXIST, "something else has this name")
	if got, err := os.ReadFile(file); err != nil || string(got) != "precious" {
		t.Errorf("the file: %q, %v", got, err)
	}
	_, err = Dial(testContext(t), t.TempDir()+"/nobody")
	wantError(t, err, unix.ENOENT, "/nobody")
}

func TestOtherUsersAreRefused(t *testing.T) {
	dir := t.TempDir()
	p := startServer(t, dir)
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	copied := dir + "/dial"
	if err := os.WriteFile(copied, self, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{dir, dir + "/.."} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dial := func() string {
		cmd := exec.Command(copied)
		cmd.Env = []string{dialEnv + "=" + p.socket}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if out := dial(); !strings.Contains(out, "permission denied") {
		t.Errorf("socket of mode 0600: %s", out)
	}
	if err := os.Chmod(p.socket, 0o666); err != nil {
		t.Fatal(err)
	}
	if out := dial(); !strings.Contains(out, "user 65534 may not control this server") {
		t.Errorf("socket opened to all: %s", out)
	}
}

func TestStrangeRequestsAreAnswered(t *testing.T) {
	dir := t.TempDir()
	p := startServer(t, dir)
	frame := func(body string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	}
	for name, c := range map[string]struct {
		bytes []byte
		want  error
		text  string
	}{
		"another version":  {frame(`{"version":99,"op":"ping"}`), unix.EPROTONOSUPPORT, "protocol version 99, this server speaks 1"},
		"unknown request":  {frame(`{"version":1,"op":"dance"}`), unix.EOPNOTSUPP, `unknown request "dance"`},
		"no mount in it":   {frame(`{"version":1,"op":"mount"}`), unix.EINVAL, "mount without a mount"},
		"not JSON":         {frame(`{"version":`), unix.EPROTO, "decode"},
		"a huge length":    {[]byte{0xff, 0xff, 0xff, 0xff}, unix.EMSGSIZE, "at most 16777216"},
		"a field too many": {frame(`{"version":1,"op":"ping","future":[1]}`), nil, ""},
	} {
		conn, err := net.Dial("unix", p.socket)
		if err != nil {
			t.Fatal(err)
		}
		var r response
		if _, err = conn.Write(c.bytes); err == nil {
			err = readFrame(conn, &r)
		}
		switch {
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want == nil && r.Error != nil:
			t.Errorf("%s: %v", name, r.Error)
		case c.want != nil && (!errors.Is(r.Error, c.want) || !strings.Contains(r.Error.Text, c.text)):
			t.Errorf("%s: %v, want %v and %q", name, r.Error, c.want, c.text)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestStopUnmountsWhatIsIdleAndWaitsForTheRest(t *testing.T) {
	dir := t.TempDir()
	p := startServer(t, dir)
	ctx := testContext(t)
	idle, busy := testSpec(t, dir, "idle"), testSpec(t, dir, "busy")
	mustMount(t, p, idle)
	mustMount(t, p, busy)
	f, err := os.Open(busy.MountPoint + "/lower")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for stateOf(t, p, "idle") != "" && ctx.Err() == nil {
	}
	wantError(t, p.client.Mount(ctx, idle), unix.ESHUTDOWN, "the server is stopping")
	checkAlive(t, busy)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	_ = p.client.Unmount(ctx, "busy", false) // the server may have been the first, and may have ended
	p.waitEnd(t)
	if code := p.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	if _, err := os.Lstat(p.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket after the end: %v", err)
	}
}

func TestSecondSignalEndsTheServerAtOnce(t *testing.T) {
	dir := t.TempDir()
	p := startServer(t, dir)
	a := testSpec(t, dir, "a")
	mustMount(t, p, a)
	f, err := os.Open(a.MountPoint + "/lower")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }() // of a dead mount
	for range 2 {
		if err := p.Process.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		for ctx := testContext(t); ctx.Err() == nil; {
			if info, err := p.client.Ping(ctx); err != nil || info.Closing {
				break
			}
		}
	}
	p.waitEnd(t)
	if code := p.ProcessState.ExitCode(); code != 2 || !strings.Contains(p.log.String(), "ended with mounts in use") {
		t.Errorf("exit code %d, want 2 and the reason", code)
	}
}

func TestManyMountsAtOnceLeaveNothing(t *testing.T) {
	dir := t.TempDir()
	p := startServer(t, dir)
	ctx := testContext(t)
	descriptors := func() int {
		fds, err := os.ReadDir("/proc/" + strconv.Itoa(p.Process.Pid) + "/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds)
	}
	mustMount(t, p, testSpec(t, dir, "first")) // what the runtime opens once is open
	if err := p.client.Unmount(ctx, "first", false); err != nil {
		t.Fatal(err)
	}
	before := descriptors()

	var specs []Spec
	for i := range 20 {
		specs = append(specs, testSpec(t, dir, "m"+strconv.Itoa(i)))
	}
	var all errgroup.Group
	for _, s := range specs {
		for range 3 { // the same one at the same time, too
			all.Go(func() error { return p.client.Mount(ctx, s) })
		}
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, s := range specs {
		checkAlive(t, s)
	}
	for _, s := range specs {
		all.Go(func() error { return p.client.Unmount(ctx, s.ID, false) })
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	if infos, err := p.client.List(ctx); err != nil || len(infos) != 0 {
		t.Errorf("after the last unmount: %v, %v", infos, err)
	}
	var after int
	for after = descriptors(); after > before && ctx.Err() == nil; after = descriptors() {
	}
	if after > before {
		t.Errorf("%d descriptors after, %d before", after, before)
	}
}
