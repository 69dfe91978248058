package copyup

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// BackgroundConfig bounds what is done in the background. The zero value of a time, of StreamBytes, CompleteAbove or CompleteRate turns that
// part off.
type BackgroundConfig struct {
	// CacheBytes is how many bytes that were read from or written to uppers may stay in the page cache before DropAfter; 0: none
	// for longer than a tick.
	CacheBytes int64
	// DropAfter is how long pages of an upper stay in the cache at most after their use. Writeback of dirty ones begins then.
	DropAfter time.Duration
	// StreamBytes is how much of a partial file that is written from one end to the other begins to be written back at a time, as soon as
	// it is written, unless DropAfter is 0: who syncs it in the end waits for little. One that is written through again and again
	// is written to the disk each time. 0: writeback begins when pages are to be dropped, or when the kernel likes.
	StreamBytes int64
	// SettleAfter is how long a partial file that has everything in the upper is left alone before it is made durable and plain.
	SettleAfter time.Duration
	// CompleteAbove is how much of a partial file must be in the upper, in percent, for a hot one to be completed.
	CompleteAbove int
	// CompleteHot is for how long a file must be written again and again to be hot.
	CompleteHot time.Duration
	// CompleteRate is the most that all completions together copy, in bytes per second; each has up to chunkBytes under way.
	CompleteRate int64
	// Workers is the most files that are completed or settled at a time; at least 1.
	Workers int
	// Shared: both are of all Backgrounds of the process that have the same two, together.
	Shared bool
	// Tick is the time between two looks; 0 is a second.
	Tick time.Duration
}

// DefaultBackground is what a mount uses unless it is told otherwise.
var DefaultBackground = BackgroundConfig{
	CacheBytes: 256 << 20, DropAfter: 10 * time.Second, StreamBytes: 16 << 20, SettleAfter: 45 * time.Second,
	CompleteAbove: 50, CompleteHot: 10 * time.Second, CompleteRate: 64 << 20, Workers: 2, Shared: true,
}

// idleTicks is how long a file that is partial for good is kept in mind.
const idleTicks = 60

// Background does, for all Files of one mount, what no caller waits for: it drops pages of uppers that the mount's own cache
// has as well, completes partial files that stay hot, and makes those plain that have everything in the upper. While no
// file was used lately it does not run.
//
// Locks: mu comes before File.mu, and is held across no system call and no call of a Target.
type Background struct {
	cfg BackgroundConfig
	*bounds

	ctx     context.Context
	stop    context.CancelFunc
	running sync.WaitGroup

	mu sync.Mutex
	// +checklocks:mu
	files map[*File]*tracked
	// +checklocks:mu
	ticking bool
	// +checklocks:mu
	held int64 // bytes of all tracked.bytes
}

// bounds is what completions keep to.
type bounds struct {
	limiter *rate.Limiter
	slots   chan struct{} // one token for each worker
}

func newBounds(cfg BackgroundConfig) *bounds {
	return &bounds{rate.NewLimiter(rate.Limit(cfg.CompleteRate), chunkBytes), make(chan struct{}, cfg.Workers)}
}

// shared are the bounds of Backgrounds that share them. A process has few settings, so none is ever taken away.
var shared = struct {
	mu sync.Mutex
	// +checklocks:mu
	of map[sharedKey]*bounds
}{of: map[sharedKey]*bounds{}}

type sharedKey struct {
	rate    int64
	workers int
}

func boundsOf(cfg BackgroundConfig) *bounds {
	if !cfg.Shared {
		return newBounds(cfg)
	}
	shared.mu.Lock()
	defer shared.mu.Unlock()
	k := sharedKey{cfg.CompleteRate, cfg.Workers}
	if shared.of[k] == nil {
		shared.of[k] = newBounds(cfg)
	}
	return shared.of[k]
}

// tracked is one file that was used lately. Background.mu protects it.
type tracked struct {
	release func()    // takes Target.Keep back
	used    span      // what was read or written since the last drop
	bytes   int64     // how much, with repetitions
	dirty   bool      // something of it was written: it must be written back before it can be dropped
	since   time.Time // of the first use after the last drop
	again   bool      // writeback was started; the next drop gets the pages
	stream  span      // the last writes that came one behind the other, without what is being written back for that already
	sending bool      // writeback of a stream is being started
	wrote   bool      // since the last tick
	hot     int       // ticks in a row with a write
	idle    int       // ticks in a row without one
	busy    bool      // a worker has it
}

