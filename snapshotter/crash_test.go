package snapshotter

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

// The tests of this file make what a crash leaves between two steps, open the root again, and check that it is found and
// collected and that nothing else is touched. The steps are those of doc.go, "Crashes".

var errCut = errors.New("cut off")

// requireClean checks that after Cleanup only what the metadata knows is on disk. A mount server notices the end of a mount
// that was in use a moment later than its user.
func (b *bench) requireClean() {
	b.t.Helper()
	var litter []string
	require.Eventually(b.t, func() bool {
		require.NoError(b.t, b.s.Cleanup(b.ctx))
		litter = b.litter()
		return len(litter) == 0
	}, 20*time.Second, 20*time.Millisecond, "%v", &litter)
}

// litter is what is on disk and belongs to no snapshot, or is missing.
func (b *bench) litter() (litter []string) {
	b.t.Helper()
	known := make(map[string]snapshots.Kind)
	require.NoError(b.t, b.s.store.WithTransaction(b.ctx, false, func(ctx context.Context) (err error) {
		known, err = kinds(ctx)
		return err
	}))
	for _, name := range names(b.t, b.s.root.snapshots()) {
		kind, ok := known[name]
		_, err := os.Lstat(b.s.root.work(name))
		if !ok || (kind == snapshots.KindActive) != (err == nil) {
			litter = append(litter, "snapshots/"+name)
		}
	}
	for _, name := range names(b.t, b.s.root.mounts()) {
		if kind, ok := known[name]; !ok || kind == snapshots.KindCommitted {
			litter = append(litter, "mounts/"+name)
		}
	}
	for id := range known {
		if _, err := os.Lstat(b.s.root.layer(id)); err != nil {
			litter = append(litter, err.Error())
		}
	}
	return litter
}

// withImage has two layers, a container that wrote, and a view.
func withImage(t *testing.T, b *bench) (container string) {
	b.layer("one", "", func(dir string) { write(t, dir+"/etc/one", "1") })
	b.layer("two", "one", func(dir string) { write(t, dir+"/etc/two", "2") })
	container = b.container("c", "two")
	write(t, container+"/etc/mine", "3")
	b.view("v", "two")
	return container
}

func (b *bench) requireIntact(container string) {
	b.t.Helper()
	requireFile(b.t, container+"/etc/one", "1")
	requireFile(b.t, container+"/etc/two", "2")
	requireFile(b.t, container+"/etc/mine", "3")
	write(b.t, container+"/etc/later", "4")
	require.Equal(b.t, snapshots.KindActive, b.kind("c"))
	mounts, err := b.s.Mounts(b.ctx, "c")
	require.NoError(b.t, err)
	again := b.mounted(mounts)
	requireFile(b.t, again+"/etc/mine", "3")
	requireFile(b.t, again+"/etc/later", "4")
	require.NoError(b.t, os.Remove(again+"/etc/later"))
}

func TestCrashWhileASnapshotDirectoryIsMade(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		c := withImage(t, b)
		write(t, b.root+"/snapshots/new-123/fs/half", "x")
		b.reopen()
		b.requireClean()
		b.requireIntact(c)
	})
}

// TestCrashBeforeTheTransactionOfPrepare: the directory has its name, the id was never given: it is given again.
func TestCrashBeforeTheTransactionOfPrepare(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		c := withImage(t, b)
		last, err := strconv.Atoi(b.id("v"))
		require.NoError(t, err)
		next := strconv.Itoa(last + 1)
		write(t, b.root+"/snapshots/"+next+"/fs/half", "x")
		require.NoError(t, os.Mkdir(b.root+"/snapshots/"+next+"/work", 0o700))
		b.reopen()

		dir := b.container("next", "two")
		require.Equal(t, next, b.id("next"), "the test made the directory that the next snapshot gets")
		require.NoFileExists(t, dir+"/half")
		b.requireClean()
		requireFile(t, dir+"/etc/two", "2")
		b.requireIntact(c)
	})
}

// TestCrashCleanupDoesNotRaceTheSameID: what Cleanup found under an id stays garbage although the id is given again.
func TestCrashCleanupDoesNotRaceTheSameID(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		withImage(t, b)
		last, err := strconv.Atoi(b.id("v"))
		require.NoError(t, err)
		next := strconv.Itoa(last + 1)
		write(t, b.root+"/snapshots/"+next+"/fs/half", "x")
		var garbage []string
		require.NoError(t, b.s.store.WithTransaction(b.ctx, true, func(ctx context.Context) (err error) {
			garbage, err = b.s.setGarbageAside(ctx, nil)
			return err
		}))
		dir := b.container("next", "two")
		require.Equal(t, next, b.id("next"))
		require.Len(t, garbage, 1)
		for _, g := range garbage {
			require.NoError(t, os.RemoveAll(g))
		}
		requireFile(t, dir+"/etc/two", "2")
		require.DirExists(t, b.s.root.layer(next))
	})
}

