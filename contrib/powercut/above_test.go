package powercut_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// TestSyncedInNewDirectory copies directories up and makes others while the file system commits, syncs a file in each, and cuts the power
// before the next commit: a directory that the commit found on its way to its name must have it, and the file in it what was
// synced. One round in three or so meets such a commit.
func TestSyncedInNewDirectory(t *testing.T) {
	needRoot(t)
	c := theBinary(t)
	const dirs, rounds = 100, 12
	name := func(i int) string { return fmt.Sprintf("d%d/f", i) }
	isNew := func(i int) bool { return i%4 > 1 } // others are copied up
	for _, fstype := range fileSystems() {
		t.Run(fstype, func(t *testing.T) {
			h := newHost(t, fstype)
			for round := range rounds {
				prepare := func(lower string) (err error) {
					for i := range dirs {
						if isNew(i) {
							continue
						}
						path := filepath.Join(lower, name(i))
						err = errors.Join(err, os.Mkdir(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("old"), 0o600))
					}
					return err
				}
				do := func(disk, dir string) error {
					var g errgroup.Group
					g.Go(func() error {
						time.Sleep(time.Duration(1+round/len(syncs)) * 2 * time.Millisecond)
						return syncFileSystem(disk)
					})
					for first := range 2 {
						g.Go(func() (err error) {
							for i := first; i < dirs; i += 2 {
								if d := filepath.Dir(filepath.Join(dir, name(i))); isNew(i) {
									err = errors.Join(err, os.Mkdir(d, 0o700))
								} else {
									err = errors.Join(err, os.Chmod(d, 0o700))
								}
							}
							return err
						})
					}
					err := g.Wait()
					for i := range dirs {
						err = errors.Join(err, syncs[round%len(syncs)](filepath.Join(dir, name(i))))
					}
					return err
				}
				err := h.cutAfter(c, prepare, do, func(dir string) error {
					for i := range dirs {
						text, err := os.ReadFile(filepath.Join(dir, name(i)))
						if err != nil {
							return err
						}
						if string(text) != "new" {
							t.Errorf("round %d: %s has %q, %q was synced (%d)", round, name(i), text, "new", round%len(syncs))
						}
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// syncs are ways to make a file say "new" for good.
var syncs = []func(path string) error{
	func(path string) error { return errors.Join(writeNew(path, 0), syncPath(path)) },
	func(path string) error { return writeNew(path, unix.O_SYNC) },
	func(path string) error { // by a mapping, of a file that is in the upper as a whole
		if err := writeNew(path, 0); err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }() // what matters is synced
		m, err := unix.Mmap(int(f.Fd()), 0, len("new"), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		copy(m, "new")
		return errors.Join(unix.Msync(m, unix.MS_SYNC), unix.Munmap(m))
	},
	func(path string) error { // by another name, which is synced with the directory
		other := path + ".new"
		return errors.Join(os.WriteFile(other, []byte("new"), 0o600), syncPath(other), os.Rename(other, path), syncPath(filepath.Dir(path)))
	},
}

// writeNew writes to a file.
func writeNew(path string, flags int) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|flags, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString("new")
	return errors.Join(err, f.Close())
}

// syncFileSystem is syncfs(2).
func syncFileSystem(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// cutAfter prepares the lower directory of a fresh disk, runs do in an overlay of it, cuts the power, and gives check the overlay of
// what is left.
func (h *host) cutAfter(c command, prepare func(lower string) error, do func(disk, dir string) error, check func(dir string) error) (err error) {
	image, copied := filepath.Join(h.root, "disk.img"), filepath.Join(h.root, "cut.img")
	if err := clone(h.base, image); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(image)) }()
	if err := h.withDisk(image, func(disk string) error { return prepare(filepath.Join(disk, "lower")) }); err != nil {
		return err
	}
	err = h.withDisk(image, func(disk string) error {
		return h.withOverlay(c, disk, "", func(dir string) error {
			if err := do(disk, dir); err != nil {
				return err
			}
			return clone(image, copied)
		})
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(copied)) }()
	return h.withDisk(copied, func(disk string) error {
		if err := c.check(disk); err != nil {
			return err
		}
		return h.withOverlay(c, disk, "", check)
	})
}
