package powercut_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// cutsPerLoad is how many cuts one load from a fresh disk gets.
const cutsPerLoad = 6

// forgetsWhiteouts are file systems that keep the new name of a file that was renamed and fsynced, and take its old name
// away, but not the whiteout that the same RENAME_WHITEOUT left there: the lower file shows again. The kernel's overlayfs
// has the same on them, and more: POWERCUT_BINARY=kernel POWERCUT_STRICT=1. Nor do they take a name away from a file that was replaced
// there, if the file that replaced it was renamed again: it shows as the last commit of the whole file system had it, whatever
// was synced of it since.
var forgetsWhiteouts = map[string]bool{"btrfs": true}

// truncatesInSteps are file systems that cut off a large file's data from the end, in several transactions, each with the size that is left: a power
// cut leaves any of these sizes, of a plain file too (fs/btrfs/inode.c:btrfs_truncate(), Linux 6.18; tried there with 16 MiB in pieces of 4 KiB).
var truncatesInSteps = map[string]bool{"btrfs": true}

// fileSystems are those that are tested.
func fileSystems() []string {
	if s := os.Getenv(envFS); s != "" {
		return strings.Split(s, ",")
	}
	return []string{"ext4", "xfs", "btrfs"}
}

// cut is one copy of the disk.
type cut struct {
	n             int
	image         string
	before, after int64 // when the copying began and when it had ended
}

// TestPowerCut cuts the power at random instants and compares what is left.
func TestPowerCut(t *testing.T) {
	needRoot(t)
	c := theBinary(t)
	for _, fstype := range fileSystems() {
		t.Run(fstype, func(t *testing.T) {
			began := time.Now()
			h := newHost(t, fstype)
			first, cuts, ops := count(t, envFirst, 0)/cutsPerLoad*cutsPerLoad, count(t, envCuts, 24), 0
			for n := first; n < first+cuts && !t.Failed(); n += cutsPerLoad {
				ops += h.powerCuts(t, c, n, min(cutsPerLoad, first+cuts-n))
			}
			t.Logf("%s: %d cuts, %d operations, %v", fstype, cuts, ops, time.Since(began).Round(time.Second))
		})
	}
}

// loads are the mount options of one load after the other: as it comes; each file copied in part; what is done in the background done at
// once, so that cuts fall into it; and the kernel's writeback cache.
var loads = []string{"", ",partial_above=0", ",settle_after=200ms,complete_hot=100ms,partial_above=0,stream=16K", ",io=writeback"}

// lasting are those of which all that was written is kept when the server is killed; of the others, what was asked of the server.
var lasting, requested = loads[:3], loads[3:]

// loadOptions are the mount options of the n-th of these loads.
func loadOptions(c command, loads []string, n int) string {
	if !c.partial {
		return ""
	}
	return loads[n%len(loads)]
}

// powerCuts runs one load on a fresh disk, copies the disk meanwhile, and checks the copies after it.
func (h *host) powerCuts(t *testing.T, c command, first, cuts int) (ops int) {
	image := filepath.Join(h.root, "disk.img")
	if err := clone(h.base, image); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.Remove(image) }() // with the host, otherwise
	options := loadOptions(c, loads, first/cutsPerLoad)
	var made []cut
	var history [][]event
	err := h.withDisk(image, func(disk string) error {
		return h.withOverlay(c, disk, options, func(dir string) (err error) {
			made, history, err = h.cutLoad(disk, dir, image, first, cuts)
			return err
		})
	})
	if err != nil {
		t.Errorf("seed %d, cuts from %d on, options %q: the load: %v", h.seed, first, options, err)
	}
	for _, events := range history {
		ops += len(events)
	}
	for _, cut := range made {
		untouched := cut.image + ".untouched" // the check mounts the copy and so changes it
		if os.Getenv(envKeep) != "" {
			if err := clone(cut.image, untouched); err != nil {
				t.Fatal(err)
			}
		}
		for _, w := range h.checkCut(c, cut, history, options) {
			t.Errorf("%s=%d, %s, cut %d, options %q: %s", envSeed, h.seed, h.fstype, cut.n, options, w)
		}
		if t.Failed() {
			h.keep(t, cut, untouched, history)
		}
		_ = os.Remove(untouched) // there is one only if it may be kept
		if err := os.Remove(cut.image); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			break
		}
	}
	return ops
}

// cutLoad runs the workers on a mount and makes the copies.
func (h *host) cutLoad(disk, dir, image string, first, cuts int) (made []cut, history [][]event, err error) {
	r := rand.New(rand.NewPCG(h.seed, uint64(first)))
	w := newWorld(h.seed, keepsNothing, h.lower)
	// Each load has other operations: their numbers are part of what they are made from.
	l, err := startLoad(w.jobs(dir, firstOp*uint32(1+first), w.owner()))
	if err != nil {
		return nil, nil, err
	}
	stopKicks := kick(disk, r.Uint64())
	for n := first; n < first+cuts && err == nil; n++ {
		time.Sleep(time.Duration(50+r.IntN(700)) * time.Millisecond)
		c := cut{n: n, image: filepath.Join(h.root, fmt.Sprintf("cut-%d.img", n)), before: now()}
		if err = clone(image, c.image); err == nil {
			c.after = now()
			made = append(made, c)
		}
	}
	stopKicks()
	err = errors.Join(err, l.stop(forever))
	return made, l.history(), err
}

// checkCut is what is wrong with one copy.
func (h *host) checkCut(c command, cut cut, history [][]event, options string) (wrong []string) {
	w := newWorld(h.seed, keepsNothing, h.lower)
	w.steps = truncatesInSteps[h.fstype]
	if forgetsWhiteouts[h.fstype] && os.Getenv(envStrict) == "" {
		w.forgetful(h.lower)
	}
	w.replay(history, cut.before, cut.after)
	err := h.withDisk(cut.image, func(disk string) error {
		if err := c.check(disk); err != nil {
			wrong = append(wrong, err.Error())
		}
		found := tree{}
		if err := h.withOverlay(c, disk, options, func(dir string) (err error) { found, err = readTree(dir); return err }); err != nil {
			return err
		}
		names, _ := w.check(found)
		wrong = append(wrong, names...)
		lower, err := readTree(filepath.Join(disk, "lower"))
		if err == nil {
			wrong = append(wrong, checkLower(h.seed, h.lower, lower)...)
		}
		return err
	})
	if err != nil {
		wrong = append(wrong, err.Error())
	}
	return wrong
}
