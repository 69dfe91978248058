package copyup

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// writableLower is a Target with the worst bug that one can have.
type writableLower struct {
	*fakeTarget
	flags int
}

func (w writableLower) OpenLower() (*os.File, error) { return w.open("lower", w.flags) }

func TestWritableLowerIsRefused(t *testing.T) {
	for _, flags := range []int{os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_APPEND} {
		ft := newTarget(t, pattern(100, 1))
		f := New(writableLower{ft, flags}, Lower, &Options{Unit: testUnit})
		_, readErr := f.ReadAt(make([]byte, 10), 0)
		_, writeErr := f.WriteAt([]byte("x"), 0, SyncNone)
		for _, err := range []error{readErr, writeErr, f.WithLower(nil), f.Truncate(0), f.Complete(context.Background())} {
			if !errors.Is(err, ErrWritableLower) || !errors.Is(err, unix.EIO) {
				t.Errorf("flags %#x: got %v", flags, err)
			}
		}
		ft.check(Lower)
		ft.checkClosed()
	}
}

// badStage stages something that cannot be an upper.
type badStage struct {
	*fakeTarget
	name  string
	flags int
}

func (b badStage) Stage() (*os.File, error) {
	f, err := b.open(b.name, b.flags)
	b.staged, b.stages = f, b.stages+1
	return f, err
}

func TestBadStagedFileIsRefused(t *testing.T) {
	for _, c := range []struct {
		name  string
		flags int
	}{{"x", os.O_RDWR | os.O_CREATE | os.O_APPEND}, {"x", os.O_WRONLY | os.O_CREATE}, {"x", os.O_RDONLY | os.O_CREATE}, {".", os.O_RDONLY}} {
		ft := newTarget(t, pattern(100, 1))
		f := New(badStage{ft, c.name, c.flags}, Lower, &Options{Unit: testUnit})
		if _, err := f.WriteAt([]byte("x"), 0, SyncNone); !errors.Is(err, unix.EIO) {
			t.Errorf("%v: got %v", c, err)
		}
		ft.check(Lower)
		ft.checkClosed()
	}
}

