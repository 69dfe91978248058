package snapshotter

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func whiteout(t *testing.T, path string) {
	t.Helper()
	require.NoError(t, unix.Mknod(path, unix.S_IFCHR, 0))
}

func setxattr(t *testing.T, path, name, value string) {
	t.Helper()
	require.NoError(t, unix.Lsetxattr(path, name, []byte(value), 0))
}

// entry is one member of an image layer's archive.
type entry struct {
	name, data string // a name that ends in / is a directory
	pax        map[string]string
}

// apply unpacks an archive as containerd does: Prepare, the applier of core/diff/apply, Commit.
func (b *bench) apply(name, parent string, entries ...entry) {
	b.t.Helper()
	require.NoError(b.t, b.tryApply(name, parent, entries...))
}

func (b *bench) tryApply(name, parent string, entries ...entry) error {
	b.t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: 0o644, Size: int64(len(e.data)), Typeflag: tar.TypeReg, PAXRecords: e.pax, Format: tar.FormatPAX}
		if strings.HasSuffix(e.name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o750
		}
		require.NoError(b.t, w.WriteHeader(h))
		_, err := io.WriteString(w, e.data)
		require.NoError(b.t, err)
	}
	require.NoError(b.t, w.Close())

	store, err := local.NewStore(b.t.TempDir())
	require.NoError(b.t, err)
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Size: int64(archive.Len()), Digest: digest.FromBytes(archive.Bytes())}
	require.NoError(b.t, content.WriteBlob(b.ctx, store, name, bytes.NewReader(archive.Bytes()), desc))

	key := "test/3/" + fmt.Sprintf(snapshots.UnpackKeyFormat, "91", name)
	mounts, err := b.s.Prepare(b.ctx, key, parent)
	require.NoError(b.t, err)
	if _, err := apply.NewFileSystemApplier(store).Apply(b.ctx, desc, mounts); err != nil {
		return err
	}
	return b.s.Commit(b.ctx, name, key)
}

// TestExtractionIsWrittenDirectly: containerd's applier takes its fast path, also for the first layer, and whiteouts and
// opaque directories arrive as the kernel's overlayfs has them.
func TestExtractionIsWrittenDirectly(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		b.k.fault = func(method string, spec MountSpec) error {
			if method == "Mount" || method == "Flush" {
				t.Errorf("%s of %s: an extraction never touches the mount server", method, spec.ID)
			}
			return nil
		}
		b.apply("one", "", entry{name: "d/"}, entry{name: "d/keep", data: "k"}, entry{name: "d/gone", data: "g"},
			entry{name: "o/"}, entry{name: "o/old", data: "o"}, entry{name: ".wh.nothing"})
		b.apply("two", "one", entry{name: "d/.wh.gone"}, entry{name: "o/"}, entry{name: "o/.wh..wh..opq"}, entry{name: "o/new", data: "n"},
			entry{name: "d/sub/file", data: "s"})

		one, two := b.s.root.layer(b.id("one")), b.s.root.layer(b.id("two"))
		for _, path := range []string{one + "/nothing", two + "/d/gone"} {
			var st unix.Stat_t
			require.NoError(t, unix.Lstat(path, &st))
			require.Equal(t, uint32(unix.S_IFCHR), st.Mode&unix.S_IFMT, path)
			require.Zero(t, st.Rdev, path)
		}
		opaque := make([]byte, 8)
		n, err := unix.Lgetxattr(two+"/o", "trusted.overlay.opaque", opaque)
		require.NoError(t, err)
		require.Equal(t, "y", string(opaque[:n]))
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(two+"/d", &st))
		require.Equal(t, uint32(0o750), st.Mode&0o7777, "the applier found the parent directory of d/sub in the lower layer")

		v := b.view("v", "two")
		require.Equal(t, []string{"keep", "sub"}, names(t, v+"/d"))
		require.Equal(t, []string{"new"}, names(t, v+"/o"))
		b.k.fault = nil
		c := b.container("c", "two")
		require.Equal(t, []string{"keep", "sub"}, names(t, c+"/d"))
		require.Equal(t, []string{"new"}, names(t, c+"/o"))
	})
}

// TestExtractionMountIsNotReadOnly: containerd 2.4 takes a read-only mount for a layer that is there already.
func TestExtractionMountIsNotReadOnly(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		b.layer("one", "", nil)
		for i, parent := range []string{"", "one"} {
			mounts, err := b.s.Prepare(b.ctx, fmt.Sprintf("ns/%d/extract-5 sha256:x", i), parent)
			require.NoError(t, err)
			require.Len(t, mounts, 1)
			require.Equal(t, "overlay", mounts[0].Type)
			require.False(t, mounts[0].ReadOnly())
			write(t, b.mounted(mounts)+"/f", "it can be mounted, too")
		}
	})
}

