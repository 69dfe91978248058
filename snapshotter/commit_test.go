package snapshotter

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestCommitWhoseFlushFails: the cause is in the error; the snapshot is active, mounted, writable and intact; the next commit
// works.
func TestCommitWhoseFlushFails(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		c := withImage(t, b)
		b.k.fault = func(method string, spec MountSpec) error {
			if method != "Flush" {
				return nil
			}
			require.ErrorIs(t, os.WriteFile(c+"/etc/late", nil, 0o644), unix.EROFS, "nothing is written while the layer is completed")
			return fmt.Errorf("copy etc/one: %w", syscall.ENOSPC)
		}
		err := b.s.Commit(b.ctx, "three", "c")
		require.ErrorIs(t, err, syscall.ENOSPC)
		require.ErrorContains(t, err, "copy etc/one")
		_, err = b.s.Stat(b.ctx, "three")
		require.True(t, errdefs.IsNotFound(err), "%v", err)
		b.requireIntact(c)

		b.k.fault = nil
		require.NoError(t, b.s.Commit(b.ctx, "three", "c"))
		requireFile(t, b.view("after", "three")+"/etc/mine", "3")
	})
}

// TestCommitOfAFullDisk: the file system of the root has no block left for the marks and the metadata.
func TestCommitOfAFullDisk(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		c := withImage(t, b)
		disk := smallDisk(t, b)
		full := &bench{t: t, ctx: b.ctx, root: disk + "/root", work: b.work, cfg: b.cfg, k: b.k}
		full.cfg.Root = full.root
		full.open()
		t.Cleanup(func() { require.NoError(t, full.s.Close()) })
		full.layer("one", "", func(dir string) { write(t, dir+"/etc/one", "1") })
		full.layer("two", "one", func(dir string) { write(t, dir+"/etc/two", "2") })
		fc := full.container("c", "two")
		write(t, fc+"/etc/mine", "3")
		require.NoError(t, syncFileSystem(disk))
		fillDisk(t, disk+"/filler")

		err := full.s.Commit(full.ctx, "three", "c")
		require.ErrorIs(t, err, syscall.ENOSPC)
		_, err = full.s.Stat(full.ctx, "three")
		require.True(t, errdefs.IsNotFound(err), "%v", err)
		require.Equal(t, snapshots.KindActive, full.kind("c"))
		requireFile(t, fc+"/etc/mine", "3")

		require.NoError(t, os.Remove(disk+"/filler"))
		full.requireIntact(fc)
		require.NoError(t, full.s.Commit(full.ctx, "three", "c"))
		requireFile(t, full.view("v", "three")+"/etc/mine", "3")
		b.requireIntact(c)
	})
}

// smallDisk is an ext4 of 32 MiB in a file, mounted below the bench's directory.
func smallDisk(t *testing.T, b *bench) string {
	t.Helper()
	image := filepath.Join(filepath.Dir(b.root), "disk.img")
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, 32<<20))
	run1(t, "mkfs.ext4", "-q", "-m", "0", image)
	dir := filepath.Join(filepath.Dir(b.root), "disk")
	require.NoError(t, os.Mkdir(dir, 0o755))
	m := mount.Mount{Type: "ext4", Source: image, Options: []string{"loop"}}
	require.NoError(t, m.Mount(dir))
	t.Cleanup(func() { require.NoError(t, detach(dir)) })
	return dir
}

// fillDisk leaves no block.
func fillDisk(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	require.NoError(t, err)
	defer func() { _ = f.Close() }() // its errors are what the loop waits for
	for size := 1 << 20; size >= 512; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			require.ErrorIs(t, err, syscall.ENOSPC)
			size /= 2
			continue
		}
		if err := f.Sync(); err != nil {
			require.ErrorIs(t, err, syscall.ENOSPC)
		}
	}
}

// TestCommitWhileAFileIsOpenForWriting is refused; what the writer writes then is kept.
func TestCommitWhileAFileIsOpenForWriting(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		c := withImage(t, b)
		f, err := os.Create(c + "/etc/log")
		require.NoError(t, err)
		err = b.s.Commit(b.ctx, "three", "c")
		require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
		require.ErrorIs(t, err, syscall.EBUSY)
		_, err = f.WriteString("kept")
		require.NoError(t, err)
		require.NoError(t, f.Close())
		b.requireIntact(c)
		require.NoError(t, b.s.Commit(b.ctx, "three", "c"))
		requireFile(t, b.view("after", "three")+"/etc/log", "kept")
	})
}

