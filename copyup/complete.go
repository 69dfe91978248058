package copyup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// chunkBytes bounds what is reserved and copied at once, so that writers wait shortly and a cancelled copy ends soon.
	chunkBytes = 1 << 20
	// bufferBytes is the unit of the read/write fallback.
	bufferBytes = 256 << 10
)

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferBytes); return &b }}

// Complete brings everything that is missing to the upper, waits until it is durable (unless volatile) and makes the file
// plain: afterwards the state is Upper. Readers and writers go on meanwhile.
// Errors: those of a copy-up; of reading the lower and writing and syncing the upper; EINTR if ctx ends first. What was
// copied stays, and a later Complete goes on from there.
func (f *File) Complete(ctx context.Context) error { return f.CompleteWith(ctx, nil) }

// CompleteWith is Complete with a pace: before n bytes are copied, pace(ctx, n) is called, and its error ends it.
func (f *File) CompleteWith(ctx context.Context, pace func(ctx context.Context, n int) error) error {
	if err := f.begin(); err != nil {
		return err
	}
	defer f.end()
	err := f.complete(ctx, pace)
	if err != nil {
		f.stats.Failed.Add(1)
	}
	return err
}

func (f *File) complete(ctx context.Context, pace func(context.Context, int) error) error {
	if err := f.raise(ctx, toComplete()); err != nil {
		return err
	}
	for f.State() == UpperShared {
		if err := f.completeBut(ctx, span{}, pace); err != nil {
			return err
		}
	}
	return nil
}

// completeBut makes a partial file plain without the units of but. It stays partial if something comes between.
func (f *File) completeBut(ctx context.Context, but span, pace func(context.Context, int) error) error {
	if err := f.populateBut(ctx, but, pace); err != nil {
		return err
	}
	full := f.mapBut(but)
	if err := f.syncShared(); err != nil {
		return err
	}
	return f.becomeUpper(full, but)
}

// populateBut brings all that is missing to the upper, but for the units of a span.
func (f *File) populateBut(ctx context.Context, but span, pace func(context.Context, int) error) error {
	for _, s := range []span{{0, but.off}, {but.end, math.MaxInt64}} {
		if err := f.populatePaced(ctx, s, true, pace); err != nil {
			return err
		}
	}
	return nil
}

// Missing gives the bytes of a file that are in the lower alone, rounded to units: 0 in state Upper, all of them before
// the copy-up.
func (f *File) Missing() (int64, error) {
	if err := f.begin(); err != nil {
		return 0, err
	}
	defer f.end()
	if f.State().onLower() {
		return f.target.LowerLimit(), nil
	}
	if err := f.load(); err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ext == nil {
		return 0, nil
	}
	return f.ext.missing * f.ext.unit, nil
}

// populate brings the units of [off, end) to the upper that are missing there.
func (f *File) populate(ctx context.Context, off, end int64) error {
	return f.populatePaced(ctx, span{off, end}, false, nil)
}

// Preconditions: lasting unless the caller is changing the file anyway.
func (f *File) populatePaced(ctx context.Context, s span, lasting bool, pace func(context.Context, int) error) error {
	for {
		if ctx.Err() != nil {
			return interrupted(ctx)
		}
		if err := f.load(); err != nil {
			return err
		}
		missing := f.firstMissing(s)
		if missing.off >= missing.end {
			return nil
		}
		if pace != nil {
			if err := pace(ctx, int(missing.end-missing.off)); err != nil {
				return err
			}
		}
		if err := f.populateChunk(ctx, missing, lasting); err != nil {
			return err
		}
		s.off = missing.end
	}
}

// firstMissing gives the first units of s that are missing, up to a chunk; empty if there are none.
func (f *File) firstMissing(s span) span {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ext == nil {
		return span{}
	}
	e := f.ext
	for off, end := e.down(s.off), min(s.end, e.limit); off < end; {
		p := e.next(off, end)
		if p.lower {
			return span{p.off, e.up(min(p.end, p.off+max(chunkBytes, e.unit)))}
		}
		off = e.up(p.end)
	}
	return span{}
}

// populateChunk copies the units of s, which it reserves, that are missing then.
func (f *File) populateChunk(ctx context.Context, s span, lasting bool) error {
	release, ok, err := f.reserveMapped(s)
	if err != nil || !ok {
		return err
	}
	defer release()
	return f.withUpper(func(upper *backing) error {
		f.quiet.Lock()
		defer f.quiet.Unlock()
		return f.target.Quietly(upper.file, lasting, func() error {
			for {
				missing := f.firstMissing(s)
				if missing.off >= missing.end {
					return nil
				}
				if err := f.copyMissing(ctx, upper, missing); err != nil {
					return err
				}
			}
		})
	})
}

// copyMissing copies reserved, missing units. What the lower has as holes stays a hole, and counts as copied.
func (f *File) copyMissing(ctx context.Context, upper *backing, s span) error {
	lower, err := f.acquire(true)
	if err != nil {
		return err
	}
	defer f.release(lower)
	f.mu.Lock()
	end := min(s.end, f.ext.limit)
	f.mu.Unlock()
	c := copier{f: f, ctx: ctx, src: lower.fd, dst: upper.fd, unit: f.opts.Unit}
	err = c.data(s.off, end, f.have)
	f.filled(int(c.copied))
	if err != nil {
		return errors.Join(err, f.empty(upper, s, err))
	}
	f.have(s.off, s.end)
	return nil
}