func TestCrashBetweenTransactionAndMountOfPrepare(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		c := withImage(t, b)
		require.NoError(t, b.s.store.WithTransaction(b.ctx, true, func(ctx context.Context) error {
			return b.s.createLocked(ctx, snapshots.KindActive, "unmounted", "two", nil)
		}))
		b.reopen()
		b.requireClean()
		mounts, err := b.s.Mounts(b.ctx, "unmounted")
		require.NoError(t, err)
		requireFile(t, b.mounted(mounts)+"/etc/two", "2")
		b.requireIntact(c)
	})
}

func TestCrashBetweenMountPointAndMount(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		c := withImage(t, b)
		require.NoError(t, os.Mkdir(b.root+"/mounts/999", 0o700))
		b.reopen()
		b.requireClean()
		require.NoDirExists(t, b.root+"/mounts/999")
		b.requireIntact(c)
	})
}

// TestCrashWhileADeadMountIsPutAside: made its place, or mounted there and still on its mount point.
func TestCrashWhileADeadMountIsPutAside(t *testing.T) {
	for name, left := range map[string]func(point string) error{
		"place":   func(point string) error { return os.Mkdir(point+deadInfix+"A", 0o700) },
		"mounted": putAside,
	} {
		t.Run(name, func(t *testing.T) {
			b := fuseBench(t)
			f, err := os.Create(withImage(t, b) + "/etc/new")
			require.NoError(t, err)
			b.another()
			require.NoError(t, left(b.s.root.mountPoint(b.id("c"))))
			b.reopen()
			require.NotEmpty(t, dead(b)) // it was put aside, now by this one
			require.ErrorIs(t, b.s.Commit(b.ctx, "three", "c"), syscall.EBUSY)
			_ = f.Close() // its server is gone
			require.NoError(t, b.s.Commit(b.ctx, "three", "c"))
			b.requireClean()
			require.Empty(t, dead(b))
		})
	}
}

func TestCrashWhileACommitHasTheMountReadOnly(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		c := withImage(t, b)
		require.NoError(t, setReadOnly(b.s.root.mountPoint(b.id("c")), true))
		require.Error(t, os.WriteFile(c+"/etc/x", nil, 0o644))
		b.reopen()
		require.NoError(t, os.WriteFile(c+"/etc/x", nil, 0o644), "the container writes on without anybody calling Mounts")
		b.requireClean()
		b.requireIntact(c)
	})
}

func TestCrashBetweenMarksAndTransactionOfCommit(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		c := withImage(t, b)
		require.NoError(t, b.s.writeMarks(b.id("c"), layerMarks{}))
		require.NoError(t, os.Symlink("target", c+"/link"))
		require.NoError(t, os.Remove(c+"/etc/one"))
		b.reopen()
		b.requireClean()
		require.NoError(t, b.s.Commit(b.ctx, "three", "c"))
		m, err := b.s.marksOf(b.ctx, b.id("three"))
		require.NoError(t, err)
		require.True(t, m.Whiteouts, "the marks are those of the layer at its commit")
	})
}

// TestCrashAfterTheTransactionOfCommit: committed, but the mount, the mount point and the work directory are still there.
func TestCrashAfterTheTransactionOfCommit(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		c := withImage(t, b)
		id := b.id("c")
		b.k.fault = func(method string, _ MountSpec) error {
			if method == "Unmount" {
				return errCut
			}
			return nil
		}
		require.NoError(t, os.Mkdir(filepath.Join(b.s.root.work(id), "kept"), 0o700))
		require.NoError(t, b.s.Commit(b.ctx, "three", "c"))
		b.s.background.Wait()
		b.k.fault = nil
		require.NoError(t, os.MkdirAll(b.s.root.work(id)+"/work", 0o700)) // dropWork had come that far already
		mounted, _, err := mountedAt(b.s.root.mountPoint(id))
		require.NoError(t, err)
		require.True(t, mounted, "the fault kept the mount")
		require.NoError(t, detach(c))

		b.reopen()
		mounted, _, err = mountedAt(b.s.root.mountPoint(id))
		require.NoError(t, err)
		require.False(t, mounted)
		b.requireClean()
		requireFile(t, b.view("v3", "three")+"/etc/mine", "3")
	})
}

