package copyup

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// request is what a copy-up is to leave in the upper.
type request struct {
	size  int64 // size of the upper, if cut
	cut   bool  // the file is being truncated to size, which may also be larger; else the lower's size is kept
	whole bool  // = !cut: the result suits everybody who waits
}

func wholeFile() request            { return request{whole: true} }
func truncateTo(size int64) request { return request{size: size, cut: true} }

// reservation is one copy-up in flight. Who made it copies; the others wait for done.
type reservation struct {
	request
	done chan struct{} // closed when the copy-up was committed or undone
	err  error         // result; read after done
	own  bool          // err concerns only its maker (a cancelled context, a bad size): waiters try for themselves
}

// Fault completes the copy-up: afterwards the state is Upper. One copy-up of a file runs at a time; callers that come
// meanwhile wait for it and share its result. Readers go on from the lower until it is committed.
// Errors: those of the Target, of reading the lower and of writing the upper; EINTR if ctx ends first. The state is then
// what it was and the lower is what is read; a later Fault starts anew.
func (f *File) Fault(ctx context.Context) error {
	if err := f.begin(); err != nil {
		return err
	}
	defer f.end()
	return f.fault(ctx, wholeFile())
}

// fault returns when the state is Upper: by a copy-up for want, or because it is or got so otherwise.
// Preconditions: between begin and end.
func (f *File) fault(ctx context.Context, want request) error {
	for {
		r, mine, err := f.reserve(want)
		if err != nil || r == nil {
			return err
		}
		if mine {
			return f.lead(ctx, r)
		}
		select {
		case <-r.done:
		case <-ctx.Done():
			return interrupted(ctx)
		}
		if r.err != nil && !r.own && want.whole {
			return r.err
		}
	}
}

// interrupted is the error of an operation whose context ended.
func interrupted(ctx context.Context) error {
	return fmt.Errorf("copyup: %w: %w", unix.EINTR, context.Cause(ctx))
}

// reserve gives the copy-up in flight, or a new one that is the caller's to run, or nil if there is nothing to copy up.
func (f *File) reserve(want request) (r *reservation, mine bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.poison != nil:
		return nil, false, f.poison
	case f.state == Upper:
		return nil, false, nil
	case f.copying != nil:
		return f.copying, false, nil
	}
	f.copying = &reservation{request: want, done: make(chan struct{})}
	return f.copying, true, nil
}

// lead runs the copy-up that r reserves and settles it, also if the Target panics: nobody may wait for ever.
func (f *File) lead(ctx context.Context, r *reservation) (err error) {
	var upper *backing
	err = fmt.Errorf("copyup: copy-up did not return: %w: %w", ErrInDoubt, unix.EIO)
	defer func() {
		r.own = r.cut || ctx.Err() != nil || errors.Is(err, unix.EINTR)
		err = f.settle(r, upper, err)
	}()
	upper, err = f.copyUp(ctx, r.request)
	return err
}

// settle publishes the result of a copy-up and wakes those who wait. From here on reads go to upper.
func (f *File) settle(r *reservation, upper *backing, err error) error {
	if errors.Is(err, ErrInDoubt) {
		f.Poison(err) // before the reservation ends, so that nobody tries again
		err = f.Err()
	}
	old, err := f.swap(upper, err)
	if old != nil {
		f.closeBacking(old)
	}
	if errors.Is(err, ErrInDoubt) {
		f.Poison(err)
		err = f.Err()
	}
	if err != nil {
		f.stats.FaultErrors.Add(1)
	} else {
		f.stats.Faults.Add(1)
	}
	r.err = err
	close(r.done)
	return err
}

// swap makes upper the current backing and ends the reservation. It gives the backing to close, if any: the lower, if
// nobody reads it.
func (f *File) swap(upper *backing, err error) (old *backing, _ error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.copying = nil
	if err != nil {
		return nil, err
	}
	if err := f.moveLocked(wholeFault); err != nil {
		return upper, fmt.Errorf("%w: committed, but %w", ErrInDoubt, err)
	}
	lower := f.current
	upper.refs = 1
	f.current = upper
	if lower.unrefLocked() {
		return lower, nil
	}
	return nil, nil
}

// copyUp stages, fills, syncs and commits an upper as want says, and gives its descriptor.
// Crash: before the Commit the staged file has no name or carries the metacopy mark, so the lower is what shows.
// Compare: fs/overlayfs/copy_up.c:ovl_copy_up_tmpfile(), ovl_copy_up_meta_inode_data() (Linux 6.18).
func (f *File) copyUp(ctx context.Context, want request) (*backing, error) {
	lower, err := f.acquire()
	if err != nil {
		return nil, err
	}
	defer f.release(lower)
	if !lower.lower { // reserve saw a lower state, and only we could change it
		return nil, fmt.Errorf("copyup: copy-up of an upper: %w", unix.EIO)
	}
	staged, err := f.target.Stage()
	if err != nil {
		return nil, fmt.Errorf("copyup: stage: %w", err)
	}
	upper := &backing{file: staged, fd: int(staged.Fd()), stage: true}
	if err := f.checkBacking(upper); err != nil {
		return nil, f.abort(upper, err)
	}
	before, err := f.stat(upper.fd)
	if err != nil {
		return nil, f.abort(upper, fmt.Errorf("copyup: stat staged file: %w", err))
	}
	c := &copier{f: f, ctx: ctx, src: lower.fd, dst: upper.fd, before: before, keep: lower.limit, size: lower.limit}
	if want.cut {
		c.keep, c.size = min(lower.limit, want.size), want.size
	}
	if err := c.run(); err != nil {
		return nil, f.abort(upper, errors.Join(err, c.undo()))
	}
	if err := f.target.Commit(staged); err != nil {
		err = fmt.Errorf("copyup: commit: %w", err)
		if !errors.Is(err, ErrInDoubt) { // else staged may be the upper already
			err = errors.Join(err, c.undo())
		}
		f.closeBacking(upper)
		return nil, err
	}
	f.countCopy(c, lower.limit)
	return upper, nil
}

// abort gives a staged file back and returns err.
func (f *File) abort(upper *backing, err error) error {
	f.target.Abort(upper.file)
	f.closeBacking(upper)
	return err
}

func (f *File) countCopy(c *copier, limit int64) {
	f.stats.BytesCopied.Add(uint64(c.copied))
	f.stats.BytesCloned.Add(uint64(c.cloned))
	f.stats.AvoidedBytes.Add(uint64(limit - c.keep))
	if c.keep == 0 && limit > 0 {
		f.stats.AvoidedTruncates.Add(1)
	}
}
