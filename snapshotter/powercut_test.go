package snapshotter

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// disk is a file system of its own with the root of a bench on it, of which a copy is what a power cut leaves.
type disk struct {
	*bench
	fsType, image, dir string
}

// onDisks runs f on each file system that holds uppers, with metacopy files kept, and on others, whose type mkfs's options may follow.
func onDisks(t *testing.T, f func(t *testing.T, d *disk), others ...string) {
	for _, fsType := range append([]string{"ext4", "xfs", "btrfs"}, others...) {
		t.Run(fsType, func(t *testing.T) {
			outer := fuseBench(t)
			above := filepath.Dir(outer.root)
			name, options, _ := strings.Cut(fsType, " ")
			d := &disk{bench: outer, fsType: name, image: above + "/disk.img", dir: above + "/disk"}
			require.NoError(t, os.WriteFile(d.image, nil, 0o600))
			require.NoError(t, os.Truncate(d.image, 400<<20))
			run1(t, "mkfs."+name, append(strings.Fields(options), "-q", d.image)...)
			require.NoError(t, os.Mkdir(d.dir, 0o755))
			d.attach(d.image)
			t.Cleanup(func() { unmountBelow(t, d.dir) })
			inner := &bench{t: t, ctx: outer.ctx, root: d.dir + "/root", work: outer.work, cfg: outer.cfg, k: outer.k, server: outer.server}
			inner.cfg.Root, inner.cfg.KeepMetacopy = inner.root, true
			inner.open()
			d.bench = inner
			f(t, d)
			require.NoError(t, d.s.Close())
		})
	}
}

func (d *disk) attach(image string) {
	m := mount.Mount{Type: d.fsType, Source: image, Options: []string{"loop"}}
	require.NoError(d.t, m.Mount(d.dir))
}

// cut goes on with what is on the disk at this moment.
func (d *disk) cut() {
	run1(d.t, "cp", "--sparse=always", d.image, d.image+".cut")
	require.NoError(d.t, d.s.Close())
	d.server.kill(d.t)
	unmountBelow(d.t, d.dir)
	// btrfs takes no copy of a disk that it has.
	require.Eventually(d.t, func() bool {
		out, err := exec.Command("losetup", "-j", d.image).Output()
		return err == nil && strings.TrimSpace(string(out)) == ""
	}, 20*time.Second, 50*time.Millisecond)
	d.attach(d.image + ".cut")
	d.another()
	d.open()
}

// TestCommitIsDurable: what a commit has is there after a power cut, and can be built on.
func TestCommitIsDurable(t *testing.T) {
	onDisks(t, func(t *testing.T, d *disk) {
		data := strings.Repeat("0123456789abcdef", 1<<14)
		d.unsealedLayer("one", "", func(dir string) {
			write(t, dir+"/big", data)
			write(t, dir+"/d/gone", "x")
			write(t, dir+"/e/f/g", "x")
		})
		require.NoError(t, syncFileSystem(d.dir))
		c := d.container("c", "one")
		f, err := os.OpenFile(c+"/big", os.O_RDWR, 0)
		require.NoError(t, err)
		_, err = f.WriteAt([]byte("XX"), 100000)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		write(t, c+"/n/m/o", "new")
		require.NoError(t, os.Remove(c+"/d/gone"))
		require.NoError(t, os.Rename(c+"/e", c+"/e2"))
		require.NoError(t, os.Symlink("t", c+"/l"))
		require.NoError(t, d.s.Commit(d.ctx, "two", "c"))
		want := treeSum(t, d.s.root.layer(d.id("two")))
		_, err = d.s.Prepare(d.ctx, "c3", "two")
		require.NoError(t, err)
		d.cut()
		require.Equal(t, want, treeSum(t, d.s.root.layer(d.id("two"))))
		mounts, err := d.s.Mounts(d.ctx, "c3")
		require.NoError(t, err)
		requireFile(t, d.mounted(mounts)+"/n/m/o", "new")
		require.NoError(t, d.s.Cleanup(d.ctx))
	})
}

