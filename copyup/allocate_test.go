package copyup

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// plainModes are all of fallocate(2) (Linux 6.18).
var plainModes = []uint32{
	0, unix.FALLOC_FL_KEEP_SIZE,
	unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE,
	unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE,
	unix.FALLOC_FL_UNSHARE_RANGE, unix.FALLOC_FL_UNSHARE_RANGE | unix.FALLOC_FL_KEEP_SIZE,
	unix.FALLOC_FL_COLLAPSE_RANGE, unix.FALLOC_FL_INSERT_RANGE, unix.FALLOC_FL_WRITE_ZEROES,
}

// modesOf asks the file system of a directory, with a plain file.
func modesOf(t *testing.T, dir string) map[uint32]bool {
	t.Helper()
	has := make(map[uint32]bool)
	for _, mode := range plainModes {
		f, err := os.CreateTemp(dir, "modes-")
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.Write(make([]byte, 3*testUnit))
		errMode := unix.Fallocate(int(f.Fd()), mode, testUnit, testUnit)
		if err = errors.Join(err, f.Close(), os.Remove(f.Name())); err != nil || errMode != nil && !errors.Is(errMode, unix.EOPNOTSUPP) {
			t.Fatal(err, errMode)
		}
		has[mode] = errMode == nil
	}
	return has
}

// TestAllocateIsThatOfAPlainFile: each mode of fallocate(2), on each file system, does to a file of each state what it does to a plain one, with
// the same error if it has one. So does each combination that is no mode.
func TestAllocateIsThatOfAPlainFile(t *testing.T) {
	const size = 10*testUnit + 100
	ranges := []struct{ off, n int64 }{
		{2 * testUnit, 3 * testUnit}, {testUnit + 10, 3 * testUnit}, {9 * testUnit, 4 * testUnit}, {12 * testUnit, testUnit}, {0, 20 * testUnit},
	}
	for _, fs := range fileSystems {
		t.Run(fs.name, func(t *testing.T) {
			t.Parallel()
			st := newStageOn(t, fs)
			p := &plainTwin{t: t, st: st, dir: filepath.Join(filepath.Dir(st.main), "twin"), lower: pattern(size, 5)}
			if err := os.Mkdir(p.dir, 0o755); err != nil {
				t.Fatal(err)
			}
			for _, p.clone = range []bool{false, true} {
				if p.clone && fs.name != "xfs" && fs.name != "btrfs" {
					break
				}
				for _, unit := range []int{-1, 0, 6, 11} {
					for _, mode := range plainModes {
						for _, r := range ranges {
							p.allocate(unit, mode, r.off, r.n)
						}
					}
				}
			}
			if p.clone = false; fs.name != "ext4" {
				return // the others get not to see what is no mode
			}
			for mode := range uint32(1 << 9) {
				if !slices.Contains(plainModes, mode) {
					p.allocate(0, mode, ranges[0].off, ranges[0].n)
				}
			}
		})
	}
}

// plainTwin is a file and a plain one beside it.
type plainTwin struct {
	t     *testing.T
	st    stage
	dir   string
	lower []byte
	clone bool // the first write shares the blocks of the lower
}

