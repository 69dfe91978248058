package copyup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// scene is a File with everything around it. Its lower has a hole between two pieces of data.
type scene struct {
	*File
	target *fakeTarget
	kernel *fakeKernel
	other  *File // source or target of CopyRange
	stats  *Stats
	opts   Options
	was    []byte
	modes  map[uint32]bool // of fallocate(2): the file system has it
}

const holeSize = 64 << 10

// stage is the directories of scenes that follow each other: the lowers stay, the uppers go.
type stage struct {
	main, other string
	unit        int64
	btrfs       bool // the options that a mount has there
	modes       map[uint32]bool
}

func newStage(t *testing.T) stage {
	t.Helper()
	return newStageIn(t, scratch(t), false)
}

// scratch is a directory in memory, if there is such: thousands of files are made and removed. What disks do differently is
// tested by TestModelOnFileSystems.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "copyup-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func newStageIn(t *testing.T, dir string, btrfs bool) stage {
	t.Helper()
	st := stage{filepath.Join(dir, "main"), filepath.Join(dir, "other"), testUnit, btrfs, modesOf(t, dir)}
	for _, d := range []string{st.main, st.other} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	lower := newTargetIn(t, st.main, oldContent()).path("lower")
	f, err := os.OpenFile(lower, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 5000, holeSize); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil { // what is not on the disk is not cloned
		t.Fatal(err)
	}
	return st
}

func oldContent() []byte {
	return append(append(pattern(5000, 3), make([]byte, holeSize)...), pattern(3000, 9)...)
}

func (st stage) scene(t *testing.T, w way, meta bool, above int64) *scene {
	t.Helper()
	s := &scene{was: oldContent(), kernel: &fakeKernel{way: w}, stats: new(Stats), modes: st.modes}
	s.target = newTargetIn(t, st.main, s.was)
	if meta {
		s.target.metacopy()
	}
	s.target.fail, s.target.loose = s.kernel.target, st.btrfs
	s.opts = Options{Unit: st.unit, PartialAbove: above, Stats: s.stats, Log: logTo(t), LooseNames: st.btrfs, StaleTails: st.btrfs}
	if w == byZeros {
		s.opts.Unit, s.target.whole = 0, true
	}
	s.File = newFile(s.target, Lower, s.options(), s.kernel)
	other := newTargetIn(t, st.other, pattern(9000, 77))
	other.whole = s.target.whole
	s.other = newFile(other, Lower, &Options{Unit: s.opts.Unit}, s.kernel)
	return s
}

// options are those of one more File, which may be changed for it.
func (s *scene) options() *Options {
	o := s.opts
	return &o
}

func logTo(t *testing.T) func(Target, string, ...any) {
	return func(_ Target, format string, args ...any) { t.Logf(format, args...) }
}

// testUnit is the block size of the file systems that the tests run on.
const testUnit = 4096

func newScene(t *testing.T, w way, meta bool) *scene {
	t.Helper()
	return newStage(t).scene(t, w, meta, DefaultPartialAbove)
}

// operation is something to do to a scene, and what the content is then.
type operation struct {
	name   string
	copies bool // the way of copying matters
	do     func(s *scene) error
	want   func(old []byte) []byte
	holes  bool // it needs what byZeros lacks
	syncs  bool // what it writes is durable
	steps  []step
}

// step is what the content may be also, after a failure or a kill between the calls of an operation.
type step struct {
	call string // the one that failed; "" for any
	want func(old []byte) []byte
}

func same(old []byte) []byte { return old }

func resized(size int) func([]byte) []byte {
	return func(old []byte) []byte {
		if size <= len(old) {
			return old[:size]
		}
		return append(bytes.Clone(old), make([]byte, size-len(old))...)
	}
}

func patched(p []byte, off int) func([]byte) []byte {
	return func(old []byte) []byte {
		n := resized(max(len(old), off+len(p)))(bytes.Clone(old))
		copy(n[off:], p)
		return n
	}
}

