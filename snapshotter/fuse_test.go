package snapshotter

import (
	"bytes"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse"
)

// The tests of this file need what only our own file system does.

// TestFUSECommitCompletesMetacopyFiles: a file whose mode alone was changed has its data in the committed layer, where every
// kind of view shows it.
func TestFUSECommitCompletesMetacopyFiles(t *testing.T) {
	b := fuseBench(t)
	data := string(bytes.Repeat([]byte("0123456789abcdef"), 1<<16))
	b.layer("one", "", func(dir string) { write(t, dir+"/d/big", data) })
	c := b.container("c", "one")
	require.NoError(t, os.Chmod(c+"/d/big", 0o600))
	require.NoError(t, os.Rename(c+"/d", c+"/e"))
	before, err := scanLayer(b.ctx, b.s.root.layer(b.id("c")), true)
	require.NoError(t, err)
	require.Less(t, before.usage.Size, int64(1<<20), "nothing was copied yet")
	require.NoError(t, b.s.Commit(b.ctx, "two", "c"))

	marks, err := b.s.marksOf(b.ctx, b.id("two"))
	require.NoError(t, err)
	require.False(t, marks.Metacopy)
	usage, err := b.s.Usage(b.ctx, "two")
	require.NoError(t, err)
	require.Greater(t, usage.Size, int64(1<<20))
	requireFile(t, b.s.root.layer(b.id("two"))+"/e/big", data)
	requireFile(t, b.view("v", "two")+"/e/big", data)
	require.NoError(t, b.s.Close())
	b.cfg.ViewsFUSE = true
	b.open()
	v := b.view("f", "two")
	requireFile(t, v+"/e/big", data)
	require.ErrorIs(t, os.WriteFile(v+"/x", nil, 0o644), unix.EROFS)
}

// TestFUSECommitOnAFullDisk: there is no room to complete a file. Nothing is lost, and with room the commit succeeds.
func TestFUSECommitOnAFullDisk(t *testing.T) {
	outer := fuseBench(t)
	disk := smallDisk(t, outer)
	b := &bench{t: t, ctx: outer.ctx, root: disk + "/root", work: outer.work, cfg: outer.cfg, k: outer.k}
	b.cfg.Root = b.root
	b.open()
	t.Cleanup(func() { require.NoError(t, b.s.Close()) })
	data := string(bytes.Repeat([]byte("0123456789abcdef"), 1<<19)) // 8 MiB
	b.layer("one", "", func(dir string) { write(t, dir+"/big", data) })
	c := b.container("c", "one")
	require.NoError(t, os.Chmod(c+"/big", 0o600))
	write(t, c+"/mine", "3")
	require.NoError(t, syncFileSystem(disk))
	fillDisk(t, disk+"/filler")

	err := b.s.Commit(b.ctx, "two", "c")
	require.ErrorIs(t, err, syscall.ENOSPC)
	requireFile(t, c+"/big", data)
	requireFile(t, c+"/mine", "3")
	st, err := os.Stat(c + "/big")
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode().Perm())

	require.NoError(t, os.Remove(disk+"/filler"))
	write(t, c+"/later", "4")
	require.NoError(t, b.s.Commit(b.ctx, "two", "c"))
	v := b.view("v", "two")
	requireFile(t, v+"/big", data)
	requireFile(t, v+"/mine", "3")
	requireFile(t, v+"/later", "4")
}

// TestFUSECompletesMetacopyOfAnExtraction: somebody mounted an extraction and changed a mode in it.
func TestFUSECompletesMetacopyOfAnExtraction(t *testing.T) {
	b := fuseBench(t)
	b.apply("one", "", entry{name: "f", data: "data"})
	key := "test/3/extract-1 two"
	_, err := b.s.Prepare(b.ctx, key, "one")
	require.NoError(t, err)
	hole := b.s.root.layer(b.id(key)) + "/f"
	require.NoError(t, os.WriteFile(hole, make([]byte, 4), 0o600))
	setxattr(t, hole, "trusted.overlay.metacopy", "")
	require.NoError(t, b.s.Commit(b.ctx, "two", key))
	requireFile(t, b.s.root.layer(b.id("two"))+"/f", "data")
}

// TestFUSEServerKilled: its mounts are dead. With a new server, Mounts makes the mount again, with what was written.
func TestFUSEServerKilled(t *testing.T) {
	b := fuseBench(t)
	c := withImage(t, b)
	require.NoError(t, syncFileSystem(b.root))
	b.server.kill(t)
	_, err := os.Stat(c + "/etc/one")
	require.ErrorIs(t, err, syscall.ENOTCONN)
	_, err = b.s.Mounts(b.ctx, "c")
	require.ErrorContains(t, err, "no mount server (overlayfuse serve) listens on "+b.server.socket)
	require.Error(t, b.s.Cleanup(b.ctx), "nobody knows what is in use")

	b.server = startTestServer(t)
	b.k.Mounter = b.server.mounter(t)
	mounts, err := b.s.Mounts(b.ctx, "c")
	require.NoError(t, err)
	b.requireIntact(b.mounted(mounts))
	b.requireClean()
}

// TestFUSEMountIsWhatTheContainerSees: the mount's type and source, and none of the flags that a root file system lacks.
func TestFUSEMountIsWhatTheContainerSees(t *testing.T) {
	b := fuseBench(t)
	b.layer("one", "", nil)
	c := b.container("c", "one")
	table, err := readMountTable()
	require.NoError(t, err)
	require.True(t, table.hasFUSE(b.s.root.mounts()))
	for _, m := range table {
		if m.Mountpoint == c {
			require.Equal(t, overlayfuse.Type, m.FSType)
			require.Equal(t, b.s.root.mountPoint(b.id("c")), m.Source)
			require.NotContains(t, m.Options, "nosuid")
			require.NotContains(t, m.Options, "nodev")
			return
		}
	}
	t.Fatal("not in the mount table")
}

// TestFUSEMountPointTakenAway: an operator unmounts the mount point while a container lives on the bind. The upper cannot be
// mounted twice and the mount cannot be frozen, so both calls say why, and nothing is lost.
func TestFUSEMountPointTakenAway(t *testing.T) {
	b := fuseBench(t)
	c := withImage(t, b)
	require.NoError(t, detach(b.s.root.mountPoint(b.id("c"))))
	_, err := b.s.Mounts(b.ctx, "c")
	require.ErrorIs(t, err, syscall.EBUSY)
	err = b.s.Commit(b.ctx, "three", "c")
	require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
	require.ErrorContains(t, err, "unmounted by somebody else")
	requireFile(t, c+"/etc/mine", "3")
	require.NoError(t, detach(c))
	require.Eventually(t, func() bool { return b.s.Commit(b.ctx, "three", "c") == nil }, 20*time.Second, 20*time.Millisecond)
	requireFile(t, b.view("after", "three")+"/etc/mine", "3")
}
