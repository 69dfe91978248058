package copyup

import (
	"bytes"
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
	}{
		"small hole":      {punch, 10_000, 20_000, UpperShared, 2 * testUnit, 7 * testUnit},
		"hole in a unit":  {punch, 10_000, 100, UpperShared, testUnit, testUnit},
		"large hole":      {punch, 10_000, size - 20_000, Upper, 8 * testUnit, 8 * testUnit},
		"all of it":       {punch, 0, size, Upper, 0, 0},
		"hole at the end": {punch, size - 10_000, 1 << 20, UpperShared, testUnit, 4 * testUnit},
		"zeros":           {zero, 10_000, 20_000, UpperShared, 2 * testUnit, 7 * testUnit},
		"zeros at 0":      {zero, 0, 2 * testUnit, UpperShared, 0, 2 * testUnit},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			target, stats := newTargetIn(t, dir, lower), new(Stats)
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
