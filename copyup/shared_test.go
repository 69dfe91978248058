package copyup

import (
	"context"
	"sync/atomic"
	"testing"
	"time"
)

// TestSharedBounds: what completions copy is bounded for all mounts that have the same settings.
func TestSharedBounds(t *testing.T) {
	background := func(rate int64, shared bool) *Background {
		b := NewBackground(BackgroundConfig{CompleteRate: rate, Workers: 3, Shared: shared})
		t.Cleanup(b.Close)
		return b
	}
	one := background(1<<20, true)
	if other := background(1<<20, true); one.limiter != other.limiter || one.slots != other.slots {
		t.Error("two with the same settings are bounded each for itself")
	}
	if other := background(2<<20, true); one.limiter == other.limiter || one.slots == other.slots {
		t.Error("two with different settings share bounds")
	}
	if other := background(1<<20, false); one.limiter == other.limiter || one.slots == other.slots {
		t.Error("one that shares nothing has the bounds of others")
	}
}

// TestCompletionsWaitForTheirRate: more than a chunk at once has to wait.
func TestCompletionsWaitForTheirRate(t *testing.T) {
	b := NewBackground(BackgroundConfig{CompleteRate: 1})
	defer b.Close()
	pace := b.pace(newScene(t, byRange, false).File)
	if err := pace(context.Background(), chunkBytes); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(context.Background(), time.Second)
	defer stop()
	if err := pace(ctx, chunkBytes); err == nil {
		t.Error("a second chunk is copied at once, at a rate of one byte per second")
	}
}

// TestWorkersAreBounded: while the only worker copies, no other file is begun.
func TestWorkersAreBounded(t *testing.T) {
	b := quick(BackgroundConfig{CompleteAbove: 50, CompleteHot: 4 * time.Millisecond, CompleteRate: 1 << 30, Workers: 1})
	defer b.Close()
	var begun atomic.Int32
	goOn := make(chan struct{})
	var hot [2]*scene
	var copied [2]atomic.Bool
	for i := range hot {
		s := newStage(t).scene(t, byRange, false, 0)
		s.File.opts.Background = b
		if _, err := s.WriteAt(pattern(60<<10, 9), 0, SyncNone); err != nil {
			t.Fatal(err)
		}
		s.kernel.onCall = func(name string) {
			if name == "copy_file_range" && !copied[i].Swap(true) {
				begun.Add(1)
				<-goOn
			}
		}
		hot[i] = s
	}
	heat := func() {
		for i, s := range hot {
			if copied[i].Load() { // it would wait for the copy
				continue
			}
			if _, err := s.WriteAt(pattern(10, 9), 0, SyncNone); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, "a completion", func() bool { heat(); return begun.Load() > 0 })
	for range 30 { // several ticks
		heat()
		time.Sleep(time.Millisecond)
	}
	if n := begun.Load(); n != 1 {
		t.Errorf("%d files are completed at once by one worker", n)
	}
	close(goOn)
	eventually(t, "both complete", func() bool { heat(); return hot[0].State() == Upper && hot[1].State() == Upper })
}

// TestCacheIsBounded: what was written leaves the page cache before its time where there is more than CacheBytes of it.
func TestCacheIsBounded(t *testing.T) {
	const wrote = 60 << 10
	for bytes, drops := range map[int64]bool{wrote / 2: true, 10 * wrote: false} {
		s := newScene(t, byRange, false)
		b := quick(BackgroundConfig{DropAfter: time.Hour, CacheBytes: bytes})
		s.File.opts.Background = b
		if _, err := s.WriteAt(pattern(wrote, 9), 0, SyncNone); err != nil {
			t.Fatal(err)
		}
		dropped := func() bool { return s.kernel.count("drop") >= 2 }
		if drops {
			eventually(t, "pages beyond the bound are dropped", dropped)
		} else if time.Sleep(50 * time.Millisecond); dropped() {
			t.Errorf("%d bytes are dropped, where %d may stay", wrote, bytes)
		}
		b.Close()
	}
}
