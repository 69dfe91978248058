package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"golang.org/x/sys/unix"
)

// TestSuiteThroughTheDaemon is containerd's suite as containerd would run it: each case on a daemon and a mount server of its
// own, in their own processes, over the socket.
func TestSuiteThroughTheDaemon(t *testing.T) {
	t.Setenv("TMPDIR", testDir) // the suite makes its directories there
	testsuite.SnapshotterSuite(t, "overlayfuse", func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		d := newSite(t, "").start("--root", root)
		_, sn := d.client()
		return sn, func() error {
			d.signal(unix.SIGTERM)
			entries, err := os.ReadDir(filepath.Join(root, "mounts"))
			if err != nil {
				return err
			}
			for _, e := range entries {
				if err := unix.Unmount(filepath.Join(root, "mounts", e.Name()), unix.MNT_DETACH); err != nil {
					return err
				}
			}
			d.stopMountServer()
			return nil
		}, nil
	})
}
