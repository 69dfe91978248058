package copyup

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// eventually waits for what the background does.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

func quick(cfg BackgroundConfig) *Background {
	cfg.Tick = 2 * time.Millisecond
	return NewBackground(cfg)
}

// TestBackgroundSettles: a small file that was copied whole becomes plain by itself, after a sync, and nothing is kept.
func TestBackgroundSettles(t *testing.T) {
	s := newScene(t, byRange, false)
	b := quick(BackgroundConfig{SettleAfter: 10 * time.Millisecond})
	s.File.opts.Background = b
	if _, err := s.WriteAt([]byte("x"), 0, SyncNone); err != nil {
		t.Fatal(err)
	}
	s.target.check(UpperShared)
	eventually(t, "plain", func() bool { return s.State() == Upper })
	if s.kernel.count("fsync") != 1 || s.stats.Completed.Load() != 1 {
		t.Errorf("calls %v", s.kernel.calls)
	}
	b.Close()
	s.target.check(Upper)
	s.target.checkClosed()
	if s.target.kept != 0 {
		t.Errorf("%d holds are left", s.target.kept)
	}
}

// TestBackgroundLeavesColdFilesPartial: a file with little in the upper, or written once, stays partial.
func TestBackgroundLeavesColdFilesPartial(t *testing.T) {
	s := newStage(t).scene(t, byRange, false, 0)
	b := quick(BackgroundConfig{SettleAfter: time.Millisecond, CompleteAbove: 50, CompleteHot: 4 * time.Millisecond, CompleteRate: 1 << 30})
	s.File.opts.Background = b
	for range 50 {
		if _, err := s.WriteAt([]byte("x"), 0, SyncNone); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	b.Close()
	s.target.check(UpperShared)
	if s.stats.BytesCopied.Load() > 2*testUnit {
		t.Errorf("%d bytes copied", s.stats.BytesCopied.Load())
	}
}

// TestBackgroundCompletesHotFiles: one that has most of its data in the upper and goes on being written is completed.
func TestBackgroundCompletesHotFiles(t *testing.T) {
	s := newStage(t).scene(t, byRange, false, 0)
	b := quick(BackgroundConfig{CompleteAbove: 50, CompleteHot: 6 * time.Millisecond, CompleteRate: 1 << 30})
	s.File.opts.Background = b
	if _, err := s.WriteAt(pattern(60<<10, 9), 0, SyncNone); err != nil {
		t.Fatal(err)
	}
	want := patched(pattern(60<<10, 9), 0)(s.was)
	eventually(t, "complete", func() bool {
		if _, err := s.WriteAt(pattern(10, 9), 0, SyncNone); err != nil {
			t.Fatal(err)
		}
		return s.State() == Upper
	})
	b.Close()
	if got := content(t, s.File); !bytes.Equal(got, want) {
		t.Errorf("content differs at %d", differsAt(got, want))
	}
	s.target.check(Upper)
}

// TestBackgroundDropsPages: what was written leaves the page cache once it is written back, and idle costs nothing.
func TestBackgroundDropsPages(t *testing.T) {
	s := newScene(t, byRange, false)
	b := quick(BackgroundConfig{DropAfter: 4 * time.Millisecond, CacheBytes: 1 << 40})
	s.File.opts.Background = b
	if _, err := s.WriteAt(pattern(20<<10, 9), 0, SyncNone); err != nil {
		t.Fatal(err)
	}
	eventually(t, "dropped", func() bool { return s.kernel.count("drop") >= 2 })
	if err := s.Complete(context.Background()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "idle", func() bool { return b.Tracked() == 0 })
	b.Close()
	s.target.checkClosed()
}

// TestStreamsAreWrittenBack: what is written from one end to the other begins to be written back in its order, and nothing else does
// before its time. A failure there is told by the next sync, once, and what was lost shows the lower.
func TestStreamsAreWrittenBack(t *testing.T) {
	const wrote, stream = 64 << 10, 16 << 10
	descending := func(i int64) int64 { return wrote - (i+1)*testUnit }
	onward := func(i int64) int64 { return i * testUnit }
	for _, c := range []struct {
		name      string
		cfg       BackgroundConfig
		offset    func(i int64) int64
		volatile  bool
		fail      bool
		writeback bool
	}{
		{name: "stream", cfg: BackgroundConfig{DropAfter: time.Hour, StreamBytes: stream}, offset: onward, writeback: true},
		{name: "it fails", cfg: BackgroundConfig{DropAfter: time.Hour, StreamBytes: stream}, offset: onward, fail: true},
		{name: "no stream", cfg: BackgroundConfig{DropAfter: time.Hour, StreamBytes: stream}, offset: descending},
		{name: "off", cfg: BackgroundConfig{DropAfter: time.Hour}, offset: onward},
		{name: "nothing is dropped", cfg: BackgroundConfig{StreamBytes: stream}, offset: onward},
		{name: "volatile", cfg: BackgroundConfig{DropAfter: time.Hour, StreamBytes: stream}, offset: onward, volatile: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStage(t).scene(t, byRange, false, 0)
			c.cfg.CacheBytes, c.cfg.Tick = 1<<40, time.Hour
			b := NewBackground(c.cfg)
			s.File.opts.Background = b
			s.File.opts.Volatile = c.volatile
			if c.fail {
				s.kernel.failing = "start"
			}
			data := pattern(wrote, 9)
			for i := range int64(wrote / testUnit) {
				at := c.offset(i)
				if _, err := s.WriteAt(data[at:at+testUnit], at, SyncNone); err != nil {
					t.Fatal(err)
				}
			}
			started := func() []span {
				s.kernel.mu.Lock()
				defer s.kernel.mu.Unlock()
				return slices.Clone(s.kernel.started)
			}
			sent := func() bool { n := len(started()); return n > 0 && wrote-started()[n-1].end < stream }
			if c.writeback || c.fail {
				eventually(t, "all is being written back", sent)
			}
			b.Close()
			if n := len(started()); (n > 0) != (c.writeback || c.fail) {
				t.Errorf("%d starts", n)
			}
			want, end := slices.Clone(data), int64(0)
			for _, p := range started() {
				if p.off != end || p.end-p.off < stream {
					t.Errorf("from %d to %d, after %d", p.off, p.end, end)
				}
				end = p.end
				if c.fail {
					copy(want[p.off:p.end], s.was[p.off:])
				}
			}
			if got := content(t, s.File)[:wrote]; !bytes.Equal(got, want) {
				t.Errorf("content differs at %d", differsAt(got, want))
			}
			if err := s.Sync(false); errors.Is(err, unix.EIO) != c.fail {
				t.Errorf("sync: %v", err)
			}
			if err := s.Sync(false); err != nil {
				t.Errorf("one more sync: %v", err)
			}
		})
	}
}

