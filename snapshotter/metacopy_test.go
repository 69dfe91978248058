package snapshotter

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// bigData is a file's content, larger than what is copied as a whole at a write.
var bigData = string(bytes.Repeat([]byte("0123456789abcdef"), 1<<16))

// keepBench is a bench whose commits keep metacopy files.
func keepBench(t *testing.T) *bench {
	b := fuseBench(t)
	require.NoError(t, b.s.Close())
	b.cfg.KeepMetacopy = true
	b.open()
	return b
}

// keptLayer commits "two" on "one": d/owned has another owner, renamed came from d/old, linked is also link; none of these has
// data. written has some, and was completed.
func keptLayer(t *testing.T, b *bench) {
	t.Helper()
	b.layer("one", "", func(dir string) {
		for _, name := range []string{"owned", "old", "linked", "written", "same"} {
			write(t, dir+"/d/"+name, bigData)
		}
	})
	c := b.container("c", "one")
	require.NoError(t, os.Chown(c+"/d/owned", 7, 8))
	require.NoError(t, os.Rename(c+"/d/old", c+"/renamed"))
	require.NoError(t, os.Link(c+"/d/linked", c+"/link"))
	f, err := os.OpenFile(c+"/d/written", os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("X"), 1<<19)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.NoError(t, b.s.Commit(b.ctx, "two", "c"))
	require.NoError(t, detach(c))
	b.seal("two")
}

// requireKept checks what somebody sees on top of keptLayer.
func requireKept(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{"d/owned", "renamed", "d/linked", "link", "d/same"} {
		requireFile(t, dir+"/"+name, bigData)
	}
	requireFile(t, dir+"/d/written", bigData[:1<<19]+"X"+bigData[1<<19+1:])
	require.Equal(t, []string{"linked", "owned", "same", "written"}, names(t, dir+"/d"))
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(dir+"/d/owned", &st))
	require.Equal(t, []uint32{7, 8}, []uint32{st.Uid, st.Gid})
}

// TestCommitKeepsMetacopy: the layer is small, and says what is in it.
func TestCommitKeepsMetacopy(t *testing.T) {
	b := keepBench(t)
	keptLayer(t, b)
	scan, err := scanLayer(b.ctx, b.s.root.layer(b.id("two")), true)
	require.NoError(t, err)
	require.True(t, scan.marks.Metacopy)
	require.Empty(t, scan.partial)
	usage, err := b.s.Usage(b.ctx, "two")
	require.NoError(t, err)
	require.Less(t, usage.Size, int64(len(bigData)+64<<10), "of four files, the data of one")
	require.Greater(t, usage.Size, int64(len(bigData)))
	b.reopen()
	marks, err := b.s.marksOf(b.ctx, b.id("two"))
	require.NoError(t, err)
	require.True(t, marks.Metacopy)
}

// TestCommitWithoutKeepCompletesAll is the same container without the setting.
func TestCommitWithoutKeepCompletesAll(t *testing.T) {
	b := fuseBench(t)
	keptLayer(t, b)
	marks, err := b.s.marksOf(b.ctx, b.id("two"))
	require.NoError(t, err)
	require.False(t, marks.Metacopy)
	requireFile(t, b.s.root.layer(b.id("two"))+"/renamed", bigData)
	requireKept(t, b.view("v", "two"))
}

// TestCommitKeptMetacopyIsReadByAll: a view, a container, one on a layer above, also after a restart and a reboot.
func TestCommitKeptMetacopyIsReadByAll(t *testing.T) {
	b := keepBench(t)
	keptLayer(t, b)
	v := b.view("v", "two")
	requireKept(t, v)
	require.ErrorIs(t, os.WriteFile(v+"/x", nil, 0o644), unix.EROFS)
	c := b.container("child", "two")
	requireKept(t, c)
	require.NoError(t, os.Chmod(c+"/d/owned", 0o600)) // metacopy on metacopy
	require.NoError(t, os.Rename(c+"/renamed", c+"/d/again"))
	require.NoError(t, os.Rename(c+"/d/again", c+"/renamed"))
	require.NoError(t, b.s.Commit(b.ctx, "three", "child"))
	requireKept(t, c)
	require.NoError(t, detach(c))
	b.seal("three")
	requireKept(t, b.view("v3", "three"))

	w := b.container("writer", "three")
	f, err := os.OpenFile(w+"/d/owned", os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("Y"), 1<<18)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	written := bigData[:1<<18] + "Y" + bigData[1<<18+1:]
	requireFile(t, w+"/d/owned", written)
	require.NoError(t, detach(w))
	require.NoError(t, b.s.Commit(b.ctx, "four", "writer"))
	requireFile(t, b.view("v4", "four")+"/d/owned", written)
	requireFile(t, b.s.root.layer(b.id("four"))+"/d/owned", written)

	b.reopen()
	requireKept(t, b.container("later", "three"))
}

// TestCommitKeptMetacopyIsExtractedOnto: an image's layer is unpacked on it, through FUSE.
func TestCommitKeptMetacopyIsExtractedOnto(t *testing.T) {
	b := keepBench(t)
	keptLayer(t, b)
	b.apply("three", "two", entry{name: "d/new", data: "n"}, entry{name: ".wh.link"})
	v := b.view("v", "three")
	requireFile(t, v+"/d/new", "n")
	requireFile(t, v+"/renamed", bigData)
	require.NoFileExists(t, v+"/link")
}