func TestExtractionKeys(t *testing.T) {
	for key, want := range map[string]bool{
		"extract-1 sha256:x":            true,
		"default/12/extract-1 sha256:x": true,
		"k8s.io/7/extract-9-abc sha256": true,
		"default/12/container":          false,
		"extractor":                     false,
		"default/x/extract-1":           false,
		"/tmp/7/extract-1":              false,
		"default/12/a/extract-1":        false,
		"":                              false,
	} {
		require.Equal(t, want, isExtraction(key), key)
	}
}

// TestRebase: in a parallel unpack the parent comes with the commit.
func TestRebase(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		b.layer("one", "", func(dir string) {
			write(t, dir+"/a", "1")
			require.NoError(t, os.Chmod(dir, 0o711))
		})
		mounts, err := b.s.Prepare(b.ctx, "n/1/extract-1 two", "")
		require.NoError(t, err)
		require.Equal(t, "overlay", mounts[0].Type)
		upper := b.s.root.layer(b.id("n/1/extract-1 two"))
		whiteout(t, upper+"/a")
		write(t, upper+"/b", "2")
		require.NoError(t, b.s.Commit(b.ctx, "two", "n/1/extract-1 two", snapshots.WithParent("one")))
		info, err := b.s.Stat(b.ctx, "two")
		require.NoError(t, err)
		require.Equal(t, "one", info.Parent)
		v := b.view("v", "two")
		require.Equal(t, []string{"b"}, names(t, v))
		st, err := os.Stat(v)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o711), st.Mode().Perm(), "the root directory is the parent's")
	})
}

// TestViews: each kind of layer with the cheapest mount that shows it right.
func TestViews(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		b.layer("plain", "", func(dir string) { write(t, dir+"/d/f", "1") })
		b.layer("marked", "", func(dir string) { write(t, dir+"/d/f", "1"); whiteout(t, dir+"/w") })
		b.layer("opaque", "", func(dir string) { write(t, dir+"/d/f", "1"); setxattr(t, dir+"/d", "trusted.overlay.opaque", "y") })
		b.layer("second", "plain", func(dir string) { write(t, dir+"/d/g", "2") })
		for _, tc := range []struct {
			parent, kind string
			files        []string
		}{
			{"", "bind", []string{}},
			{"plain", "bind", []string{"f"}},
			{"marked", "overlay", []string{"f"}},
			{"opaque", "overlay", []string{"f"}},
			{"second", "overlay", []string{"f", "g"}},
		} {
			t.Run(tc.parent, func(t *testing.T) {
				mounts, err := b.s.View(b.ctx, "view-"+tc.parent, tc.parent)
				require.NoError(t, err)
				require.Equal(t, tc.kind, mounts[0].Type)
				require.True(t, mounts[0].ReadOnly())
				dir := b.mounted(mounts)
				require.Equal(t, len(tc.files) > 0, len(names(t, dir)) == 1, "nothing but d")
				if len(tc.files) > 0 {
					require.Equal(t, tc.files, names(t, dir+"/d"))
				}
				require.ErrorIs(t, os.WriteFile(dir+"/x", nil, 0o644), unix.EROFS)
				again, err := b.s.Mounts(b.ctx, "view-"+tc.parent)
				require.NoError(t, err)
				require.Equal(t, mounts, again)
			})
		}
	})
}

// TestViewFollowsRedirects: a directory that a container renamed shows its files in a view, and in an extraction on top.
func TestViewFollowsRedirects(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		b.layer("one", "", func(dir string) { write(t, dir+"/old/sub/f", "1") })
		c := b.container("c", "one")
		require.NoError(t, os.Rename(c+"/old", c+"/new"))
		require.NoError(t, b.s.Commit(b.ctx, "two", "c"))
		require.NoError(t, detach(c))
		m, err := b.s.marksOf(b.ctx, b.id("two"))
		require.NoError(t, err)
		require.True(t, m.Redirects)
		v := b.view("v", "two")
		require.Equal(t, []string{"new"}, names(t, v))
		requireFile(t, v+"/new/sub/f", "1")

		b.apply("three", "two", entry{name: "new/sub/g", data: "2"}, entry{name: "new/sub/.wh.f"})
		v = b.view("v3", "three")
		require.Equal(t, []string{"g"}, names(t, v+"/new/sub"))
	})
}