func writeOp(name string, p []byte, off int, mode SyncMode) operation {
	return operation{name: name, copies: true, do: func(s *scene) error {
		n, err := s.WriteAt(p, int64(off), mode)
		if err == nil && n != len(p) {
			return fmt.Errorf("short write of %d bytes without an error", n)
		}
		return err
	}, want: patched(p, off), syncs: mode != SyncNone}
}

func truncateOp(size int) operation {
	return operation{name: fmt.Sprintf("truncate %d", size), copies: true, do: func(s *scene) error { return s.Truncate(int64(size)) }, want: resized(size)}
}

func allocateOp(name string, mode uint32, off, n int64, want func([]byte) []byte, steps ...step) operation {
	return operation{name: name, copies: true, do: func(s *scene) error { return s.Allocate(mode, off, n) }, want: want, holes: true, steps: steps}
}

// zeroed makes zeros of what the file has of [off, end).
func zeroed(off, end int) func([]byte) []byte {
	return func(old []byte) []byte {
		n := bytes.Clone(old)
		clear(n[off:min(end, len(n))])
		return n
	}
}

func operations() []operation {
	const keep, zero = unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE
	return []operation{
		{name: "open write", do: openAndRead, want: same},
		{name: "complete", copies: true, do: func(s *scene) error { return s.Complete(context.Background()) }, want: same},
		{name: "write then sync", copies: true, do: func(s *scene) error {
			_, err := s.WriteAt(pattern(100, 200), 4990, SyncNone)
			return errors.Join(err, s.Sync(true))
		}, want: patched(pattern(100, 200), 4990), syncs: true},
		allocateOp("punch", unix.FALLOC_FL_PUNCH_HOLE|keep, 1000, 3000, zeroed(1000, 4000)),
		{name: "truncate down and up", copies: true, do: func(s *scene) error { return errors.Join(s.Truncate(1000), s.Truncate(6000)) },
			want:  func(old []byte) []byte { return resized(6000)(resized(1000)(old)) },
			steps: []step{{"", resized(1000)}, {"", resized(6000)}}},
		writeOp("write", pattern(100, 200), 4990, SyncNone),
		writeOp("write beyond the end", pattern(100, 200), 100000, SyncData),
		writeOp("write with O_SYNC", pattern(100, 200), 4990, SyncAll),
		truncateOp(0), truncateOp(4097), truncateOp(30000), truncateOp(200000),
		allocateOp("allocate", 0, 0, 90000, resized(90000)),
		allocateOp("allocate and keep the size", keep, 60000, 40000, same),
		// In one unit, and then the size.
		allocateOp("zero range", zero, 73000, 20000, patched(make([]byte, 20000), 73000), step{"ftruncate", zeroed(73000, 93000)}),
		// Two pieces of data, one after the other, with a hole between them.
		allocateOp("zero range and keep the size", zero|keep, 1000, 71000, zeroed(1000, 72000), step{"", zeroed(1000, 5000)}),
		{name: "copy range to", copies: true, do: func(s *scene) error { return copyAll(s.other, s.File, 100, 2000, 3000) },
			want: patched(pattern(9000, 77)[100:3100], 2000)},
		{name: "copy range from", do: func(s *scene) error { return copyAll(s.File, s.other, 0, 0, 4000) }, want: same},
		{name: "read", do: func(s *scene) error {
			p := make([]byte, len(s.was)+10)
			if n, err := s.ReadAt(p, 0); err != nil || !bytes.Equal(p[:n], s.was) {
				return errors.Join(err, fmt.Errorf("read %d bytes", n))
			}
			return nil
		}, want: same},
		{name: "seek", do: func(s *scene) error { _, err := s.Seek(0, unix.SEEK_HOLE); return err }, want: same, holes: true},
	}
}

// copyAll is CopyRange until n bytes are copied.
func copyAll(src, dst *File, in, out, n int64) error {
	for n > 0 {
		c, err := src.CopyRange(dst, in, out, n)
		if err != nil {
			return err
		}
		if c == 0 {
			return errors.New("copy range ended early")
		}
		in, out, n = in+c, out+c, n-c
	}
	return nil
}