// TestOnTheRealKernel goes once through a life with nothing faked but the Target.
func TestOnTheRealKernel(t *testing.T) {
	ft := newTarget(t, pattern(10000, 5))
	var stats Stats
	f := New(ft, Lower, &Options{Stats: &stats, Unit: testUnit})
	state := func(want State) {
		t.Helper()
		if got := f.State(); got != want {
			t.Fatalf("state %v, want %v", got, want)
		}
		ft.check(want)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(f.Open(false))
	state(Lower)
	must(f.Open(true))
	state(LowerShared)
	must(f.Close(true))
	must(f.Close(false))
	state(Lower)
	ft.checkClosed()
	if ft.stages != 0 || stats.Avoided.Load() != 1 {
		t.Fatalf("open for writing: %d stages, %d counted as avoided", ft.stages, stats.Avoided.Load())
	}
	if err := f.WithUpper(func(*os.File) error { return nil }); !errors.Is(err, ErrNoUpper) {
		t.Fatalf("WithUpper in Lower: %v", err)
	}
	must(f.Open(true))
	for _, mode := range []SyncMode{SyncNone, SyncData, SyncAll} {
		_, err := f.WriteAt([]byte("hello"), 20000, mode)
		must(err)
	}
	if stats.BytesCopied.Load()+stats.BytesCloned.Load() == 0 {
		state(UpperShared)
	}
	must(f.Complete(context.Background()))
	state(Upper)
	must(f.Sync(true))
	must(f.Sync(false))
	must(f.WithUpper(func(u *os.File) error { return u.Chmod(0o600) }))
	if got, want := content(t, f), patched([]byte("hello"), 20000)(pattern(10000, 5)); !bytes.Equal(got, want) {
		t.Fatal("content differs")
	}
	must(f.Close(true))
	state(Upper)
	ft.checkClosed()
	if stats.Faults.Load() != 1 || stats.BytesCopied.Load()+stats.BytesCloned.Load() < 10000 {
		t.Fatalf("faults %d, bytes %d", stats.Faults.Load(), stats.BytesCopied.Load())
	}
}

// TestTruncateCopiesNoMoreThanAWrite: of a large file the unit that is cut; a small one, which is not waited for; nothing for
// size 0.
func TestTruncateCopiesNoMoreThanAWrite(t *testing.T) {
	for _, meta := range []bool{false, true} {
		for _, above := range []int64{0, DefaultPartialAbove} {
			for _, c := range []struct{ size, copied int }{{0, 0}, {100, 100}, {5000 + holeSize, 5000}, {1 << 20, 8000}} {
				s := newStage(t).scene(t, byRange, meta, above)
				if err := s.Truncate(int64(c.size)); err != nil {
					t.Fatal(err)
				}
				got, want := int(s.stats.BytesCopied.Load()), Upper
				if c.size > 0 {
					want = UpperShared
				}
				if above == 0 {
					c.copied = min(c.copied, 1) // the unit that a size cuts
				} else if c.size > 0 {
					c.copied = 8000 // all of it
				}
				// SEEK_DATA rounds a piece of data up to blocks.
				if got < c.copied || got > c.copied+3*4096 || c.copied == 0 && got != 0 || s.kernel.count("fdatasync")+s.kernel.count("fsync") != 0 {
					t.Errorf("truncate to %d copied %d bytes, calls %v", c.size, got, s.kernel.calls)
				}
				if avoided := s.stats.Avoided.Load(); (avoided == 1) != (c.size == 0) {
					t.Errorf("truncate to %d counted %d avoided copies", c.size, avoided)
				}
				if s.State() != want {
					t.Errorf("truncate to %d: state %v", c.size, s.State())
				}
				s.target.check(want)
			}
		}
	}
}

func TestRefusalsCopyNothing(t *testing.T) {
	s := newScene(t, byRange, false)
	_, write := s.WriteAt([]byte("x"), -1, SyncNone)
	_, read := s.ReadAt(make([]byte, 1), -1)
	_, whence := s.Seek(0, io.SeekEnd)
	_, end := s.Seek(int64(len(s.was)), unix.SEEK_DATA)
	_, overlap := s.CopyRange(s.File, 0, 10, 20)
	_, overflow := s.CopyRange(s.other, 1<<62, 0, 1<<62+1<<61)
	for _, c := range []struct{ got, want error }{
		{write, unix.EINVAL}, {read, unix.EINVAL}, {whence, unix.EINVAL}, {end, unix.ENXIO}, {overlap, unix.EINVAL},
		{overflow, unix.EOVERFLOW}, {s.Truncate(-1), unix.EINVAL}, {s.Allocate(0, 0, 0), unix.EINVAL},
		{s.Allocate(0, -1, 1), unix.EINVAL}, {s.Allocate(unix.FALLOC_FL_PUNCH_HOLE, 0, 1), unix.EOPNOTSUPP},
		{s.Allocate(unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 1), unix.EOPNOTSUPP},
		{s.Allocate(unix.FALLOC_FL_INSERT_RANGE|unix.FALLOC_FL_KEEP_SIZE, 0, testUnit), unix.EOPNOTSUPP},
		{s.Allocate(unix.FALLOC_FL_COLLAPSE_RANGE|unix.FALLOC_FL_KEEP_SIZE, 0, testUnit), unix.EOPNOTSUPP},
		{s.Allocate(unix.FALLOC_FL_UNSHARE_RANGE|unix.FALLOC_FL_ZERO_RANGE, 0, testUnit), unix.EOPNOTSUPP},
		{s.Allocate(1<<20, 0, 1), unix.EOPNOTSUPP}, {s.Allocate(0, 1<<62, 1<<62+1<<61), unix.EFBIG},
		{s.Close(true), unix.EBADF}, {s.Close(false), unix.EBADF},
	} {
		if !errors.Is(c.got, c.want) {
			t.Errorf("got %v, want %v", c.got, c.want)
		}
	}
	if n, err := s.WriteAt(nil, 0, SyncNone); n != 0 || err != nil {
		t.Errorf("empty write: %d, %v", n, err)
	}
	if n, err := s.CopyRange(s.other, int64(len(s.was)), 0, 10); n != 0 || err != nil {
		t.Errorf("copy from the end: %d, %v", n, err)
	}
	if s.State() != Lower || s.other.State() != Lower || s.Sync(false) != nil || s.kernel.count("fsync") != 0 {
		t.Error("something was copied up or synced")
	}
	s.target.check(Lower)
	s.target.checkClosed()
}

func TestVolatileNeverSyncs(t *testing.T) {
	s := newScene(t, byRange, false)
	s.File.opts.Volatile = true
	if _, err := s.WriteAt([]byte("x"), 0, SyncAll); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Sync(false), s.Sync(true), s.Complete(context.Background())); err != nil {
		t.Fatal(err)
	}
	for _, c := range s.kernel.calls {
		if strings.Contains(c, "sync") || strings.Contains(c, "flags") {
			t.Errorf("call %v", c)
		}
	}
}

