package snapshotter

import (
	"archive/tar"
	"io"
	"os"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// TestDiffOfAContainer is what "nerdctl commit" does: containerd's differ compares a view of the image with the container's
// mounts, and the difference is unpacked on the image again. A renamed directory and a changed mode are in it.
func TestDiffOfAContainer(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		b.layer("one", "", func(dir string) {
			write(t, dir+"/old/sub/f", "1")
			write(t, dir+"/gone", "2")
			write(t, dir+"/mode", "3")
		})
		b.layer("two", "one", func(dir string) { write(t, dir+"/two", "4") })
		c := b.container("c", "two")
		require.NoError(t, os.Rename(c+"/old", c+"/new"))
		require.NoError(t, os.Remove(c+"/gone"))
		require.NoError(t, os.Chmod(c+"/mode", 0o600))
		write(t, c+"/mine", "5")
		lower, err := b.s.View(b.ctx, "lower", "two")
		require.NoError(t, err)
		upper, err := b.s.Mounts(b.ctx, "c")
		require.NoError(t, err)

		store, err := local.NewLabeledStore(t.TempDir(), make(testLabels))
		require.NoError(t, err)
		desc, err := walking.NewWalkingDiff(store).Compare(b.ctx, lower, upper, diff.WithMediaType(ocispec.MediaTypeImageLayer))
		require.NoError(t, err)
		ra, err := store.ReaderAt(b.ctx, desc)
		require.NoError(t, err)
		var members []string
		r := tar.NewReader(content.NewReader(ra))
		for {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			require.NoError(t, err)
			members = append(members, h.Name)
		}
		require.NoError(t, ra.Close())
		slices.Sort(members)
		require.Equal(t, []string{".wh.gone", ".wh.old", "mine", "mode", "new/", "new/sub/", "new/sub/f"}, members)

		mounts, err := b.s.Prepare(b.ctx, "1234-not-an-extraction", "two") // nerdctl's key
		require.NoError(t, err)
		_, err = apply.NewFileSystemApplier(store).Apply(b.ctx, desc, mounts)
		require.NoError(t, err)
		require.NoError(t, b.s.Commit(b.ctx, "three", "1234-not-an-extraction"))
		v := b.view("v", "three")
		require.Equal(t, []string{"mine", "mode", "new", "two"}, names(t, v))
		requireFile(t, v+"/new/sub/f", "1")
		requireFile(t, v+"/mode", "3")
	})
}

// testLabels is the label store that the differ's content store wants.
type testLabels map[digest.Digest]map[string]string

func (l testLabels) Get(d digest.Digest) (map[string]string, error) { return l[d], nil }

func (l testLabels) Set(d digest.Digest, labels map[string]string) error {
	l[d] = labels
	return nil
}

func (l testLabels) Update(d digest.Digest, labels map[string]string) (map[string]string, error) {
	l[d] = labels
	return labels, nil
}