// TestCommitKeptMetacopyIsDiffed: containerd's differ finds contents and attributes, and its archive makes the same layer elsewhere.
func TestCommitKeptMetacopyIsDiffed(t *testing.T) {
	b := keepBench(t)
	keptLayer(t, b)
	lower, err := b.s.View(b.ctx, "lower", "one")
	require.NoError(t, err)
	upper, err := b.s.View(b.ctx, "upper", "two")
	require.NoError(t, err)
	store, err := local.NewLabeledStore(t.TempDir(), make(testLabels))
	require.NoError(t, err)
	desc, err := walking.NewWalkingDiff(store).Compare(b.ctx, lower, upper, diff.WithMediaType(ocispec.MediaTypeImageLayer))
	require.NoError(t, err)
	ra, err := store.ReaderAt(b.ctx, desc)
	require.NoError(t, err)
	members := map[string]string{}
	r := tar.NewReader(content.NewReader(ra))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		data, err := io.ReadAll(r)
		require.NoError(t, err)
		if h.Linkname != "" {
			data = []byte("-> " + h.Linkname)
		}
		members[strings.TrimSuffix(h.Name, "/")] = string(data)
		for attribute := range h.PAXRecords {
			require.NotContains(t, attribute, "overlay", h.Name)
		}
	}
	require.NoError(t, ra.Close())
	require.Equal(t, bigData, members["renamed"])
	require.Equal(t, bigData, members["d/owned"])
	require.Contains(t, members, "d/.wh.old")
	require.Contains(t, members, "d/written")
	require.NotContains(t, members, "d/same")

	mounts, err := b.s.Prepare(b.ctx, "elsewhere", "one")
	require.NoError(t, err)
	_, err = apply.NewFileSystemApplier(store).Apply(b.ctx, desc, mounts)
	require.NoError(t, err)
	require.NoError(t, b.s.Commit(b.ctx, "copy", "elsewhere"))
	requireKept(t, b.view("vcopy", "copy"))
}

// TestCommitKeptMetacopyNeedsItsParents: they cannot be removed before it; then all of it can go.
func TestCommitKeptMetacopyNeedsItsParents(t *testing.T) {
	b := keepBench(t)
	keptLayer(t, b)
	require.Error(t, b.s.Remove(b.ctx, "one"))
	requireKept(t, b.view("v", "two"))
	unmountBelow(t, b.work)
	for _, name := range []string{"v", "two", "one"} {
		b.remove(name)
	}
	require.Eventually(t, func() bool {
		require.NoError(t, b.s.Cleanup(b.ctx))
		return len(names(t, b.s.root.snapshots())) == 0
	}, 20*time.Second, 20*time.Millisecond)
}

// TestCommitRefusesAPartialFile, whatever is configured: nobody but its own mount could read it. The mount server would not leave one.
func TestCommitRefusesAPartialFile(t *testing.T) {
	for _, keep := range []bool{false, true} {
		b := newBench(t, newKernelMounter(), nil)
		require.NoError(t, b.s.Close())
		b.cfg.KeepMetacopy = keep
		b.open()
		c := withImage(t, b)
		file := b.s.root.layer(b.id("c")) + "/etc/mine"
		setxattr(t, file, "trusted.overlay.metacopy", "p")
		err := b.s.Commit(b.ctx, "three", "c")
		require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
		require.ErrorContains(t, err, "etc/mine has not all of its data")
		require.Equal(t, snapshots.KindActive, b.kind("c"))
		require.NoError(t, unix.Removexattr(file, "trusted.overlay.metacopy"))
		b.requireIntact(c)
		require.NoError(t, b.s.Commit(b.ctx, "three", "c"))
	}
}

// TestCommitKeepsNoMetacopyOfAnExtraction: only what a container leaves is known to lead to its data.
func TestCommitKeepsNoMetacopyOfAnExtraction(t *testing.T) {
	b := keepBench(t)
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

// TestCommitIsCancelled while it flushes: the snapshot is active, mounted, writable and intact, and the next commit goes on.
func TestCommitIsCancelled(t *testing.T) {
	b := fuseBench(t)
	data := strings.Repeat(bigData, 192) // 192 MiB
	b.layer("one", "", func(dir string) { write(t, dir+"/big", data) })
	c := b.container("c", "one")
	require.NoError(t, os.Chmod(c+"/big", 0o600))
	upper := b.s.root.layer(b.id("c")) + "/big"
	size := func() int64 {
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(upper, &st))
		return st.Blocks * diskBlock
	}

	ctx, cancel := context.WithCancel(b.ctx)
	ended := make(chan error, 1)
	go func() { ended <- b.s.Commit(ctx, "two", "c") }()
	for size() < 4<<20 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	require.Equal(t, snapshots.KindActive, b.kind("c"))
	require.Less(t, size(), int64(len(data)))
	requireFile(t, c+"/big", data)
	write(t, c+"/later", "1")
	mounts, err := b.s.Mounts(b.ctx, "c")
	require.NoError(t, err)
	require.Equal(t, []mount.Mount{{Type: "bind", Source: b.s.root.mountPoint(b.id("c")), Options: []string{"rw", "rbind"}}}, mounts)
	require.NoError(t, detach(c))

	require.NoError(t, b.s.Commit(b.ctx, "two", "c"))
	v := b.view("v", "two")
	requireFile(t, v+"/big", data)
	require.True(t, slices.Equal([]string{"big", "later"}, names(t, v)))
}
