package snapshotter

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/stretchr/testify/require"
)

// suiteName has none of the names for which the suite makes exemptions.
const suiteName = "overlayfuse"

// suiteOn is a factory for containerd's suite. In the end nothing may be mounted but what snapshots hold.
func suiteOn(t *testing.T, m Mounter, change func(*Config)) testsuite.SnapshotterFunc {
	return func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		cfg := Config{Root: root, Mounter: m, Log: testLog(t)}
		if change != nil {
			change(&cfg)
		}
		s, err := New(ctx, cfg)
		if err != nil {
			return nil, nil, err
		}
		return s, func() error {
			entries, err := os.ReadDir(filepath.Join(root, "mounts"))
			if err != nil {
				return err
			}
			for _, e := range entries {
				point := filepath.Join(root, "mounts", e.Name())
				if err := m.Unmount(ctx, point); err != nil {
					return err
				}
			}
			return s.Close()
		}, nil
	}
}

// TestSuiteOnKernelOverlay: the oracle, with redirect_dir=on, passes all 21 cases.
func TestSuiteOnKernelOverlay(t *testing.T) {
	testsuite.SnapshotterSuite(t, suiteName, suiteOn(t, newKernelMounter(), nil))
}

// TestSuiteOnFUSE: ours, all 21 cases.
func TestSuiteOnFUSE(t *testing.T) {
	testsuite.SnapshotterSuite(t, suiteName, suiteOn(t, startTestServer(t).mounter(t), nil))
}

// TestSuiteOnFUSEWithFUSEViews: also with every view on FUSE.
func TestSuiteOnFUSEWithFUSEViews(t *testing.T) {
	testsuite.SnapshotterSuite(t, suiteName, suiteOn(t, startTestServer(t).mounter(t), func(c *Config) { c.ViewsFUSE = true }))
}

// TestSuiteOnFUSEKeepingMetacopy: also with layers whose files have their data below.
func TestSuiteOnFUSEKeepingMetacopy(t *testing.T) {
	testsuite.SnapshotterSuite(t, suiteName, suiteOn(t, startTestServer(t).mounter(t), func(c *Config) { c.KeepMetacopy = true }))
}

// TestOracleFailsRenameWithoutRedirects: the one case that the kernel's overlayfs fails as it is usually mounted is "Rename",
// for the rename of a directory of a lower layer; the suite exempts "overlayfs" from it by that name.
func TestOracleFailsRenameWithoutRedirects(t *testing.T) {
	k := newKernelMounter()
	k.redirectDir = "nofollow"
	b := newBench(t, k, nil)
	b.layer("base", "", func(dir string) { require.NoError(t, os.Mkdir(filepath.Join(dir, "dir1"), 0o755)) })
	dir := b.container("c", "base")
	err := os.Rename(filepath.Join(dir, "dir1"), filepath.Join(dir, "dir2"))
	require.ErrorIs(t, err, syscall.EXDEV)
}