// openAndRead opens for writing, and reads: the lower is opened no sooner.
func openAndRead(s *scene) error {
	if err := s.Open(true); err != nil {
		return err
	}
	if _, err := s.ReadAt(make([]byte, 1), 0); err != nil {
		return errors.Join(err, s.Close(true))
	}
	return nil
}

// TestFailedSyncKeepsTheLimit: what a truncation took away does not show again when the map is read a second time.
func TestFailedSyncKeepsTheLimit(t *testing.T) {
	s := newStage(t).scene(t, byRange, false, 0)
	if err := openAndRead(s); err != nil {
		t.Fatal(err)
	}
	want := bytes.Clone(s.was)
	clear(want[10000:])
	for _, size := range []int64{10000, int64(len(want))} {
		if err := s.Truncate(size); err != nil {
			t.Fatal(err)
		}
	}
	failed := false
	for n := 1; n < 20 && !failed; n++ {
		s.kernel.arm(n, injections[0])
		failed = s.Sync(false) != nil
		s.kernel.arm(0, injection{})
	}
	if !failed {
		t.Fatal("no sync failed")
	}
	if got := content(t, s.File); !bytes.Equal(got, want) {
		t.Errorf("%d bytes, want %d, the first difference at %d", len(got), len(want), differsAt(got, want))
	}
	if err := s.Close(true); err != nil {
		t.Error(err)
	}
}

// TestNthCallFails fails, for every operation, every way of copying, every size policy and every n, the n-th system call or
// call of the Target in each way. The error must come out, or the operation have its effect all the same; what is read is
// old or new; the lower does not change; and the same operation succeeds when it is done again.
func TestNthCallFails(t *testing.T) {
	gc := debug.SetGCPercent(800)
	t.Cleanup(func() { debug.SetGCPercent(gc) }) // after the parallel ones
	for _, fs := range fileSystems {
		if fs.name == "ext4_1k" {
			continue // it is ext4
		}
		t.Run(fs.name, func(t *testing.T) {
			t.Parallel()
			switch {
			case fs.mkfs == nil && (raceEnabled || os.Geteuid() != 0):
				failEach(t, newStage(t))
			case raceEnabled:
				t.Skip("the race detector finds the same on each")
			default:
				failEach(t, newStageOn(t, fs))
			}
		})
	}
}

func failEach(t *testing.T, st stage) {
	t.Helper()
	for _, op := range operations() {
		for w := range numWays {
			if !op.copies && w != byRange || op.holes && w == byZeros {
				continue
			}
			for _, meta := range []bool{false, true} {
				for _, above := range []int64{0, DefaultPartialAbove} {
					if above != 0 && (w == byClone || w == byZeros) {
						continue // no difference
					}
					for _, in := range injections {
						if raceEnabled && in.err != nil && !errors.Is(in.err, unix.ENOSPC) {
							continue // the race detector looks for something else, and makes each call ten times as long
						}
						t.Run(fmt.Sprintf("%v/%v/metacopy=%v/above=%d/%v", op.name, w, meta, above, in.name), func(t *testing.T) {
							n := 1
							for failNth(t, st, op, w, meta, above, in, n) {
								n++
							}
							if n < 2 || n > 200 {
								t.Errorf("%d calls were failed", n-1)
							}
						})
					}
				}
			}
		}
	}
}