// TestLimiter: lower bytes beyond the limit never show, and are not copied.
func TestLimiter(t *testing.T) {
	s := newScene(t, byRange, false)
	s.target.metacopy()
	s.target.marks.limit = 1000
	f := newFile(s.target, Lower, s.options(), s.kernel)
	if got := content(t, f); !bytes.Equal(got, s.was[:1000]) {
		t.Errorf("%d bytes before the fault", len(got))
	}
	if pos, err := f.Seek(0, unix.SEEK_HOLE); pos != 1000 || err != nil {
		t.Errorf("hole at %d, %v", pos, err)
	}
	if _, err := f.Seek(1000, unix.SEEK_DATA); !errors.Is(err, unix.ENXIO) {
		t.Errorf("data beyond the limit: %v", err)
	}
	if err := f.Truncate(2000); err != nil {
		t.Fatal(err)
	}
	if got := content(t, f); !bytes.Equal(got, resized(2000)(s.was[:1000])) {
		t.Errorf("%d bytes after the fault", len(got))
	}
}

// TestPoison: each cause makes every operation answer EIO and is logged once; the lower stays.
func TestPoison(t *testing.T) {
	inDoubt := errors.Join(ErrInDoubt, unix.ENOSPC)
	for name, prepare := range map[string]func(s *scene){
		"commit in doubt": func(s *scene) { s.target.fail = failCall("Commit", inDoubt) },
		"size not restored": func(s *scene) {
			s.target.metacopy()
			s.target.fail = func(call string) error {
				if call != "Commit" {
					return nil
				}
				s.kernel.arm(1, injection{"EIO", unix.EIO}) // the ftruncate of undo
				return unix.ENOSPC
			}
			_ = s.Truncate(0)
			s.target.fail = nil
		},
		"explicitly": func(s *scene) { s.Poison(inDoubt) },
	} {
		s := newScene(t, byRange, false)
		logged := 0
		s.File.opts.Log = func(Target, string, ...any) { logged++ }
		prepare(s)
		for range 2 {
			_, writeErr := s.WriteAt([]byte("x"), 0, SyncNone)
			_, readErr := s.ReadAt(make([]byte, 1), 0)
			for _, err := range []error{writeErr, readErr, s.Truncate(0), s.Open(false), s.Err(), s.Sync(true), s.Complete(context.Background())} {
				if !errors.Is(err, unix.EIO) || errors.Is(err, unix.ENOSPC) {
					t.Errorf("%v: got %v", name, err)
				}
			}
		}
		if logged != 1 || s.stats.Poisoned.Load() != 1 || s.target.stages > 1 {
			t.Errorf("%v: logged %d times, %d stages", name, logged, s.target.stages)
		}
		s.target.checkClosed()
	}
	if err := New(newTarget(t, nil), LowerShared, &Options{}).Open(false); !errors.Is(err, unix.EIO) {
		t.Errorf("unknown initial state: %v", err)
	}
}

func failCall(name string, err error) func(string) error {
	return func(call string) error {
		if call == name {
			return err
		}
		return nil
	}
}

// TestPanicOfTheTargetHangsNobody: the reservation ends and the file is poisoned.
func TestPanicOfTheTargetHangsNobody(t *testing.T) {
	s := newScene(t, byRange, false)
	s.target.onStage = func() { panic("broken target") }
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		_ = s.Truncate(0) // panics
	}()
	if err := s.Complete(context.Background()); !errors.Is(err, unix.EIO) {
		t.Errorf("after a panic: %v", err)
	}
}

// TestUpperWithoutDataIsEmptiedFirst: what a copy-up that died left in the upper never shows, also not in the lower's holes.
func TestUpperWithoutDataIsEmptiedFirst(t *testing.T) {
	for w := range numWays {
		s := newStage(t).scene(t, w, true, 0)
		if err := os.WriteFile(s.target.path("upper"), pattern(len(s.was), 111), 0o644); err != nil {
			t.Fatal(err)
		}
		if w != byZeros {
			// The last block, which the size cuts, must be a hole as well.
			if _, err := s.WriteAt([]byte{s.was[0]}, 0, SyncNone); err != nil {
				t.Fatal(err)
			}
			if again := newFile(s.target, s.target.state(), s.options(), s.kernel); !bytes.Equal(content(t, again), s.was) {
				t.Errorf("%v: foreign bytes after a restart", w)
			}
		}
		if err := s.Complete(context.Background()); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(content(t, s.File), s.was) {
			t.Errorf("%v: foreign bytes", w)
		}
		s.target.check(Upper)
	}
}
