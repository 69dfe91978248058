package copyup

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fileSystem is one that uppers are on.
type fileSystem struct {
	name string
	mkfs []string // nil: needs no device
}

// fileSystems are each made on a loop device of its own. xfs and btrfs can reflink.
var fileSystems = []fileSystem{
	{"ext4", []string{"mkfs.ext4", "-q", "-b", "4096"}},
	{"ext4_1k", []string{"mkfs.ext4", "-q", "-b", "1024"}},
	{"xfs", []string{"mkfs.xfs", "-q", "-m", "reflink=1"}},
	{"btrfs", []string{"mkfs.btrfs", "-q"}},
	{"tmpfs", nil},
}

// newStageOn gives a stage on a new file system, with the options that a mount has there and the unit that it finds.
func newStageOn(t *testing.T, fs fileSystem) stage {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loop devices need root")
	}
	dir := mountFileSystem(t, fs.name, fs.mkfs)
	probe, err := os.Create(filepath.Join(dir, "probe"))
	if err != nil {
		t.Fatal(err)
	}
	unit, err := ProbeUnit(probe)
	if err := probe.Close(); err != nil {
		t.Fatal(err)
	}
	want := int64(testUnit)
	if fs.name == "ext4_1k" {
		want = 1024
	}
	if err != nil || unit != want {
		t.Fatalf("unit %d, %v; want %d", unit, err, want)
	}
	st := newStageIn(t, dir, fs.name == "btrfs")
	st.unit = unit
	return st
}

// mountFileSystem gives a directory on a new file system, which goes with the test.
func mountFileSystem(t *testing.T, name string, mkfs []string, options ...string) string {
	t.Helper()
	dir := t.TempDir()
	at := filepath.Join(dir, "mnt")
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	args := []string{"-t", "tmpfs", "-o", "size=256m", "tmpfs", at}
	if mkfs != nil {
		image := filepath.Join(dir, "image")
		if err := os.WriteFile(image, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(image, 400<<20); err != nil {
			t.Fatal(err)
		}
		run(t, mkfs[0], append(mkfs[1:], image)...)
		args = []string{"-o", strings.Join(append(options, "loop"), ","), image, at}
	}
	run(t, "mount", args...)
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", name, err)
		}
	})
	return at
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// TestModelOnFileSystems is TestModel on each file system that uppers are on, with the unit that is found there.
func TestModelOnFileSystems(t *testing.T) {
	for _, fs := range fileSystems {
		t.Run(fs.name, func(t *testing.T) {
			t.Parallel()
			runModel(t, newStageOn(t, fs), modelSeeds(t, []uint64{11, 12}), modelOps(t, 3000))
		})
	}
}

// TestReflink: on a file system that can share blocks, the first write fault leaves nothing in the lower and copies nothing. On btrfs the
// file keeps its mark until it was synced.
func TestReflink(t *testing.T) {
	onReflinking(t, func(t *testing.T, fs fileSystem, dir string) {
		var stats Stats
		target := newTargetIn(t, dir, pattern(300<<10, 1))
		target.loose = fs.name == "btrfs"
		f := New(target, Lower, &Options{Unit: testUnit, Stats: &stats, LooseNames: target.loose, StaleTails: target.loose})
		if _, err := f.WriteAt([]byte("x"), 100, SyncNone); err != nil {
			t.Fatal(err)
		}
		want := Upper
		if target.loose {
			want = UpperShared
		}
		target.check(want)
		if missing, err := f.Missing(); f.State() != want || missing != 0 || err != nil {
			t.Errorf("state %v, %d bytes missing, %v; want %v", f.State(), missing, err, want)
		}
		if err := f.Sync(false); err != nil {
			t.Fatal(err)
		}
		if f.State() != Upper || stats.Reflinked.Load() != 1 || stats.BytesCopied.Load() != 0 || stats.BytesCloned.Load() != 300<<10 {
			t.Errorf("state %v, %+v", f.State(), stats.Read())
		}
		if err := f.Truncate(100<<10 + 1); err != nil {
			t.Fatal(err)
		}
		target.check(Upper)
		target.checkClosed()
	})
}

// onReflinking runs f in a directory of each file system that shares blocks.
func onReflinking(t *testing.T, f func(t *testing.T, fs fileSystem, dir string)) {
	if os.Geteuid() != 0 {
		t.Skip("loop devices need root")
	}
	for _, fs := range fileSystems {
		if fs.name == "xfs" || fs.name == "btrfs" {
			t.Run(fs.name, func(t *testing.T) { f(t, fs, mountFileSystem(t, fs.name, fs.mkfs)) })
		}
	}
}

