package snapshotter

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/moby/sys/mountinfo"
	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/control"
)

// testDir is below which every test mounts.
var testDir string

// TestMain fails the run on a mount that a test left.
func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if len(os.Args) > 1 && os.Args[1] == control.ChildCommand {
		return control.Child(os.Args[2:])
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests mount file systems and need root")
		return 1
	}
	syscall.Umask(0o022)
	dir, err := os.MkdirTemp("", "snapshotter-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	testDir = dir
	if err := os.Setenv("TMPDIR", dir); err != nil { // containerd's test suite makes its directories there
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if out, err := exec.Command("go", "build", "-o", serverBinary(), "github.com/overlayfuse/overlayfuse-snapshotter/cmd/overlayfuse").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the mount server: %v\n%s", err, out)
		return 1
	}
	code := m.Run()
	left, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for _, l := range left {
		fmt.Fprintln(os.Stderr, "left mounted:", l.Mountpoint, l.FSType, l.VFSOptions)
		_ = syscall.Unmount(l.Mountpoint, syscall.MNT_DETACH) // the failure is reported already
		code = max(code, 1)
	}
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// bench is a snapshotter under test, and a directory to mount in.
type bench struct {
	t    *testing.T
	ctx  context.Context
	root string
	work string
	cfg  Config
	k    *faultyMounter
	s    *Snapshotter
	// server is the mount server of a bench on FUSE; nil on the oracle.
	server *testServer
}

// onBoth runs a test on the kernel's overlayfs, the oracle, and then on FUSE.
func onBoth(t *testing.T, test func(t *testing.T, b *bench)) {
	t.Run("kernel", func(t *testing.T) { test(t, newBench(t, newKernelMounter(), nil)) })
	t.Run("fuse", func(t *testing.T) { test(t, fuseBench(t)) })
}

// fuseBench is a bench on a mount server of its own.
func fuseBench(t *testing.T) *bench {
	t.Helper()
	server := startTestServer(t)
	return newBench(t, server.mounter(t), server)
}

// envIO is the io= of every mount of overlayfuse, if it is set.
const envIO = "OVERLAYFUSE_TEST_IO"

// newBench opens a snapshotter. Everything is unmounted in the end.
func newBench(t *testing.T, m Mounter, server *testServer) *bench {
	t.Helper()
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), "test"), 2*time.Minute)
	dir, err := os.MkdirTemp(testDir, "b")
	require.NoError(t, err)
	b := &bench{t: t, ctx: ctx, root: filepath.Join(dir, "root"), work: filepath.Join(dir, "work"), k: &faultyMounter{Mounter: m}, server: server}
	require.NoError(t, os.Mkdir(b.work, 0o755))
	b.cfg = Config{Root: b.root, Mounter: b.k, Log: testLog(t)}
	if mode := os.Getenv(envIO); mode != "" && server != nil {
		b.cfg.MountOptions = []string{"io=" + mode}
	}
	t.Cleanup(func() {
		if b.s != nil {
			require.NoError(t, b.s.Close())
		}
		unmountBelow(t, dir)
		cancel()
	})
	b.open()
	return b
}

// reboot is a machine that starts again: no mount, no mount server, no daemon; then the latter two.
func (b *bench) reboot() {
	b.t.Helper()
	require.NoError(b.t, b.s.Close())
	unmountBelow(b.t, filepath.Dir(b.root))
	if b.server != nil {
		b.another()
	} else {
		b.k.Mounter = newKernelMounter()
	}
	b.open()
}

// unmountBelow takes away what a test left mounted in its directory; tests that fail leave some.
func unmountBelow(t *testing.T, dir string) {
	left, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	require.NoError(t, err)
	for i := len(left) - 1; i >= 0; i-- {
		require.NoError(t, detach(left[i].Mountpoint))
	}
}

func testLog(t *testing.T) *logrus.Entry {
	l := logrus.New()
	l.SetOutput(t.Output())
	return logrus.NewEntry(l)
}

func (b *bench) open() {
	b.t.Helper()
	s, err := New(b.ctx, b.cfg)
	require.NoError(b.t, err)
	b.s = s
}

// reopen is a daemon that stops and one that starts.
func (b *bench) reopen() {
	b.t.Helper()
	require.NoError(b.t, b.s.Close())
	b.open()
}

// layer commits a layer that fill makes below dir, as an image's layer is unpacked: through the named upper directory.
// The layer must be the same when the test ends.
func (b *bench) layer(name, parent string, fill func(dir string)) {
	b.t.Helper()
	b.unsealedLayer(name, parent, fill)
	b.seal(name)
}

// unsealedLayer is a layer that the test will change behind the snapshotter's back.
func (b *bench) unsealedLayer(name, parent string, fill func(dir string)) {
	b.t.Helper()
	key := "test/7/extract-1 " + name
	mounts, err := b.s.Prepare(b.ctx, key, parent)
	require.NoError(b.t, err)
	require.Len(b.t, mounts, 1)
	upper := ""
	for _, o := range mounts[0].Options {
		if u, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = u
		}
	}
	require.NotEmpty(b.t, upper, "an extraction names its upper directory")
	if fill != nil {
		fill(upper)
	}
	require.NoError(b.t, b.s.Commit(b.ctx, name, key))
}

// mounted mounts what the snapshotter said and gives the directory. It is unmounted before the test ends.
func (b *bench) mounted(mounts []mount.Mount) string {
	b.t.Helper()
	dir, err := os.MkdirTemp(b.work, "m")
	require.NoError(b.t, err)
	require.NoError(b.t, mount.All(mounts, dir))
	b.t.Cleanup(func() { require.NoError(b.t, detach(dir)) })
	return dir
}

// container prepares a snapshot and mounts it.
func (b *bench) container(key, parent string) string {
	b.t.Helper()
	mounts, err := b.s.Prepare(b.ctx, key, parent)
	require.NoError(b.t, err)
	return b.mounted(mounts)
}

func (b *bench) view(key, parent string) string {
	b.t.Helper()
	mounts, err := b.s.View(b.ctx, key, parent)
	require.NoError(b.t, err)
	return b.mounted(mounts)
}

// remove removes a snapshot and waits for its unmount.
func (b *bench) remove(key string) {
	b.t.Helper()
	require.NoError(b.t, b.s.Remove(b.ctx, key))
	b.s.background.Wait()
}

func (b *bench) id(key string) string {
	b.t.Helper()
	r, err := b.s.read(b.ctx, key)
	require.NoError(b.t, err)
	return r.id
}

func (b *bench) kind(key string) snapshots.Kind {
	b.t.Helper()
	info, err := b.s.Stat(b.ctx, key)
	require.NoError(b.t, err)
	return info.Kind
}

func write(t *testing.T, path, text string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
}

func requireFile(t *testing.T, path, text string) {
	t.Helper()
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, text, string(got))
}

// names lists a directory.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	all := []string{}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}