// TestForgottenFilesAreLetGo: a file whose last name is gone is not held.
func TestForgottenFilesAreLetGo(t *testing.T) {
	s := newScene(t, byRange, false)
	b := quick(BackgroundConfig{DropAfter: time.Hour, CacheBytes: 1 << 40})
	defer b.Close()
	s.File.opts.Background = b
	if _, err := s.WriteAt([]byte("x"), 0, SyncNone); err != nil || s.target.kept != 1 {
		t.Fatal(err, s.target.kept)
	}
	s.target.mu.Lock()
	s.target.dead = true
	s.target.mu.Unlock()
	s.Forget()
	if _, err := s.WriteAt([]byte("x"), 0, SyncNone); err != nil || s.target.kept != 0 || b.Tracked() != 0 {
		t.Error(err, s.target.kept, b.Tracked())
	}
}

// TestWritersAndCompletionMeet: writers of interleaved bytes, a reader, syncs, and completions at once; every byte arrives
// and none of the lower is lost.
func TestWritersAndCompletionMeet(t *testing.T) {
	st := newStage(t)
	for round := range 30 {
		s := st.scene(t, way(round%int(byZeros)), round%2 == 0, 0)
		want := bytes.Clone(s.was)
		var wg sync.WaitGroup
		const writers = 6
		for w := range writers {
			rng := rand.New(rand.NewPCG(uint64(round), uint64(w)))
			wg.Go(func() {
				for range 60 {
					// Each writer has the bytes of its own number in every 64, so that they meet in each unit.
					at := rng.IntN(len(s.was)/64-1)*64 + w*8
					p := bytes.Repeat([]byte{byte(100 + w)}, 8)
					if _, err := s.WriteAt(p, int64(at), SyncNone); err != nil {
						t.Error(err)
					}
					copy(want[at:], p) // disjoint
				}
			})
		}
		wg.Go(func() {
			for range 20 {
				if err := s.Sync(false); err != nil {
					t.Error(err)
				}
				content(t, s.File)
			}
			if err := s.Complete(context.Background()); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		if got := content(t, s.File); !bytes.Equal(got, want) {
			t.Fatalf("round %d: differs at %d", round, differsAt(got, want))
		}
		s.target.check(Upper)
		s.target.checkClosed()
	}
}

// TestBackgroundRestsAfterAFailure: what can't be made plain is tried again after SettleAfter, and not with every tick.
func TestBackgroundRestsAfterAFailure(t *testing.T) {
	s := newScene(t, byRange, false)
	const rest = 100 * time.Millisecond
	tries := make(chan time.Time, 1000)
	s.target.fail = func(call string) error {
		if call != "Complete" {
			return nil
		}
		tries <- time.Now()
		return unix.EIO
	}
	b := quick(BackgroundConfig{SettleAfter: rest})
	s.File.opts.Background = b
	if _, err := s.WriteAt([]byte("x"), 0, SyncNone); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another try", func() bool { return len(tries) > 1 })
	b.Close()
	if first, second := <-tries, <-tries; second.Sub(first) < rest/2 { // many ticks
		t.Errorf("tried again after %v", second.Sub(first))
	}
	s.target.check(UpperShared)
}
