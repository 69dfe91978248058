package snapshotter

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// treeSum is a checksum of everything that makes a layer but access times: names, types, modes, owners, devices,
// sizes, link counts, modification and change times, attributes, link targets and contents.
func treeSum(t *testing.T, dir string) string {
	t.Helper()
	sum := sha256.New()
	require.NoError(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var text strings.Builder
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		fmt.Fprintf(&text, "%q %o %d %d %d %d %d %v %v", strings.TrimPrefix(path, dir), st.Mode, st.Uid, st.Gid, st.Rdev, st.Size, st.Nlink, st.Mtim, st.Ctim)
		list := make([]byte, 1<<16)
		n, err := unix.Llistxattr(path, list)
		if err != nil {
			return err
		}
		names := strings.Split(string(list[:n]), "\x00")
		slices.Sort(names)
		for _, name := range names {
			if name == "" {
				continue
			}
			value := make([]byte, 1<<16)
			v, err := unix.Lgetxattr(path, name, value)
			if err != nil {
				return err
			}
			fmt.Fprintf(&text, " %s=%q", name, value[:v])
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&text, " -> %q", target)
		case unix.S_IFREG:
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			if _, err := io.Copy(sum, f); err != nil {
				return err
			}
			if err := f.Close(); err != nil {
				return err
			}
		}
		_, err = io.WriteString(sum, text.String())
		return err
	}))
	return hex.EncodeToString(sum.Sum(nil))
}

// seal remembers a committed layer: at the end of the test, it must be what it was, unless it was removed.
func (b *bench) seal(name string) {
	b.t.Helper()
	dir := b.s.root.layer(b.id(name))
	sum := treeSum(b.t, dir)
	b.t.Cleanup(func() {
		if _, err := os.Lstat(dir); err == nil {
			require.Equal(b.t, sum, treeSum(b.t, dir), "layer %s has changed", name)
		}
	})
}
