package snapshotter

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func run1(t *testing.T, name string, args ...string) {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s: %s", name, out)
}

func TestRootPathThatMountOptionsCannotCarry(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"a:b", "a,b", `a\b`} {
		_, err := New(t.Context(), Config{Root: filepath.Join(dir, name), Mounter: newKernelMounter()})
		require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
	}
	_, err := New(t.Context(), Config{Root: "relative", Mounter: newKernelMounter()})
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
	_, err = New(t.Context(), Config{Root: dir + "/../x", Mounter: newKernelMounter()})
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
}

// TestRootWithASpace: mountinfo escapes it, mount options do not.
func TestRootWithASpace(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		require.NoError(t, b.s.Close())
		b.root = filepath.Join(filepath.Dir(b.root), "a root")
		b.cfg.Root = b.root
		b.open()
		b.layer("one", "", func(dir string) { write(t, dir+"/f", "1") })
		b.layer("two", "one", func(dir string) { write(t, dir+"/g", "2") })
		c := b.container("c", "two")
		write(t, c+"/h", "3")
		table, err := readMountTable()
		require.NoError(t, err)
		require.Equal(t, b.server != nil, table.hasFUSE(b.s.root.mounts()))
		v := b.view("v", "two")
		b.remove("v")
		b.remove("c")
		b.remove("two")
		require.NoError(t, b.s.Cleanup(b.ctx))
		requireFile(t, v+"/g", "2")
		requireFile(t, c+"/h", "3")
		require.NoError(t, detach(v))
		require.NoError(t, detach(c))
		b.requireClean()
	})
}

// TestRootOnAFileSystemThatCannotHoldLayers: ramfs has no extended attributes; overlayfs takes no whiteouts.
func TestRootOnAFileSystemThatCannotHoldLayers(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		dir := filepath.Join(b.work, "ramfs")
		require.NoError(t, os.Mkdir(dir, 0o755))
		require.NoError(t, (&mount.Mount{Type: "ramfs", Source: "ramfs"}).Mount(dir))
		t.Cleanup(func() { require.NoError(t, detach(dir)) })
		cfg := b.cfg
		cfg.Root = dir + "/root"
		_, err := New(b.ctx, cfg)
		require.True(t, errdefs.IsNotImplemented(err), "%v", err)
		require.ErrorContains(t, err, "no trusted extended attributes")

		b.layer("one", "", nil)
		cfg.Root = b.container("c", "one") + "/root"
		_, err = New(b.ctx, cfg)
		require.True(t, errdefs.IsNotImplemented(err), "%v", err)
		require.ErrorContains(t, err, "cannot hold whiteouts")
	})
}

func TestRootDirectoriesArePrivate(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		for _, dir := range []string{b.root, b.s.root.snapshots(), b.s.root.mounts(), b.s.root.empty()} {
			st, err := os.Stat(dir)
			require.NoError(t, err)
			require.Equal(t, os.FileMode(0o700), st.Mode().Perm(), dir)
		}
	})
}