// TestLayersOfOthersWithMetacopyAreViewedByFUSE: a layer that came with metacopy files, whose data the kernel would have to
// search for, is never shown by the kernel.
func TestLayersOfOthersWithMetacopyAreViewedByFUSE(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		b.layer("one", "", func(dir string) { write(t, dir+"/f", "data") })
		b.unsealedLayer("two", "one", nil)
		require.NoError(t, os.WriteFile(b.s.root.layer(b.id("two"))+"/f", nil, 0o644))
		require.NoError(t, os.Truncate(b.s.root.layer(b.id("two"))+"/f", 4))
		setxattr(t, b.s.root.layer(b.id("two"))+"/f", "trusted.overlay.metacopy", "")
		require.NoError(t, os.Remove(b.s.root.marks(b.id("two"))))
		b.seal("two")
		b.reopen()
		var asked []MountSpec
		b.k.fault = func(method string, spec MountSpec) error {
			if method == "Mount" {
				asked = append(asked, spec)
			}
			return nil
		}
		mounts, err := b.s.View(b.ctx, "v", "two")
		require.NoError(t, err)
		require.Equal(t, []mount.Mount{{Type: "bind", Source: b.s.root.mountPoint(b.id("v")), Options: []string{"ro", "rbind"}}}, mounts)
		require.Len(t, asked, 1)
		require.Empty(t, asked[0].Upper, "read-only")
	})
}

// TestMetacopyInAnExtractionIsNeverCommitted: what has no data of its own is completed at commit, or refused.
func TestMetacopyInAnExtractionIsNeverCommitted(t *testing.T) {
	t.Run("refused", func(t *testing.T) {
		b := newBench(t, newKernelMounter(), nil)
		b.apply("one", "", entry{name: "f", data: "data"})
		key := "test/3/extract-1 two"
		_, err := b.s.Prepare(b.ctx, key, "one")
		require.NoError(t, err)
		hole := b.s.root.layer(b.id(key)) + "/f"
		require.NoError(t, os.WriteFile(hole, make([]byte, 4), 0o644))
		setxattr(t, hole, "trusted.overlay.metacopy", "")
		complete := false
		flushed := 0
		b.k.fault = func(method string, spec MountSpec) error {
			if method == "Flush" {
				flushed++
				require.Equal(t, []string{b.s.root.layer(b.id("one"))}, spec.Lower)
				if complete {
					require.NoError(t, os.WriteFile(hole, []byte("data"), 0o644))
					require.NoError(t, unix.Removexattr(hole, "trusted.overlay.metacopy"))
				}
			}
			return nil
		}
		err = b.s.Commit(b.ctx, "two", key)
		require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
		require.ErrorContains(t, err, "f has not all of its data")
		require.Equal(t, 1, flushed, "it was asked to be completed")
		require.Equal(t, snapshots.KindActive, b.kind(key))

		complete = true
		require.NoError(t, b.s.Commit(b.ctx, "two", key))
		requireFile(t, b.view("v", "two")+"/f", "data")
	})
}

// TestArchivesCannotCarryOverlayAttributes: containerd's applier leaves them out, so an image cannot make a redirect or a hole.
func TestArchivesCannotCarryOverlayAttributes(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		b.apply("one", "", entry{name: "f", data: "1", pax: map[string]string{"SCHILY.xattr.trusted.overlay.metacopy": "y"}},
			entry{name: "d/", pax: map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/etc"}})
		m, err := b.s.marksOf(b.ctx, b.id("one"))
		require.NoError(t, err)
		require.True(t, m.plain())
	})
}

// Test128Layers: real names, longer than a page of mount options, viewed by the kernel and in a container.
func Test128Layers(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		parent := ""
		for i := range 128 {
			name := fmt.Sprintf("layer-%d", i)
			b.layer(name, parent, func(dir string) {
				write(t, fmt.Sprintf("%s/d/f%03d", dir, i), name)
				write(t, dir+"/last", name)
			})
			parent = name
		}
		for what, dir := range map[string]string{"view": b.view("v", parent), "container": b.container("c", parent)} {
			require.Len(t, names(t, dir+"/d"), 128, what)
			requireFile(t, dir+"/last", "layer-127")
			requireFile(t, dir+"/d/f000", "layer-0")
		}
		used, err := b.s.inUse(b.ctx)
		require.NoError(t, err)
		for i := range 128 {
			require.True(t, used[b.id(fmt.Sprintf("layer-%d", i))], i)
		}
	})
}

