package powercut_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// host is the file system that holds the disks, and can copy one at an instant.
type host struct {
	dir    string // scratch, a tmpfs
	root   string // where it is mounted
	fstype string // of the disks
	base   string // a disk with the lower directory on it
	seed   uint64
	lower  []lowerFile
}

// newHost makes a host and its first disk. All of it is gone at the end of the test.
func newHost(t *testing.T, fstype string) *host {
	dir, err := os.MkdirTemp(testRoot, fstype+"-")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{dir: dir, root: filepath.Join(dir, "host"), fstype: fstype, seed: runSeed}
	h.base, h.lower = filepath.Join(h.root, "base.img"), lowerFiles(h.seed)
	remember(h.seed, h.lower)
	image := filepath.Join(dir, "host.img")
	t.Cleanup(func() {
		if err := errors.Join(unmount(h.root), unmount(dir)); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	// In memory: what a flush of the machine's own disk costs while others use it would decide how many operations there are.
	if err := unix.Mount("powercut", dir, "tmpfs", 0, "mode=0755,size=6g"); err != nil {
		t.Fatal(err)
	}
	if err := makeImage(image, hostSize, "xfs"); err != nil {
		t.Fatal(err)
	}
	if err := mountImage(image, h.root, "xfs"); err != nil {
		t.Fatal(err)
	}
	if err := h.makeBase(); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) makeBase() (err error) {
	if err := makeImage(h.base, diskSize, h.fstype); err != nil {
		return err
	}
	return h.withDisk(h.base, func(disk string) error { return writeLower(disk, h.seed, h.lower) })
}

// withDisk mounts a disk while use runs.
func (h *host) withDisk(image string, use func(disk string) error) (err error) {
	disk := filepath.Join(h.dir, "disk")
	if err := mountImage(image, disk, h.fstype); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unmount(disk)) }()
	return use(disk)
}

// withOverlay mounts an overlay of a disk while use runs.
func (h *host) withOverlay(c command, disk, options string, use func(dir string) error) (err error) {
	dir := filepath.Join(h.dir, "mnt")
	s, err := c.mount(disk, dir, options)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	return use(dir)
}

// keep saves the disk of a cut after which something is wrong, and the operations, if that is wanted.
func (h *host) keep(t *testing.T, c cut, image string, history [][]event) {
	if os.Getenv(envKeep) == "" {
		return
	}
	to := filepath.Join(testRoot, fmt.Sprintf("kept-%s-%s", h.fstype, filepath.Base(c.image)))
	var text bytes.Buffer
	for _, events := range history {
		for _, e := range events {
			when := "not begun"
			switch {
			case e.done != 0 && e.done < c.before:
				when = "done"
			case e.start <= c.after:
				when = "under way"
			}
			fmt.Fprintf(&text, "%-9s %d..%d %v\n", when, e.start, e.done, e.op)
		}
	}
	if err := errors.Join(copySparse(image, to), os.WriteFile(to+".ops", text.Bytes(), 0o600)); err != nil {
		t.Error(err)
		return
	}
	t.Logf("kept: %s", to)
}