// TestCommitWhileAFileIsMapped: a shared mapping that was left by its descriptor, with which a committed layer could be changed, is
// refused. (Under passthrough it is one of the upper file; the kernel counts a writer of the mount for it all the same.)
func TestCommitWhileAFileIsMapped(t *testing.T) {
	b := fuseBench(t)
	c := withImage(t, b)
	f, err := os.Create(c + "/etc/db")
	require.NoError(t, err)
	require.NoError(t, f.Truncate(4096))
	m, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	err = b.s.Commit(b.ctx, "three", "c")
	require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
	require.ErrorIs(t, err, syscall.EBUSY)
	copy(m, "kept")
	require.NoError(t, unix.Munmap(m))
	require.NoError(t, b.s.Commit(b.ctx, "three", "c"))
	data, err := os.ReadFile(b.view("after", "three") + "/etc/db")
	require.NoError(t, err)
	require.Equal(t, "kept", string(data[:4]))
}

// TestCommitWhileBound: the bind that a container still has shows the same and can no longer change the layer.
func TestCommitWhileBound(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		c := withImage(t, b)
		require.NoError(t, b.s.Commit(b.ctx, "three", "c"))
		requireFile(t, c+"/etc/one", "1")
		requireFile(t, c+"/etc/mine", "3")
		require.ErrorIs(t, os.WriteFile(c+"/etc/late", nil, 0o644), unix.EROFS)
		_, err := b.s.Mounts(b.ctx, "c")
		require.True(t, errdefs.IsNotFound(err), "%v", err)
		child := b.container("child", "three")
		requireFile(t, child+"/etc/mine", "3")
		require.NoError(t, b.s.Cleanup(b.ctx))
		requireFile(t, c+"/etc/mine", "3")
		requireFile(t, child+"/etc/one", "1")
		require.NoError(t, detach(c))
		b.requireClean()
		requireFile(t, child+"/etc/one", "1")
	})
}

// TestIndexOfABoundCommit: a hard link of a lower layer whose other name is out of sight is opened by way of the index, which is in the work
// directory. It stays for as long as the mount that outlives its commit.
func TestIndexOfABoundCommit(t *testing.T) {
	b := fuseBench(t)
	b.layer("one", "", func(dir string) {
		write(t, dir+"/d/a", "data")
		require.NoError(t, os.Link(dir+"/d/a", dir+"/d/b"))
	})
	b.layer("two", "one", func(dir string) {
		require.NoError(t, os.Mkdir(dir+"/d", 0o755))
		whiteout(t, dir+"/d/b")
	})
	c := b.container("c", "two")
	write(t, c+"/d/a", "mine")
	require.NoError(t, b.s.Commit(b.ctx, "three", "c"))
	require.NoError(t, b.s.Cleanup(b.ctx))
	requireFile(t, c+"/d/a", "mine")
	require.NoError(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
	requireFile(t, c+"/d/a", "mine")
	require.NoError(t, detach(c))
	b.requireClean()
	requireFile(t, b.view("v", "three")+"/d/a", "mine")
}

func TestCommitRefusals(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		c := withImage(t, b)
		flushed := false
		b.k.fault = func(method string, _ MountSpec) error {
			flushed = flushed || method == "Flush"
			return nil
		}
		require.True(t, errdefs.IsAlreadyExists(b.s.Commit(b.ctx, "two", "c")))
		require.True(t, errdefs.IsNotFound(b.s.Commit(b.ctx, "x", "nothing")))
		require.True(t, errdefs.IsFailedPrecondition(b.s.Commit(b.ctx, "x", "v")), "a view")
		require.True(t, errdefs.IsFailedPrecondition(b.s.Commit(b.ctx, "x", "two")), "a committed snapshot")
		require.False(t, flushed, "nothing was flushed for a commit that cannot be")
		require.Error(t, b.s.Commit(b.ctx, "x", "c", snapshots.WithParent("one")), "the parent is another")
		b.requireIntact(c)
	})
}

// TestCommitOfABind: without a parent a container writes straight into its layer.
func TestCommitOfABind(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		c := b.container("c", "")
		write(t, c+"/f", "1")
		require.NoError(t, os.Chmod(c, 0o700))
		require.NoError(t, b.s.Commit(b.ctx, "one", "c"))
		requireFile(t, b.view("v", "one")+"/f", "1")
		st, err := os.Stat(b.container("d", "one"))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o700), st.Mode().Perm(), "the root directory's mode is kept")
	})
}