// failNth reports whether there was an n-th call.
func failNth(t *testing.T, st stage, op operation, w way, meta bool, above int64, in injection, n int) bool {
	t.Helper()
	s := st.scene(t, w, meta, above)
	s.kernel.zeroRange = true
	s.kernel.arm(n, in)
	err := op.do(s)
	failedIn := ""
	if s.kernel.hasFired() {
		failedIn = s.kernel.calls[n-1]
	}
	s.kernel.arm(0, injection{})
	if err == nil && op.syncs && !s.kernel.isSynced() {
		t.Fatalf("call %d (%v): neither an error nor a sync", n, failedIn)
	}
	if failedIn == "" {
		if err != nil {
			t.Fatalf("without a failure: %v", err)
		}
		return false
	}
	want := op.want(bytes.Clone(s.was))
	got := content(t, s.File)
	between := slices.ContainsFunc(op.steps, func(st step) bool {
		return (st.call == "" || st.call == failedIn) && bytes.Equal(got, st.want(s.was))
	})
	switch {
	case err == nil && !bytes.Equal(got, want):
		t.Fatalf("call %d (%v) failed, the operation did not, and the content is wrong", n, failedIn)
	case err == nil:
	case in.err == nil:
		t.Fatalf("short count of call %d (%v): %v", n, failedIn, err)
	case !errors.Is(err, in.err):
		t.Fatalf("call %d (%v): got %v, want %v", n, failedIn, err, in.err)
	case errors.Is(in.err, unix.EINTR) && failedIn[0] >= 'a':
		t.Fatalf("call %d (%v) was not retried: %v", n, failedIn, err)
	case !bytes.Equal(got, s.was) && !bytes.Equal(got, want) && !between:
		t.Fatalf("call %d (%v) failed: content is neither old nor new", n, failedIn)
	}
	s.target.check(s.State())
	s.again(t, op, got)
	if err != nil {
		if err := op.do(s); err != nil {
			t.Fatalf("call %d (%v) failed, then the retry: %v", n, failedIn, err)
		}
		if got := content(t, s.File); !bytes.Equal(got, want) {
			t.Fatalf("call %d (%v) failed: content is wrong after the retry", n, failedIn)
		}
		s.target.check(s.State())
		s.again(t, op, want)
	}
	if all, _ := s.Opens(); all > 0 {
		if err := s.Close(true); err != nil {
			t.Fatal(err)
		}
	}
	s.target.checkClosed()
	if err := s.Err(); err != nil {
		t.Fatalf("call %d (%v) poisoned the file: %v", n, failedIn, err)
	}
	return true
}

// again compares what a new File, made from what is on the disk, reads: as after a kill.
func (s *scene) again(t *testing.T, op operation, want []byte) {
	t.Helper()
	fresh := newFile(s.target, s.target.reopened(), s.options(), s.kernel)
	if got := content(t, fresh); !bytes.Equal(got, want) {
		t.Fatalf("%v: a restart shows another content (state %v, then %v)", op.name, s.State(), fresh.State())
	}
}

// TestCopyReallyTakesEachWay: the ways of the other tests are the ways that the copy takes, and holes stay holes.
func TestCopyReallyTakesEachWay(t *testing.T) {
	for _, c := range []struct {
		way                    way
		clones, ranges, writes int
		syncs                  int
		holes                  bool
	}{{byClone, 1, 0, 0, 0, false}, {byRange, 1, 2, 0, 1, true}, {byBuffer, 1, 1, 2, 1, true}, {byZeros, 1, 1, 1, 1, false}} {
		s := newScene(t, c.way, false)
		if err := s.Complete(context.Background()); err != nil {
			t.Fatal(err)
		}
		k := s.kernel
		if k.count("clone") != c.clones || k.count("copy_file_range") < c.ranges || k.count("pwrite") != c.writes {
			t.Errorf("%v: calls %v", c.way, k.calls)
		}
		if n := k.count("fdatasync") + k.count("fsync"); n != c.syncs {
			t.Errorf("%v: %d syncs before the marks go", c.way, n)
		}
		k.way = byRange
		if !bytes.Equal(content(t, s.File), s.was) {
			t.Errorf("%v: content differs", c.way)
		}
		if pos, err := s.Seek(0, unix.SEEK_HOLE); err != nil || (pos < int64(len(s.was))) != c.holes {
			t.Errorf("%v: first hole at %d of %d, %v", c.way, pos, len(s.was), err)
		}
	}
}