func TestCrashAfterTheTransactionOfRemove(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		c := withImage(t, b)
		id := b.id("c")
		b.k.fault = func(method string, _ MountSpec) error {
			if method == "Unmount" {
				return errCut
			}
			return nil
		}
		b.remove("c")
		b.s.background.Wait()
		b.k.fault = nil
		require.NoError(t, detach(c))
		b.reopen()
		require.NoDirExists(t, b.s.root.mountPoint(id))
		require.DirExists(t, b.s.root.snapshot(id))
		b.requireClean()
		require.NoDirExists(t, b.s.root.snapshot(id))
	})
}

func TestCrashWhileGarbageIsDeleted(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		c := withImage(t, b)
		write(t, b.root+"/snapshots/garbage-5-ABC/fs/half", "x")
		b.reopen()
		b.requireClean()
		b.requireIntact(c)
	})
}

func TestTornMarksAreFoundAgain(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		b.layer("one", "", func(dir string) { write(t, dir+"/a", "1") })
		b.layer("two", "one", func(dir string) { whiteout(t, dir+"/a") })
		id := b.id("two")
		for _, text := range []string{"", "{\"version\":1,\"whiteo", "{\"version\":99}"} {
			require.NoError(t, os.WriteFile(b.s.root.marks(id), []byte(text), 0o600))
			b.reopen()
			m, err := b.s.marksOf(b.ctx, id)
			require.NoError(t, err)
			require.True(t, m.Whiteouts)
			require.False(t, m.plain())
		}
	})
}

// TestMissingMetadataIsNotTakenForGarbage: without metadata.db every snapshot would look like garbage.
func TestMissingMetadataIsNotTakenForGarbage(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		withImage(t, b)
		require.NoError(t, b.s.Close())
		require.NoError(t, os.Rename(b.root+"/metadata.db", b.root+"/kept.db"))
		_, err := New(b.ctx, b.cfg)
		require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
		require.ErrorContains(t, err, "metadata.db is missing")
		require.NoError(t, os.Rename(b.root+"/kept.db", b.root+"/metadata.db"))
		b.open()
	})
}

// TestReboot: no mount of ours is left, the mount points are plain directories, and so is the container's.
func TestReboot(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		c := withImage(t, b)
		b.reboot()
		require.Empty(t, names(t, c))

		mounts, err := b.s.Mounts(b.ctx, "c")
		require.NoError(t, err)
		b.requireIntact(b.mounted(mounts))
		b.requireClean()
	})
}

// TestDaemonRestartKeepsMounts: a new daemon finds the mount, and the container never notices.
func TestDaemonRestartKeepsMounts(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		c := withImage(t, b)
		open, err := os.OpenFile(c+"/etc/log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		require.NoError(t, err)
		defer func() { require.NoError(t, open.Close()) }()
		_, err = open.WriteString("before ")
		require.NoError(t, err)
		mountsMade := 0
		b.k.fault = func(method string, _ MountSpec) error {
			if method == "Mount" {
				mountsMade++
			}
			return nil
		}
		b.reopen()
		_, err = open.WriteString("after")
		require.NoError(t, err)
		b.requireIntact(c)
		requireFile(t, c+"/etc/log", "before after")
		require.Zero(t, mountsMade, "the mount was found, not made again")
		b.requireClean()
	})
}

func TestSecondDaemonIsRefusedByPID(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		_, err := New(b.ctx, b.cfg)
		require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
		require.ErrorContains(t, err, "in use by process "+strconv.Itoa(os.Getpid()))
		b.layer("one", "", nil) // the first goes on
	})
}

func TestPrepareThatCannotMountLeavesNothing(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		b.layer("one", "", nil)
		b.k.fault = func(method string, _ MountSpec) error {
			if method == "Mount" {
				return errCut
			}
			return nil
		}
		_, err := b.s.Prepare(b.ctx, "c", "one")
		require.ErrorIs(t, err, errCut)
		_, err = b.s.Stat(b.ctx, "c")
		require.True(t, errdefs.IsNotFound(err), "%v", err)
		b.s.background.Wait()
		b.k.fault = nil
		b.requireClean()
		require.Empty(t, names(t, b.s.root.mounts()))
		b.container("c", "one")
	})
}

func TestMountServerOutOfReachIsNamed(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		b.layer("one", "", nil)
		b.k.fault = func(string, MountSpec) error { return errors.Join(errors.New("socket /run/x"), errdefs.ErrUnavailable) }
		_, err := b.s.Prepare(b.ctx, "c", "one")
		require.True(t, errdefs.IsUnavailable(err), "%v", err)
		require.ErrorContains(t, err, "/run/x")
		require.False(t, strings.Contains(err.Error(), "undo"), "%v", err)
		b.layer("two", "one", nil) // images are unpacked without a mount server
		b.s.background.Wait()
		b.k.fault = nil
		b.requireClean()
	})
}
