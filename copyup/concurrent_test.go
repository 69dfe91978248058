package copyup

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestConcurrentFaultsCopyOnce: many first writers, one copy-up, and every write arrives.
func TestConcurrentFaultsCopyOnce(t *testing.T) {
	s := newScene(t, byRange, false)
	const writers = 32
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			if _, err := s.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 10), int64(i*10), SyncNone); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	want := s.was
	for i := range writers {
		want = patched(bytes.Repeat([]byte{byte(i + 1)}, 10), i*10)(want)
	}
	if !bytes.Equal(content(t, s.File), want) || s.target.stages != 1 || s.stats.Faults.Load() != 1 {
		t.Errorf("%d stages, %d faults", s.target.stages, s.stats.Faults.Load())
	}
	s.target.check(UpperShared)
	s.target.checkClosed()
}

// held stops the copy-up of a scene inside a system call until release is called, and says on in that it is there.
func held(s *scene, call string) (in chan struct{}, release func()) {
	in, out := make(chan struct{}), make(chan struct{})
	var once sync.Once
	s.kernel.onCall = func(name string) {
		if name == call {
			once.Do(func() { close(in); <-out })
		}
	}
	return in, func() { close(out) }
}

// TestReadsGoOnDuringACopy: they see the old data while the copy-up is held, and the write once it returned.
func TestReadsGoOnDuringACopy(t *testing.T) {
	s := newScene(t, byRange, false)
	in, release := held(s, "copy_file_range")
	written := make(chan error)
	go func() {
		_, err := s.WriteAt([]byte("new"), 0, SyncNone)
		written <- err
	}()
	<-in
	for range 10 {
		if !bytes.Equal(content(t, s.File), s.was) {
			t.Error("not the old data during the copy")
		}
	}
	if err := s.Sync(false); err != nil || s.State() != UpperShared {
		t.Errorf("sync during the copy: %v, state %v", err, s.State())
	}
	release()
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if got := content(t, s.File); !bytes.Equal(got, patched([]byte("new"), 0)(s.was)) {
		t.Error("not the new data after the write")
	}
}

// TestReadThatMetTheCommitReadsAgain: a read that has its descriptor of the lower when a write completes does not return
// what the lower holds.
func TestReadThatMetTheCommitReadsAgain(t *testing.T) {
	s := newScene(t, byRange, false)
	var once sync.Once
	s.kernel.onCall = func(name string) {
		if name == "pread" {
			once.Do(func() {
				if _, err := s.WriteAt([]byte("new"), 0, SyncNone); err != nil {
					t.Error(err)
				}
			})
		}
	}
	p := make([]byte, 3)
	if _, err := s.ReadAt(p, 0); err != nil || string(p) != "new" {
		t.Errorf("read %q, %v", p, err)
	}
	s.target.checkClosed()
}

// TestReadersNeverSeeOlderData: a writer counts up in one byte; a read never gives less than what was complete before it.
func TestReadersNeverSeeOlderData(t *testing.T) {
	st := newStage(t)
	for range 20 {
		s := st.scene(t, byRange, false, int64(rand.IntN(2))*DefaultPartialAbove)
		var completed atomic.Uint32
		if _, err := s.other.WriteAt([]byte{0}, 0, SyncNone); err != nil {
			t.Fatal(err)
		}
		var readers sync.WaitGroup
		for range 4 {
			readers.Go(func() {
				for completed.Load() < 100 {
					floor := completed.Load()
					p := make([]byte, 1)
					if _, err := s.ReadAt(p, 6000); err != nil || uint32(p[0]) < floor { // in the hole: 0 in the lower
						t.Errorf("read %d after %d was written, %v", p[0], floor, err)
						return
					}
				}
			})
		}
		for i := range 100 {
			if _, err := s.WriteAt([]byte{byte(i + 1)}, 6000, SyncNone); err != nil {
				t.Error(err)
			}
			completed.Store(uint32(i + 1))
		}
		readers.Wait()
		s.target.check(UpperShared)
		s.target.checkClosed()
	}
}

// TestWritesAreNotSerialised: while one write hangs in the kernel, another one and a read complete.
func TestWritesAreNotSerialised(t *testing.T) {
	s := newScene(t, byRange, false)
	if err := s.Complete(context.Background()); err != nil {
		t.Fatal(err)
	}
	in, out := make(chan struct{}), make(chan struct{})
	var once sync.Once
	s.kernel.onCall = func(name string) {
		first := false
		if name == "pwrite" {
			once.Do(func() { first = true })
		}
		if first {
			close(in)
			<-out
		}
	}
	done := make(chan error)
	go func() { _, err := s.WriteAt([]byte("a"), 0, SyncNone); done <- err }()
	<-in
	if _, err := s.WriteAt([]byte("b"), 1, SyncNone); err != nil {
		t.Error(err)
	}
	content(t, s.File)
	close(out)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestFailureIsShared: those who wait for a whole copy-up get its error, and do not each try a full disk again.
func TestFailureIsShared(t *testing.T) {
	s := newScene(t, byRange, false)
	in, release := held(s, "clone")
	s.target.fail = failCall("Commit", unix.ENOSPC)
	const writers = 8
	errs := make(chan error, writers)
	write := func() { _, err := s.WriteAt([]byte("x"), 0, SyncNone); errs <- err }
	go write()
	<-in
	for range writers - 1 {
		go write()
	}
	waitForUsers(t, s.File, writers)
	time.Sleep(10 * time.Millisecond) // from begin to the wait
	release()
	for range writers {
		if err := <-errs; !errors.Is(err, unix.ENOSPC) {
			t.Errorf("got %v", err)
		}
	}
	if s.target.stages != 1 {
		t.Errorf("%d stages", s.target.stages)
	}
	s.target.check(Lower)
}

func waitForUsers(t *testing.T, f *File, n int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		f.mu.Lock()
		users := f.users
		f.mu.Unlock()
		if users >= n {
			return
		}
	}
	t.Fatalf("%d users never came", n)
}

// TestCancelledFault: its maker gets EINTR, and one who waited copies for itself; who waits can leave as well.
func TestCancelledFault(t *testing.T) {
	s := newScene(t, byBuffer, false)
	in, release := held(s, "copy_file_range")
	ctx, cancel := context.WithCancel(context.Background())
	maker, waiter := make(chan error), make(chan error)
	go func() { maker <- s.Complete(ctx) }()
	<-in
	gone, leave := context.WithCancel(context.Background())
	leave()
	if err := s.Complete(gone); !errors.Is(err, unix.EINTR) || !errors.Is(err, context.Canceled) {
		t.Errorf("waiter that left: %v", err)
	}
	go func() { waiter <- s.Complete(context.Background()) }()
	waitForUsers(t, s.File, 2)
	cancel()
	release()
	// Unless it finds that the waiter has done all of it meanwhile.
	if err := <-maker; err != nil && (!errors.Is(err, unix.EINTR) || !errors.Is(err, context.Canceled)) {
		t.Errorf("maker: %v", err)
	}
	if err := <-waiter; err != nil {
		t.Errorf("waiter: %v", err)
	}
	if !bytes.Equal(content(t, s.File), s.was) {
		t.Error("content differs")
	}
	s.target.check(Upper)
}
