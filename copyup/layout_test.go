package copyup

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestZerosCostWhatTheyCover: a small hole or range of zeros in a partial file is written, and copies the two units that it cuts; a large hole
// completes the rest of the file.
func TestZerosCostWhatTheyCover(t *testing.T) {
	const size = 1 << 20
	lower := pattern(size, 5)
	punch, zero := uint32(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE), uint32(unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE)
	for name, c := range map[string]struct {
		mode    uint32
		off, n  int64
		state   State
		most    uint64 // bytes copied
		inUpper int64  // bytes at most
		sparse  bool   // the lower has data in its first and its last 100,000 bytes alone
	}{
		"sparse, small hole":  {punch, 10_000, 20_000, UpperShared, 2 * testUnit, 7 * testUnit, true},
		"sparse, in the hole": {punch, 200_000, 500_000, UpperShared, 0, 0, true},
		"sparse, most of it":  {punch, 10_001, size - 20_001, Upper, 8 * testUnit, 8 * testUnit, true},
		"sparse, a half":      {punch, 0, size / 2, UpperShared, testUnit, 100_000, true},
		"sparse, zeros":       {zero, 50_000, size - 60_000, UpperShared, 2 * testUnit, 150_000, true},
		"small hole":          {punch, 10_000, 20_000, UpperShared, 2 * testUnit, 7 * testUnit, false},
		"hole in a unit":      {punch, 10_000, 100, UpperShared, testUnit, testUnit, false},
		"large hole":          {punch, 10_000, size - 20_000, Upper, 8 * testUnit, 8 * testUnit, false},
		"all of it":           {punch, 0, size, Upper, 0, 0, false},
		"hole at the end":     {punch, size - 10_000, 1 << 20, UpperShared, testUnit, 4 * testUnit, false},
		"zeros":               {zero, 10_000, 20_000, UpperShared, 2 * testUnit, 7 * testUnit, false},
		"zeros at 0":          {zero, 0, 2 * testUnit, UpperShared, 0, 2 * testUnit, false},
	} {
		t.Run(name, func(t *testing.T) {
			lower := bytes.Clone(lower)
			if c.sparse {
				clear(lower[100_000 : size-100_000])
			}
			target, stats := newTargetIn(t, t.TempDir(), lower), new(Stats)
			if c.sparse {
				punchOut(t, target.path("lower"), 100_000, size-200_000)
			}
			f := New(target, Lower, &Options{Unit: testUnit, Stats: stats, Log: logTo(t)})
			if err := f.Open(true); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close(true) }()
			if err := f.Allocate(c.mode, c.off, c.n); err != nil {
				t.Fatal(err)
			}
			want := bytes.Clone(lower)
			clear(want[c.off:min(c.off+c.n, size)])
			again := New(target, target.state(), &Options{Unit: testUnit, Stats: new(Stats)})
			for _, f := range []*File{f, again} {
				got := make([]byte, size+1)
				if n, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got[:n], want) {
					t.Errorf("%d bytes, %v, the first difference at %d", n, err, differsAt(got[:n], want))
				}
			}
			if f.State() != c.state {
				t.Errorf("state %v, want %v", f.State(), c.state)
			}
			if n := stats.BytesCopied.Load(); n > c.most {
				t.Errorf("%d bytes were copied, want at most %d", n, c.most)
			}
			var st unix.Stat_t
			if err := unix.Stat(target.path("upper"), &st); err != nil || st.Size != size || st.Blocks*512 > c.inUpper+testUnit {
				t.Errorf("size %d, %d bytes in the upper, want at most %d (%v)", st.Size, st.Blocks*512, c.inUpper, err)
			}
		})
	}
}

func punchOut(t *testing.T, path string, off, n int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestZerosThatFail: a range that the file system refuses leaves the file as it was; one that is zeros already, and only can't become a hole, is
// none that failed.
func TestZerosThatFail(t *testing.T) {
	lower := pattern(1<<20, 5)
	punch := uint32(unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE)
	t.Run("too large", func(t *testing.T) {
		f := New(newTargetIn(t, t.TempDir(), lower), Lower, &Options{Unit: testUnit, Log: logTo(t)})
		for _, off := range []int64{10_000, 0} {
			want := bytes.Clone(lower)
			err := f.Allocate(punch, off, 1<<62)
			if err == nil { // some have no limit
				clear(want[off:])
			}
			if got := content(t, f); err != nil && !errors.Is(err, unix.EFBIG) || !bytes.Equal(got, want[:len(got)]) {
				t.Errorf("%v, the first difference at %d", err, differsAt(got, want))
			}
		}
	})
	t.Run("no hole", func(t *testing.T) {
		s := newStage(t).scene(t, byRange, false, 0)
		calls := 0
		s.kernel.onCall = func(name string) {
			if name == "fallocate" {
				if calls++; s.State() == Upper {
					s.kernel.onCall = nil
					s.kernel.arm(1, injection{"ENOSPC", unix.ENOSPC})
				}
			}
		}
		if err := s.Allocate(punch, 0, int64(len(s.was))-testUnit); err != nil {
			t.Fatal(err)
		}
		if !s.kernel.hasFired() {
			t.Fatalf("no call failed of %d", calls)
		}
		want := bytes.Clone(s.was)
		clear(want[:len(want)-testUnit])
		if got := content(t, s.File); !bytes.Equal(got, want) {
			t.Errorf("the first difference at %d", differsAt(got, want))
		}
	})
}