// TestCleanupKeepsWhatIsInUse: a removed container and its removed image, while something still shows them.
func TestCleanupKeepsWhatIsInUse(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		c := withImage(t, b)
		ids := map[string]string{}
		for _, name := range []string{"c", "two", "one"} {
			ids[name] = b.id(name)
		}
		view, err := b.s.Mounts(b.ctx, "v")
		require.NoError(t, err)
		v := b.mounted(view)
		b.remove("v")
		b.remove("c")
		b.remove("two")
		b.remove("one")
		require.NoError(t, b.s.Cleanup(b.ctx))
		requireFile(t, c+"/etc/one", "1")
		requireFile(t, c+"/etc/mine", "3")
		requireFile(t, v+"/etc/two", "2")

		require.NoError(t, detach(c))
		require.Eventually(t, func() bool {
			require.NoError(t, b.s.Cleanup(b.ctx))
			return !slices.Contains(names(t, b.s.root.snapshots()), ids["c"])
		}, 20*time.Second, 20*time.Millisecond)
		requireFile(t, v+"/etc/two", "2")
		b.reopen()
		require.NoError(t, b.s.Cleanup(b.ctx))
		requireFile(t, v+"/etc/one", "1")

		unmountBelow(t, b.work)
		require.NoError(t, b.s.Cleanup(b.ctx))
		require.Empty(t, names(t, b.s.root.snapshots()))
	})
}

// TestCleanupKeepsABoundLayer: the one layer of a view is bound, not overlaid.
func TestCleanupKeepsABoundLayer(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		b.layer("one", "", func(dir string) { write(t, dir+"/f", "1") })
		v := b.view("v", "one")
		b.remove("v")
		b.remove("one")
		require.NoError(t, b.s.Cleanup(b.ctx))
		requireFile(t, v+"/f", "1")
		require.NoError(t, detach(v))
		require.NoError(t, b.s.Cleanup(b.ctx))
		require.Empty(t, names(t, b.s.root.snapshots()))
	})
}

// TestCleanupStaysOnItsFileSystem: what is mounted inside a removed snapshot is not part of it, and keeps it until it is gone.
func TestCleanupStaysOnItsFileSystem(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		b.layer("precious", "", func(dir string) { write(t, dir+"/f", "1") })
		b.layer("one", "", func(dir string) { write(t, dir+"/in/g", "2") })
		precious, one := b.s.root.layer(b.id("precious")), b.s.root.layer(b.id("one"))
		require.NoError(t, unix.Mount(precious, one+"/in", "", unix.MS_BIND, ""))
		b.remove("one")
		require.NoError(t, b.s.Cleanup(b.ctx))
		requireFile(t, precious+"/f", "1")
		requireFile(t, one+"/in/f", "1")
		// Mounted too late to be known.
		bare, err := openBare(b.s.root.snapshots())
		require.NoError(t, err)
		defer func() { require.NoError(t, bare.Close()) }()
		name := filepath.Base(filepath.Dir(one))
		require.ErrorIs(t, bare.removeAll(name), unix.EBUSY)
		requireFile(t, precious+"/f", "1")
		require.NoError(t, detach(one+"/in"))
		require.NoError(t, b.s.Cleanup(b.ctx))
		require.NoDirExists(t, filepath.Dir(one))
	})
}

// TestCleanupWithoutKnowledgeDeletesNothing: the mount server does not answer, so nobody knows what its mounts use.
func TestCleanupWithoutKnowledgeDeletesNothing(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		withImage(t, b)
		id := b.id("c")
		b.remove("c")
		b.k.fault = func(method string, _ MountSpec) error {
			if method == "Mounted" {
				return errors.New("timed out")
			}
			return nil
		}
		require.ErrorContains(t, b.s.Cleanup(b.ctx), "timed out")
		require.DirExists(t, b.s.root.snapshot(id))
		b.k.fault = nil
	})
}

// TestRemoveIsQuick: it deletes no file, however many there are.
func TestRemoveIsQuick(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		c := withImage(t, b)
		id := b.id("c")
		require.NoError(t, detach(c))
		b.remove("c")
		requireFile(t, b.s.root.layer(id)+"/etc/mine", "3")
		_, err := b.s.Prepare(b.ctx, "c", "two")
		require.NoError(t, err, "the key is free at once")
		b.requireClean()
		require.NoDirExists(t, b.s.root.snapshot(id))
	})
}