func TestTooManyLayers(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		parent := ""
		for i := range MaxLayers {
			name := fmt.Sprint("l", i)
			b.layer(name, parent, nil)
			parent = name
		}
		b.layer("top", parent, nil) // its own chain is 501 long; nothing can be mounted on it
		_, err := b.s.Prepare(b.ctx, "c", "top")
		require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
		require.ErrorContains(t, err, "501 layers, at most 500")
		b.requireClean()
	})
}

// TestUsage: what the snapshotter counts is what containerd's own count gives.
func TestUsage(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		fill := func(dir string) {
			write(t, dir+"/a/big", strings.Repeat("x", 100_000))
			require.NoError(t, os.Link(dir+"/a/big", dir+"/a/link"))
			require.NoError(t, os.Symlink("nowhere", dir+"/a/s"))
			require.NoError(t, unix.Mkfifo(dir+"/fifo", 0o600))
			write(t, dir+"/deep/"+strings.Repeat("d/", 200)+"f", "1")
		}
		b.layer("one", "", fill)
		want, err := fs.DiskUsage(b.ctx, b.s.root.layer(b.id("one")))
		require.NoError(t, err)
		got, err := b.s.Usage(b.ctx, "one")
		require.NoError(t, err)
		require.Equal(t, snapshots.Usage(want), got)

		c := b.container("c", "one")
		write(t, c+"/mine", strings.Repeat("y", 50_000))
		require.NoError(t, syncFileSystem(b.root))
		want, err = fs.DiskUsage(b.ctx, b.s.root.layer(b.id("c")))
		require.NoError(t, err)
		got, err = b.s.Usage(b.ctx, "c")
		require.NoError(t, err)
		require.Equal(t, snapshots.Usage(want), got)
	})
}

// TestUsageIsMeasuredSeldom: between two measurements the answer is the first one's.
func TestUsageIsMeasuredSeldom(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		require.NoError(t, b.s.Close())
		b.cfg.UsageTTL = 1 << 40 // nanoseconds, 18 minutes
		b.open()
		b.layer("one", "", nil)
		c := b.container("c", "one")
		first, err := b.s.Usage(b.ctx, "c")
		require.NoError(t, err)
		write(t, c+"/mine", "1")
		second, err := b.s.Usage(b.ctx, "c")
		require.NoError(t, err)
		require.Equal(t, first, second)
		b.s.usage.forget(b.id("c"))
		third, err := b.s.Usage(b.ctx, "c")
		require.NoError(t, err)
		require.Equal(t, first.Inodes+1, third.Inodes)
	})
}

func TestUpperdirLabel(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		b.layer("one", "", nil)
		info, err := b.s.Stat(b.ctx, "one")
		require.NoError(t, err)
		require.Empty(t, info.Labels)
		require.NoError(t, b.s.Close())
		b.cfg.UpperdirLabel = true
		b.open()
		info, err = b.s.Stat(b.ctx, "one")
		require.NoError(t, err)
		want := map[string]string{"containerd.io/snapshot/overlay.upperdir": filepath.Join(b.root, "snapshots", b.id("one"), "fs")}
		require.Equal(t, want, info.Labels)
	})
}

func TestSharingLabel(t *testing.T) {
	label := func(v string) snapshots.Opt {
		return snapshots.WithLabels(map[string]string{"containerd.io/snapshot/overlayfuse.sharing": v})
	}
	onBoth(t, func(t *testing.T, b *bench) {
		b.cfg.MountOptions = []string{"sharing=exec"}
		require.NoError(t, b.s.Close())
		b.open()
		_, err := b.s.Prepare(b.ctx, "bad", "", label("libs"))
		require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
		require.ErrorContains(t, err, "none, exec, mapped or all")
		if b.server == nil {
			return
		}
		for key, labels := range map[string][]snapshots.Opt{"plain": nil, "all": {label("all")}} {
			_, err := b.s.Prepare(b.ctx, key, "", labels...)
			require.NoError(t, err)
			specs, err := b.cfg.Mounter.Mounted(b.ctx)
			require.NoError(t, err)
			for _, s := range specs {
				if strings.Contains(s.MountPoint, "/"+b.id(key)+"/") {
					require.Equal(t, key == "all", slices.Contains(s.Options, "sharing=all"), "%v", s.Options)
				}
			}
		}
		_, err = b.s.Update(b.ctx, snapshots.Info{Name: "plain", Labels: map[string]string{"containerd.io/snapshot/overlayfuse.sharing": "x"}})
		require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
	})
}

func TestIDMappingLabelsAreRefused(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		_, err := b.s.Prepare(b.ctx, "c", "", snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotUIDMapping: "0:1000:1"}))
		require.True(t, errdefs.IsNotImplemented(err), "%v", err)
		require.ErrorContains(t, err, "remap-ids")
	})
}