// NewBackground starts nothing yet.
func NewBackground(cfg BackgroundConfig) *Background {
	if cfg.Tick <= 0 {
		cfg.Tick = time.Second
	}
	cfg.Workers = max(1, cfg.Workers)
	b := &Background{cfg: cfg, bounds: boundsOf(cfg), files: map[*File]*tracked{}}
	b.ctx, b.stop = context.WithCancel(context.Background())
	return b
}

// Close ends all work and waits for it. Partial files stay partial.
func (b *Background) Close() {
	if b == nil {
		return
	}
	b.stop()
	b.running.Wait()
	b.mu.Lock()
	all := b.files
	b.files = map[*File]*tracked{}
	b.mu.Unlock()
	for _, t := range all {
		t.release()
	}
}

// touched notes that [off, end) of a File's upper was read or written.
func (b *Background) touched(f *File, off, end int64, write bool) {
	if b == nil || b.ctx.Err() != nil || b.note(f, off, end, write) {
		return
	}
	release, ok := f.target.Keep()
	if !ok {
		return
	}
	if !b.track(f, release) {
		release()
	}
	b.note(f, off, end, write)
}

// note is touched for a tracked file; false for another.
func (b *Background) note(f *File, off, end int64, write bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.files[f]
	if t == nil {
		return false
	}
	if b.cfg.DropAfter <= 0 { // nothing is dropped
		t.wrote = t.wrote || write
		return true
	}
	if t.bytes == 0 {
		t.used, t.since = span{off, end}, time.Now()
	}
	t.used = span{min(t.used.off, off), max(t.used.end, end)}
	t.bytes += end - off
	b.held += end - off
	t.dirty = t.dirty || write
	t.wrote = t.wrote || write
	t.again = t.again && !write
	if write {
		b.streamedLocked(f, t, off, end)
	}
	return true
}

// streamedLocked notes a write, and has writeback begin if it is due. The writer has begun and not ended.
// +checklocks:b.mu
func (b *Background) streamedLocked(f *File, t *tracked, off, end int64) {
	if off != t.stream.end {
		t.stream.off = off
	}
	t.stream.end = end
	if !b.streamDueLocked(t) || t.sending || f.opts.Volatile || f.State() != UpperShared || b.ctx.Err() != nil || f.begin() != nil {
		return
	}
	t.sending = true
	b.running.Go(func() {
		defer f.end()
		for {
			b.mu.Lock()
			if t.sending = b.streamDueLocked(t); !t.sending {
				b.mu.Unlock()
				return
			}
			s := t.stream
			t.stream.off = s.end
			b.mu.Unlock()
			f.writeback(f.sys.startWriteback, s)
		}
	})
}

// +checklocks:b.mu
func (b *Background) streamDueLocked(t *tracked) bool {
	return b.cfg.StreamBytes > 0 && t.stream.end-t.stream.off >= b.cfg.StreamBytes
}

// track begins to keep a file in mind; false if it is already, or nothing is to be done any more.
func (b *Background) track(f *File, release func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.files[f] != nil || b.ctx.Err() != nil || f.forgotten.Load() {
		return false
	}
	b.files[f] = &tracked{release: release}
	if !b.ticking {
		b.ticking = true
		b.running.Go(b.run)
	}
	return true
}

// run looks at the files that were used lately until there are none.
func (b *Background) run() {
	tick := time.NewTicker(b.cfg.Tick)
	defer tick.Stop()
	for {
		select {
		case <-b.ctx.Done():
			return
		case <-tick.C:
		}
		drops, gone, more := b.look(time.Now())
		for _, d := range drops {
			d.file.dropPages(d.used, d.dirty)
		}
		for _, t := range gone {
			t.release()
		}
		if !more {
			return
		}
	}
}

type drop struct {
	file  *File
	used  span
	dirty bool // something of it was written
}

// look decides what is due, and hands settling and completing to workers.
func (b *Background) look(now time.Time) (drops []drop, gone []*tracked, more bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for f, t := range b.files {
		t.idle++
		switch {
		case t.wrote:
			t.hot, t.idle = t.hot+1, 0
		case t.idle > 1:
			t.hot = 0
		}
		t.wrote = false
		if b.dropDueLocked(t, now) {
			drops = append(drops, drop{f, t.used, t.dirty})
			b.droppedLocked(t)
		}
		if !t.busy && !t.sending && t.bytes == 0 && (f.State() != UpperShared || t.idle > idleTicks) {
			gone = append(gone, t)
			delete(b.files, f)
			continue
		}
		b.startLocked(f, t)
	}
	b.ticking = len(b.files) > 0
	return drops, gone, b.ticking
}