// allocate has two files with one unit written, of which that with this number is the first; all of them for -1. Then it compares.
func (p *plainTwin) allocate(unit int, mode uint32, off, n int64) {
	p.t.Helper()
	target := newTargetIn(p.t, p.dir, p.lower)
	target.loose = p.st.btrfs
	stats := new(Stats)
	stats.noClone.Store(!p.clone)
	f := New(target, Lower, &Options{Unit: p.st.unit, LooseNames: p.st.btrfs, StaleTails: p.st.btrfs, Stats: stats})
	plain, err := os.Create(target.path("plain"))
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = plain.Close() }()
	_, err = plain.Write(p.lower)
	data, at := pattern(testUnit, 99), int64(unit)*testUnit
	if unit < 0 {
		err, at = errors.Join(err, f.Complete(context.Background())), 0
	}
	_, err1 := plain.WriteAt(data, at)
	_, err2 := f.WriteAt(data, at, SyncNone)
	if err = errors.Join(err, err1, err2); err != nil {
		p.t.Fatal(err)
	}
	state := f.State()
	want := unix.Fallocate(int(plain.Fd()), mode, off, n)
	got := f.Allocate(mode, off, n)
	if got == nil && errors.Is(want, unix.EOPNOTSUPP) && mode&unix.FALLOC_FL_ZERO_RANGE != 0 && state == UpperShared && off+n <= int64(len(p.lower)) {
		_, want = plain.WriteAt(make([]byte, n), off) // tmpfs has no such mode: zeros are written where the file is partial
	}
	if (want == nil) != (got == nil) || want != nil && !errors.Is(got, want) {
		p.t.Errorf("state %v, unit %d, mode %#x, %d+%d: %v, a plain file has %v", state, unit, mode, off, n, got, want)
		return
	}
	twin, err := os.ReadFile(plain.Name())
	if err != nil {
		p.t.Fatal(err)
	}
	again := New(target, target.state(), &Options{Unit: p.st.unit})
	for _, f := range []*File{f, again} {
		if c := content(p.t, f); !bytes.Equal(c, twin) {
			p.t.Errorf("state %v, unit %d, mode %#x, %d+%d (%v): %d bytes, a plain file has %d, the first difference at %d",
				state, unit, mode, off, n, want, len(c), len(twin), differsAt(c, twin))
		}
	}
	target.check(f.State())
}

// TestUnshare: FALLOC_FL_UNSHARE_RANGE gives a file blocks of its own where the file system (xfs) has that, and changes nothing that it shows but
// the size, as without the flag. The others refuse it, and it changes nothing.
func TestUnshare(t *testing.T) {
	const size, n, shared = 192 << 10, 64 << 10, 0x2000 // FIEMAP_EXTENT_SHARED
	lower := pattern(size, 5)
	for _, fs := range fileSystems {
		t.Run(fs.name, func(t *testing.T) {
			st := newStageOn(t, fs)
			target := newTargetIn(t, filepath.Dir(st.main), lower)
			target.loose = st.btrfs
			f := New(target, Lower, &Options{Unit: st.unit, LooseNames: st.btrfs, StaleTails: st.btrfs})
			for _, c := range []struct {
				mode   uint32
				off, n int64
				want   []byte
			}{
				{unix.FALLOC_FL_UNSHARE_RANGE, 0, n, lower},
				{unix.FALLOC_FL_UNSHARE_RANGE | unix.FALLOC_FL_KEEP_SIZE, size - n, 2 * n, lower},
				{unix.FALLOC_FL_UNSHARE_RANGE, size, n, resized(size + n)(lower)},
			} {
				err := f.Allocate(c.mode, c.off, c.n)
				if fs.name == "xfs" && err != nil || fs.name != "xfs" && !errors.Is(err, unix.EOPNOTSUPP) {
					t.Fatalf("mode %#x at %d: %v", c.mode, c.off, err)
				}
				if err != nil {
					c.want = lower
				}
				if got := content(t, f); !bytes.Equal(got, c.want) {
					t.Errorf("mode %#x at %d: %d bytes, want %d, the first difference at %d", c.mode, c.off, len(got), len(c.want), differsAt(got, c.want))
				}
			}
			if fs.name != "xfs" {
				return
			}
			upper, err := os.Open(target.path("upper"))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = upper.Close() }()
			m := fiemap{length: size, flags: fiemapSync, count: fiemapExtents}
			if _, _, errno := unix.Syscall(unix.SYS_IOCTL, upper.Fd(), fsIocFiemap, uintptr(unsafe.Pointer(&m))); errno != 0 {
				t.Fatal(errno)
			}
			for _, e := range m.extents[:m.mapped] {
				if own := e.logical < n || e.logical >= size-n; (e.flags&shared == 0) != own {
					t.Errorf("%d bytes at %d: flags %#x", e.length, e.logical, e.flags)
				}
			}
		})
	}
}
