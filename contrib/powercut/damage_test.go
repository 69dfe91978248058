package powercut_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// victim is a block of a file that can be nothing but what a synced operation wrote, and that no size that the file may have cuts off.
type victim struct {
	name string
	off  int64
}

// victim finds one.
func (w *world) victim() (victim, bool) {
	for name, may := range w.names {
		if len(may) != 1 {
			continue
		}
		for id := range may {
			for _, p := range w.files[id].disk {
				off := (p.lo + blockSize - 1) / blockSize * blockSize
				if p.src.op != 0 && p.hi-off >= blockSize && w.files[id].leastSize() >= off+blockSize &&
					len(w.files[id].disk.within(off, off+blockSize)) == 1 {
					return victim{name, off}, true
				}
			}
		}
	}
	return victim{}, false
}

// chooseVictim finds one, and the cut after which it is.
func (h *host) chooseVictim(made []cut, history [][]event) (cut, victim, bool) {
	for _, c := range made {
		w := newWorld(h.seed, keepsNothing, h.lower)
		w.replay(history, c.before, c.after)
		if v, ok := w.victim(); ok {
			return c, v, true
		}
	}
	return cut{}, victim{}, false
}

// TestDamageIsFound damages copies of a disk after a cut: each damage must be found, and nothing in the copy without one.
func TestDamageIsFound(t *testing.T) {
	needRoot(t)
	c := theBinary(t)
	h := newHost(t, "ext4")
	image := filepath.Join(h.root, "disk.img")
	if err := clone(h.base, image); err != nil {
		t.Fatal(err)
	}
	var made []cut
	var history [][]event
	err := h.withDisk(image, func(disk string) error {
		return h.withOverlay(c, disk, "", func(dir string) (err error) {
			made, history, err = h.cutLoad(disk, dir, image, 1, 5)
			return err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	chosen, v, ok := h.chooseVictim(made, history)
	if !ok {
		t.Fatal("no block was certain after any cut")
	}
	for _, d := range []struct {
		name   string
		damage func(disk string) error
		wrong  string // what the check must say; "": nothing
	}{
		{"none", func(string) error { return nil }, ""},
		{"a synced block is zeros", func(disk string) error {
			return overwrite(filepath.Join(disk, "upper", v.name), v.off, make([]byte, blockSize))
		}, "which is zeros"},
		{"a synced upper is gone", func(disk string) error { return os.Remove(filepath.Join(disk, "upper", v.name)) }, v.name},
		{"a synced upper is cut off", func(disk string) error {
			return os.Truncate(filepath.Join(disk, "upper", v.name), v.off)
		}, v.name + ": not file"},
		{"a name from nowhere", func(disk string) error {
			return os.WriteFile(filepath.Join(disk, "upper", filepath.Dir(v.name), "nobody"), nil, 0o600)
		}, "nobody gave"},
		{"a byte of the lower", func(disk string) error {
			return overwrite(filepath.Join(disk, "lower/w0/big"), bigSize/3, []byte("x"))
		}, "LOWER changed"},
	} {
		t.Run(d.name, func(t *testing.T) {
			damaged := chosen
			damaged.image = filepath.Join(h.root, "damaged.img")
			defer func() {
				if err := os.Remove(damaged.image); err != nil {
					t.Error(err)
				}
			}()
			err := clone(chosen.image, damaged.image)
			if err == nil {
				err = h.withDisk(damaged.image, d.damage)
			}
			if err != nil {
				t.Fatal(err)
			}
			wrong := strings.Join(h.checkCut(c, damaged, history, ""), "\n")
			if d.wrong == "" && wrong != "" || !strings.Contains(wrong, d.wrong) {
				t.Errorf("damage at %s, offset %d: the check says %q, and nothing of %q", v.name, v.off, wrong, d.wrong)
			}
		})
	}
}

func overwrite(path string, off int64, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, off)
	return errors.Join(err, f.Close())
}