// +checklocks:b.mu
func (b *Background) dropDueLocked(t *tracked, now time.Time) bool {
	return t.bytes > 0 && b.cfg.DropAfter > 0 && (t.again || now.Sub(t.since) >= b.cfg.DropAfter || b.held > b.cfg.CacheBytes)
}

// droppedLocked notes a drop: dirty pages are written back by the first one and leave with the second.
// +checklocks:b.mu
func (b *Background) droppedLocked(t *tracked) {
	if t.dirty && !t.again {
		t.again = true
		return
	}
	b.held -= t.bytes
	t.bytes, t.dirty, t.again = 0, false, false
}

// startLocked gives a file to a worker if it is due and one is free.
// +checklocks:b.mu
func (b *Background) startLocked(f *File, t *tracked) {
	if t.busy || f.State() != UpperShared {
		return
	}
	full, percent := f.progress()
	var work func() bool
	switch {
	case full && b.cfg.SettleAfter > 0 && time.Duration(t.idle)*b.cfg.Tick >= b.cfg.SettleAfter:
		work = func() bool { return b.finish(f, nil) }
	case !full && b.cfg.CompleteAbove > 0 && b.cfg.CompleteRate > 0 && percent >= b.cfg.CompleteAbove &&
		time.Duration(t.hot)*b.cfg.Tick >= b.cfg.CompleteHot:
		work = func() bool { return b.finish(f, b.pace(f)) }
	default:
		return
	}
	select {
	case b.slots <- struct{}{}:
	default:
		return
	}
	t.busy = true
	b.running.Go(func() {
		defer func() { <-b.slots }()
		done := work()
		b.mu.Lock()
		defer b.mu.Unlock()
		t.busy, t.hot = false, 0
		if !done { // what failed is not tried again at once
			t.idle = 0
		}
	})
}

// pace bounds a completion, and ends it when the file is forgotten: nothing is to be copied for a file without a name.
func (b *Background) pace(f *File) func(context.Context, int) error {
	return func(ctx context.Context, n int) error {
		if f.forgotten.Load() {
			return fmt.Errorf("copyup: file is gone: %w", unix.ESTALE)
		}
		return b.limiter.WaitN(ctx, n)
	}
}

func (b *Background) finish(f *File, pace func(context.Context, int) error) (done bool) {
	err := f.CompleteWith(b.ctx, pace)
	if err != nil && b.ctx.Err() == nil && !f.forgotten.Load() {
		f.logf("copyup: completion in the background: %v", err)
	}
	return err == nil
}

// Forget lets go of a file whose last name is gone: nothing of it is to be kept longer than its users want.
func (f *File) Forget() {
	b := f.opts.Background
	if b == nil {
		return
	}
	b.mu.Lock()
	f.forgotten.Store(true)
	t := b.files[f]
	if t != nil {
		b.held -= t.bytes
		delete(b.files, f)
	}
	b.mu.Unlock()
	if t != nil {
		t.release()
	}
}

// Tracked gives the number of files that are kept in mind, for tests and inspection.
func (b *Background) Tracked() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.files)
}

// progress reports whether everything is in the upper, and how much of it in percent.
func (f *File) progress() (full bool, percent int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ext == nil {
		return false, 0
	}
	units := unitsIn(f.ext.limit, f.ext.unit)
	return f.ext.full(), int((units - f.ext.missing) * 100 / max(units, 1))
}

// dropPages takes pages of the upper out of the page cache; those that are dirty begin to be written back instead. What
// the mount's users need is in the mount's own cache.
// Errors go nowhere: the pages then stay. Those of writeback are kept for who syncs, and what was lost shows the lower again: a page that
// could not be written is clean, and where it was the upper may have room, and zeros, on the disk.
func (f *File) dropPages(s span, dirty bool) {
	if f.begin() != nil {
		return
	}
	defer f.end()
	off := s.off &^ (bufferBytes - 1) // whole folios
	s = span{off, (s.end + bufferBytes - 1) &^ (bufferBytes - 1)}
	if dirty && !f.checkWriteback(s) {
		return
	}
	_ = f.withUpper(func(b *backing) error {
		n, err := f.sys.dropCache(b.fd, s.off, s.end-s.off)
		f.stats.BytesDropped.Add(uint64(max(n, 0)))
		return err
	})
	if dirty { // what failed since then is among what was dropped
		f.checkWriteback(s)
	}
}