// becomeUpper takes the marks of a partial file away if full is still its map: a failed sync has another one read, whose units may not be
// synced when it is full again. What it lacks of the units of but shows zeros from then on.
// Preconditions: full was mapBut's before a sync that succeeded, or volatile, or nothing of the lower shows.
func (f *File) becomeUpper(full *extents, but span) error {
	release, ok, err := f.reserveSpan(wholeSpan())
	if err != nil || !ok {
		return err
	}
	defer release()
	if full == nil || f.mapBut(but) != full || f.inDoubt() != nil {
		return nil
	}
	if err := f.withUpper(func(b *backing) error { return f.target.Complete(b.file) }); err != nil {
		err = fmt.Errorf("copyup: complete: %w", err)
		if errors.Is(err, ErrInDoubt) {
			f.Poison(err)
			return f.Err()
		}
		return err
	}
	old, err := f.plain()
	if old != nil {
		f.closeBacking(old)
	}
	f.stats.Completed.Add(1)
	return err
}

// fullMap is the map of a partial file that has everything in the upper, and nil of any other.
func (f *File) fullMap() *extents { return f.mapBut(span{}) }

// mapBut is fullMap of a file that may lack units of a span.
func (f *File) mapBut(but span) *extents {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state == UpperShared && f.ext != nil && f.ext.missing == f.ext.missingIn(but.off, but.end) {
		return f.ext
	}
	return nil
}

// plain makes the state Upper, and gives the lower's backing to close, if any.
func (f *File) plain() (*backing, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.moveLocked(lastBlock); err != nil {
		return nil, err
	}
	f.ext, f.limitDue = nil, false
	lower := f.lower
	f.lower = nil
	if lower.unrefLocked() {
		return lower, nil
	}
	return nil, nil
}

// copier copies data from one descriptor to the same place of another, and leaves holes as holes.
type copier struct {
	f        *File
	ctx      context.Context
	src, dst int
	unit     int64 // data is rounded to it

	copied  int64
	bySteps bool // copy_file_range does not work between the two
}

// data copies what has data in [off, end), and calls done for each part when it is there. end may cut the last unit.
func (c *copier) data(off, end int64, done func(off, end int64)) error {
	for pos := off; pos < end; {
		data, hole, err := c.f.nextLowerData(c.src, pos, end)
		if err != nil {
			return err
		}
		if data >= end {
			return nil
		}
		data = max(data&^(c.unit-1), pos)
		hole = min((hole+c.unit-1)&^(c.unit-1), end)
		if err := c.extent(data, hole, done); err != nil {
			return err
		}
		pos = hole
	}
	return nil
}

// extent copies [off, end).
func (c *copier) extent(off, end int64, done func(off, end int64)) error {
	start := off
	if c.f.scarce() {
		if err := c.f.allocate(c.dst, off, end-off); err != nil {
			return err
		}
	}
	for off < end {
		if c.ctx.Err() != nil {
			return interrupted(c.ctx)
		}
		n, err := c.step(off, end)
		off += n
		c.copied += n
		if whole := off &^ (c.unit - 1); whole > start {
			done(start, whole)
			start = whole
		}
		if err != nil {
			return err
		}
	}
	if end > start {
		done(start, (end+c.unit-1)&^(c.unit-1))
	}
	return nil
}

// step copies at least one byte of [off, end).
func (c *copier) step(off, end int64) (int64, error) {
	if !c.bySteps {
		n, err := retry(func() (int, error) {
			return c.f.sys.copyFileRange(c.src, off, c.dst, off, int(min(end-off, chunkBytes)))
		})
		switch {
		case err == nil && n > 0:
			return int64(n), nil
		case err != nil && !unsupported(err):
			return 0, fmt.Errorf("copyup: copy %d bytes at %d: %w", end-off, off, err)
		}
		c.bySteps = true // also for 0 bytes, which some file systems answer instead of an error
	}
	n, err := c.f.copyBuffered(c.src, off, c.dst, off, min(end-off, bufferBytes))
	if err == nil && n == 0 {
		err = fmt.Errorf("copyup: lower ends at %d, expected %d: %w: %w", off, end, io.ErrUnexpectedEOF, unix.EIO)
	}
	return n, err
}

// copyBuffered copies up to one buffer by reading and writing. It gives 0 at the end of src.
func (f *File) copyBuffered(src int, srcOff int64, dst int, dstOff, n int64) (int64, error) {
	p, _ := buffers.Get().(*[]byte)
	defer buffers.Put(p)
	buf := (*p)[:min(n, bufferBytes)]
	r, err := f.preadFull(src, buf, srcOff)
	if err != nil {
		return 0, fmt.Errorf("copyup: read %d bytes at %d: %w", len(buf), srcOff, err)
	}
	if r == 0 {
		return 0, nil
	}
	w, err := f.pwriteFull(dst, [][]byte{buf[:r]}, dstOff)
	return int64(w), err
}