// TestRebootOnAFullDisk: what is there is mounted again, also if there is no room for anything new.
func TestRebootOnAFullDisk(t *testing.T) {
	onDisks(t, func(t *testing.T, d *disk) {
		d.unsealedLayer("one", "", func(dir string) { write(t, dir+"/big", strings.Repeat("x", 300000)) })
		c := d.container("c", "one")
		f, err := os.OpenFile(c+"/big", os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = f.WriteAt([]byte("mine"), 0)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		require.NoError(t, syncFileSystem(d.dir))
		filler := d.dir + "/filler"
		require.NoError(t, os.Mkdir(filler, 0o755))
		fillDisk(t, filler+"/1")
		for n := range 100 { // what was set aside for one file may be there for the next
			if os.WriteFile(fmt.Sprintf("%s/more%d", filler, n), []byte("x"), 0o644) != nil {
				break
			}
		}
		require.NoError(t, d.s.Close())
		unmountBelow(t, d.root)
		require.NoError(t, detach(c))
		d.another()
		d.open()
		mounts, err := d.s.Mounts(d.ctx, "c")
		require.NoError(t, err)
		c = d.mounted(mounts)
		requireFile(t, c+"/big", "mine"+strings.Repeat("x", 299996))
		require.NoError(t, errors.Join(os.RemoveAll(filler), syncFileSystem(d.dir)))
		write(t, c+"/later", "y")
		require.NoError(t, d.s.Commit(d.ctx, "two", "c"))
	})
}

// TestCommitSyncsWhatFsyncCannot: owner and mode of symlinks and special files that were on the disk before they were changed.
func TestCommitSyncsWhatFsyncCannot(t *testing.T) {
	onDisks(t, func(t *testing.T, d *disk) {
		d.unsealedLayer("one", "", func(dir string) { write(t, dir+"/big", "1") })
		c := d.container("c", "one")
		require.NoError(t, os.Symlink("target", c+"/link"))
		require.NoError(t, unix.Mkfifo(c+"/fifo", 0o644))
		require.NoError(t, syncFileSystem(d.dir)) // half a minute goes by
		require.NoError(t, os.Lchown(c+"/link", 7, 7))
		require.NoError(t, os.Chmod(c+"/fifo", 0o600))
		require.NoError(t, os.Lchown(c+"/fifo", 7, 7))
		require.NoError(t, d.s.Commit(d.ctx, "two", "c"))
		d.cut()
		v := d.view("v", "two")
		var link, fifo unix.Stat_t
		require.NoError(t, unix.Lstat(v+"/link", &link))
		require.NoError(t, unix.Lstat(v+"/fifo", &fifo))
		require.Equal(t, []uint32{7, 7, unix.S_IFIFO | 0o600}, []uint32{link.Uid, fifo.Uid, fifo.Mode})
	}, "ext4 -O ^has_journal")
}

// TestStaleMarks: the marks that a commit left which got no further are not those of the one that did, whatever the disk had.
func TestStaleMarks(t *testing.T) {
	onDisks(t, func(t *testing.T, d *disk) {
		data := strings.Repeat("0123456789abcdef", 1<<14)
		d.unsealedLayer("one", "", func(dir string) {
			write(t, dir+"/big", data)
			write(t, dir+"/gone", "x")
		})
		c := d.container("c", "one")
		write(t, c+"/mine", "3")
		scan, err := scanLayer(d.ctx, d.s.root.layer(d.id("c")), true)
		require.NoError(t, err)
		require.NoError(t, d.s.writeMarks(d.id("c"), scan.marks))
		require.NoError(t, syncFileSystem(d.dir)) // half a minute goes by
		require.NoError(t, os.Chmod(c+"/big", 0o600))
		require.NoError(t, os.Rename(c+"/big", c+"/big2"))
		require.NoError(t, d.s.Commit(d.ctx, "two", "c"))
		d.cut()
		marks, err := d.s.readMarks(d.id("two"))
		require.NoError(t, err)
		scan, err = scanLayer(d.ctx, d.s.root.layer(d.id("two")), true)
		require.NoError(t, err)
		scan.marks.Version = marksVersion
		require.Equal(t, scan.marks, marks)
		v := d.view("v", "two")
		requireFile(t, v+"/big2", data)
		require.NoFileExists(t, v+"/big")
	})
}