// TestDirtyLowerIsNotCloned: that would write all of it back first, and a copy-up waits for no disk.
func TestDirtyLowerIsNotCloned(t *testing.T) {
	onReflinking(t, func(t *testing.T, _ fileSystem, dir string) {
		for name, c := range map[string]struct {
			size  int
			write func(t *fakeTarget, lower []byte) error // of the lower
			dirty bool
		}{
			"written just now":  {300 << 10, func(*fakeTarget, []byte) error { return nil }, true},
			"on the disk":       {300 << 10, func(t *fakeTarget, _ []byte) error { t.syncLower(); return nil }, false},
			"large, on disk":    {2*dirtyLook + 100, func(t *fakeTarget, _ []byte) error { t.syncLower(); return nil }, false},
			"large, but an end": {2*dirtyLook + 100, rewriteEnd, true},
		} {
			cloned := true
			for try := 0; try < 20 && cloned; try++ { // somebody else may write it back meanwhile
				cloned = writeOfALower(t, dir, c.size, c.write)
				if !c.dirty {
					break
				}
			}
			if cloned == c.dirty {
				t.Errorf("%s: cloned: %t", name, cloned)
			}
		}
	})
}

// writeOfALower writes a byte to a lower file that write has left dirty, or not, and returns whether it was cloned.
func writeOfALower(t *testing.T, dir string, size int, write func(t *fakeTarget, lower []byte) error) (cloned bool) {
	t.Helper()
	var stats Stats
	lower := pattern(size, 1)
	// Another one: xfs begins at once to write back what was truncated before.
	if err := os.RemoveAll(filepath.Join(dir, "lower")); err != nil {
		t.Fatal(err)
	}
	target := newTargetIn(t, dir, lower)
	if err := errors.Join(os.Remove(target.path("lower")), os.WriteFile(target.path("lower"), lower, 0o644), write(target, lower)); err != nil {
		t.Fatal(err)
	}
	f := New(target, Lower, &Options{Unit: testUnit, Stats: &stats})
	if _, err := f.WriteAt([]byte("x"), 100, SyncNone); err != nil {
		t.Fatal(err)
	}
	cloned = stats.Reflinked.Load() != 0
	want := UpperShared
	if cloned {
		want = Upper
	}
	if f.State() != want {
		t.Errorf("cloned: %t, state %v, %+v", cloned, f.State(), stats.Read())
	}
	target.check(want)
	if err := f.Complete(t.Context()); err != nil {
		t.Fatal(err)
	}
	target.check(Upper)
	target.checkClosed()
	return cloned
}

// rewriteEnd leaves the last bytes of a lower that is on the disk to be written back.
func rewriteEnd(t *fakeTarget, lower []byte) error {
	t.syncLower()
	f, err := os.OpenFile(t.path("lower"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	end := len(lower) - 50
	_, err = f.WriteAt(lower[end:], int64(end))
	return errors.Join(err, f.Close())
}

// TestTruncationReachesTheDisk: what a truncation cuts off within a block is not left there on btrfs, to come back with a larger size after
// a power cut. Crash: the file system commits what is its own (commit=1), and not the data that was written last.
func TestTruncationReachesTheDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("loop devices need root")
	}
	dir := mountFileSystem(t, "btrfs", []string{"mkfs.btrfs", "-q"}, "commit=1")
	target := newTargetIn(t, dir, bytes.Repeat([]byte("L"), 64<<10))
	f := New(target, Lower, &Options{Unit: testUnit, StaleTails: true})
	if _, err := f.WriteAt([]byte("x"), 100, SyncNone); err != nil {
		t.Fatal(err)
	}
	const size, grown = 20000, 60000
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(false); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("y"), size, SyncNone); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(grown); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2500 * time.Millisecond) // for the commit: the data is written back after 30 s
	image := filepath.Join(t.TempDir(), "copy")
	run(t, "cp", "--sparse=always", filepath.Join(filepath.Dir(dir), "image"), image)
	run(t, "umount", dir)
	run(t, "mount", "-o", "loop", image, dir)
	data, err := os.ReadFile(target.path("upper"))
	if err != nil {
		t.Fatal(err)
	}
	for i, b := range data[min(len(data), size+1):] {
		if b != 0 {
			t.Fatalf("size %d: byte %d is %q", len(data), size+1+i, b)
		}
	}
	if len(data) != grown {
		t.Errorf("size %d after the power cut: the commit came late, and the test says nothing", len(data))
	}
}
