package copyup

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var eio = injection{"EIO", unix.EIO}

// opened is an open file with a lower and a written first unit.
func opened(t *testing.T) *scene {
	t.Helper()
	s := newStage(t).scene(t, byRange, false, 0)
	if err := s.Open(true); err != nil {
		t.Fatal(err)
	}
	if _, err := s.WriteAt(pattern(testUnit, 200), 0, SyncNone); err != nil {
		t.Fatal(err)
	}
	return s
}

// lose makes a unit of the upper a hole, as a writeback that failed leaves it.
func (s *scene) lose(off int64) error {
	u, err := os.OpenFile(s.target.path("upper"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(u.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, testUnit)
	return errors.Join(err, u.Close())
}

// TestWriteMeetsAFailedSync: a write that waits while the map is taken away finds it again, and nothing stays reserved.
func TestWriteMeetsAFailedSync(t *testing.T) {
	s := opened(t)
	wrote := make(chan error, 1)
	var met atomic.Bool
	s.kernel.onCall = func(name string) {
		if name != "drop" || met.Swap(true) { // of distrust, which has all of the file
			return
		}
		go func() {
			_, err := s.WriteAt(pattern(100, 1), 70000, SyncNone)
			wrote <- err
		}()
		time.Sleep(50 * time.Millisecond)
	}
	for n := 1; !met.Load(); n++ {
		if n > 5 {
			t.Fatal("no call of a sync was failed")
		}
		s.kernel.arm(n, eio)
		if err := s.Sync(false); err != nil && !errors.Is(err, unix.EIO) {
			t.Fatal(err)
		}
		s.kernel.arm(0, injection{})
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	if _, err := s.WriteAt(pattern(100, 2), 70000, SyncNone); err != nil {
		t.Fatal(err)
	}
	if got := content(t, s.File)[70000:70100]; !bytes.Equal(got, pattern(100, 2)) {
		t.Errorf("read %x", got)
	}
}

// TestCompletionMeetsAFailedSync: the kernel tells a failure to one of those who sync; the other one must not take the file for complete.
func TestCompletionMeetsAFailedSync(t *testing.T) {
	s := opened(t)
	lower := content(t, s.File)
	copy(lower, s.target.lowerBytes[:testUnit])
	completed := make(chan error, 1)
	var met atomic.Bool
	s.kernel.onCall = func(name string) {
		if name != "fsync" || met.Swap(true) {
			return
		}
		if err := s.lose(0); err != nil {
			t.Error(err)
		}
		go func() { completed <- s.Complete(context.Background()) }()
		time.Sleep(50 * time.Millisecond)
		s.kernel.arm(1, eio) // this one's
	}
	if err := s.Sync(false); !errors.Is(err, unix.EIO) {
		t.Fatalf("sync: %v, want %v", err, unix.EIO)
	}
	if err := <-completed; err != nil && !errors.Is(err, unix.EIO) {
		t.Fatal(err)
	}
	if got := content(t, s.File); !bytes.Equal(got, lower) {
		t.Errorf("state %v: the unit that was lost is not the lower's", s.State())
	}
}

// TestEachUserHearsOfAFailedSync: a failed sync is told once to each who had the file open, and not to who opens it later.
func TestEachUserHearsOfAFailedSync(t *testing.T) {
	s := opened(t)
	var a, b uint64 // of two that have it open
	s.kernel.onCall = func(name string) {
		if name == "fsync" {
			s.kernel.onCall = nil
			s.kernel.arm(1, eio)
		}
	}
	if err := s.SyncFor(false, &a); !errors.Is(err, unix.EIO) {
		t.Errorf("a: %v, want %v", err, unix.EIO)
	}
	s.kernel.arm(0, injection{})
	later := s.Failures()
	if err := s.SyncFor(false, &b); !errors.Is(err, unix.EIO) {
		t.Errorf("b: %v, want %v", err, unix.EIO)
	}
	for name, seen := range map[string]*uint64{"a": &a, "b": &b, "later": &later} {
		if err := s.SyncFor(false, seen); err != nil {
			t.Errorf("%s once more: %v", name, err)
		}
	}
}

// TestAFailureThatNobodyHeardOf: of a writeback that failed while nobody synced, who opens the file next hears, and who opens it after that
// no more; the overlay is told of both.
func TestAFailureThatNobodyHeardOf(t *testing.T) {
	s := opened(t)
	var told []error
	s.File.opts.Lost = func(of Target, err error) {
		if of != s.target {
			t.Errorf("of %v", of)
		}
		told = append(told, err)
	}
	s.kernel.arm(1, eio)
	if s.checkWriteback(span{0, testUnit}) || !s.kernel.hasFired() {
		t.Fatal("the writeback did not fail")
	}
	s.kernel.arm(0, injection{})
	if len(told) != 1 || !errors.Is(told[0], unix.EIO) {
		t.Errorf("the overlay was told %v", told)
	}
	next := s.Failures()
	if err := s.SyncFor(false, &next); !errors.Is(err, unix.EIO) {
		t.Errorf("the next one: %v, want %v", err, unix.EIO)
	}
	if len(told) != 2 || told[1] != nil {
		t.Errorf("then it was told %v", told)
	}
	later := s.Failures()
	for _, seen := range []*uint64{&next, &later} {
		if err := s.SyncFor(false, seen); err != nil {
			t.Error(err)
		}
	}
}

// TestAWriteThatSyncsHidesNoFailure: the sync of a write tells of what others wrote and was lost, and they hear of it as well.
func TestAWriteThatSyncsHidesNoFailure(t *testing.T) {
	for _, state := range []State{UpperShared, Upper} {
		s := opened(t)
		if state == Upper {
			if err := s.Complete(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		other := s.Failures()
		s.kernel.onCall = func(name string) {
			if name == "fsync" || name == "fdatasync" {
				s.kernel.onCall = nil
				s.kernel.arm(1, injection{"ENOSPC", unix.ENOSPC})
			}
		}
		if n, err := s.WriteAt([]byte{1}, 0, SyncAll); n != 0 || !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%v: wrote %d bytes, %v", state, n, err)
		}
		s.kernel.arm(0, injection{})
		if err := s.SyncFor(false, &other); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%v: the other: %v, want %v", state, err, unix.ENOSPC)
		}
	}
}

// TestAFullMapThatWasReadAgain: a file stays partial if a sync failed after it had become full, and what was lost came again since: nothing
// says that this is on the disk.
func TestAFullMapThatWasReadAgain(t *testing.T) {
	s := opened(t)
	if err := s.populate(context.Background(), 0, int64(len(s.was))); err != nil {
		t.Fatal(err)
	}
	full := s.fullMap()
	if full == nil {
		t.Fatal("not full")
	}
	if err := s.lose(testUnit); err != nil {
		t.Fatal(err)
	}
	_ = s.distrust(unix.EIO)
	if err := s.populate(context.Background(), 0, int64(len(s.was))); err != nil {
		t.Fatal(err)
	}
	if err := s.becomeUpper(full, span{}); err != nil || s.State() != UpperShared {
		t.Errorf("state %v, %v", s.State(), err)
	}
	if err := errors.Join(s.Sync(false), s.Sync(false)); err != nil || s.State() != Upper {
		t.Errorf("after a sync: state %v, %v", s.State(), err)
	}
}

// failed tells that a sync or writeback of f has failed.
func failed(f *File) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failures > 0
}

// TestFailedWritebackShowsTheLower: a device without room fails what is written back long after write(2), where nobody waits. What was
// lost shows the lower's data, never zeros, and the next sync tells of it.
func TestFailedWritebackShowsTheLower(t *testing.T) {
	const size, wrote = 8 << 20, 4 << 20
	dir := t.TempDir()
	host, disk := dir+"/host", dir+"/disk"
	sh := func(command string) {
		t.Helper()
		if out, err := exec.Command("sh", "-ec", "cd "+dir+"\n"+command).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	t.Cleanup(func() {
		for _, d := range []string{disk, host} {
			if err := unix.Unmount(d, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
	})
	sh(`mkdir host disk
		mount -t tmpfs -o size=40m tmpfs host
		truncate -s 64M host/image
		mkfs.ext4 -q -b 4096 -O ^has_journal -E lazy_itable_init=0 host/image
		mount -o loop host/image disk`)
	lower := pattern(size, 1)
	target := newTargetIn(t, disk, lower)
	b := NewBackground(BackgroundConfig{DropAfter: 100 * time.Millisecond, CacheBytes: 1 << 40, Tick: 50 * time.Millisecond})
	defer b.Close()
	f := New(target, Lower, &Options{Unit: testUnit, Background: b, Log: logTo(t)})
	if err := f.Open(true); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close(true) }()
	if _, err := f.WriteAt(pattern(testUnit, 9), 0, SyncNone); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(false); err != nil {
		t.Fatal(err)
	}
	sh(`sync -f disk
		dd if=/dev/zero of=host/filler bs=1M 2>/dev/null || :
		dd if=/dev/zero of=host/more bs=4k 2>/dev/null || :`)
	if _, err := f.WriteAt(pattern(wrote, 9), 1<<20, SyncNone); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); !failed(f) || f.inDoubt() != nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nobody has found out that the writeback failed")
		}
	}
	read := func() []byte {
		t.Helper()
		got := make([]byte, size)
		if n, err := f.ReadAt(got, 0); n != size || err != nil {
			t.Fatalf("%d bytes, %v", n, err)
		}
		return got
	}
	got, new := read(), pattern(wrote, 9)
	for off := 0; off < wrote; off += testUnit {
		at := 1<<20 + off
		if unit := got[at : at+testUnit]; !bytes.Equal(unit, lower[at:at+testUnit]) && !bytes.Equal(unit, new[off:off+testUnit]) {
			t.Fatalf("the unit at %d is neither what was written nor the lower's: %x...", at, unit[:16])
		}
	}
	if err := f.Sync(false); err == nil {
		t.Error("the sync does not tell that data was lost")
	}
	if err := os.Remove(host + "/filler"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(new, 1<<20, SyncNone); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(false); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if got := read()[1<<20:][:wrote]; !bytes.Equal(got, new) {
		t.Error("what was written with room is not there")
	}
}

// TestWritersMeetFailingSyncs: writers, a completion and syncs of which some fail; nobody hangs, and each unit is old or new.
func TestWritersMeetFailingSyncs(t *testing.T) {
	s := opened(t)
	lower := bytes.Clone(s.target.lowerBytes)
	units := len(lower) / testUnit
	var mu sync.Mutex
	s.kernel.onCall = func(name string) {
		mu.Lock()
		defer mu.Unlock()
		if name == "fsync" && rand.IntN(2) == 0 {
			s.kernel.arm(1, eio)
		}
	}
	allowed := func(err error) bool {
		return err == nil || errors.Is(err, unix.EIO) || errors.Is(err, context.Canceled)
	}
	ctx, stop := context.WithTimeout(context.Background(), time.Second)
	defer stop()
	var users sync.WaitGroup
	for w := range 3 {
		users.Go(func() {
			for ctx.Err() == nil {
				n := rand.IntN(units)
				if n%3 != w {
					continue
				}
				if _, err := s.WriteAt(pattern(testUnit, byte(n)), int64(n)*testUnit, SyncNone); !allowed(err) {
					t.Error(err)
				}
			}
		})
	}
	for _, run := range []func() error{func() error { return s.Sync(false) }, func() error { return s.Truncate(int64(len(lower))) },
		func() error { _, err := s.ReadAt(make([]byte, len(lower)), 0); return err }} {
		users.Go(func() {
			for ctx.Err() == nil {
				if err := run(); !allowed(err) {
					t.Error(err)
				}
			}
		})
	}
	users.Wait()
	s.kernel.onCall = nil
	s.kernel.arm(0, injection{})
	got := content(t, s.File)
	for n := range units {
		unit := got[n*testUnit:][:testUnit]
		if !bytes.Equal(unit, lower[n*testUnit:][:testUnit]) && !bytes.Equal(unit, pattern(testUnit, byte(n))) &&
			(n > 0 || !bytes.Equal(unit, pattern(testUnit, 200))) {
			t.Errorf("unit %d is neither old nor new", n)
		}
	}
}
