package copyup

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// request is the size that a copy-up is to leave.
type request struct {
	size int64 // of the upper, if cut
	cut  bool  // the file is being truncated to size, which may also be larger; else the size stays
	bare bool  // the caller brings the data itself, also that of a small file
}

func anySize() request              { return request{} }
func toComplete() request           { return request{bare: true} }
func truncateTo(size int64) request { return request{size: size, cut: true} }

// reservation is one copy-up in flight. Who made it raises the upper; the others wait for done.
type reservation struct {
	request
	done chan struct{} // closed when the copy-up was committed or undone
	err  error         // result; read after done
	own  bool          // err concerns only its maker (a cancelled context, a bad size): waiters try for themselves
}

// raise returns when there is an upper whose data counts: by a copy-up for want, or because there is or came one otherwise.
// One copy-up of a file runs at a time; callers that come meanwhile wait for it and share its result. Readers go on from the
// lower until it is committed. A file up to Options.PartialAbove is whole afterwards, if that could be done.
// Preconditions: between begin and end.
// Errors: those of the Target, of reading the lower and of writing the upper; EINTR if ctx ends first. The state is then
// what it was and the lower is what is read; a later raise starts anew.
func (f *File) raise(ctx context.Context, want request) error {
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
		if r.err != nil && !r.own && !want.cut {
			return r.err
		}
	}
}

// interrupted is the error of an operation whose context ended.
func interrupted(ctx context.Context) error {
	return fmt.Errorf("copyup: %w: %w", unix.EINTR, context.Cause(ctx))
}

// reserve gives the copy-up in flight, or a new one that is the caller's to run, or nil if there is nothing to raise.
func (f *File) reserve(want request) (r *reservation, mine bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.poison != nil:
		return nil, false, f.poison
	case f.copying != nil:
		return f.copying, false, nil
	case !f.state.onLower():
		return nil, false, nil
	}
	f.copying = &reservation{request: want, done: make(chan struct{})}
	return f.copying, true, nil
}

// lead runs the copy-up that r reserves and settles it, also if the Target panics: nobody may wait for ever.
func (f *File) lead(ctx context.Context, r *reservation) (err error) {
	var up raised
	err = fmt.Errorf("copyup: copy-up did not return: %w: %w", ErrInDoubt, unix.EIO)
	defer func() {
		r.own = r.cut || ctx.Err() != nil || errors.Is(err, unix.EINTR)
		err = f.settle(r, err)
	}()
	if up, err = f.copyUp(ctx, r.request); err != nil {
		return err
	}
	if err = f.swap(up); err != nil {
		return err
	}
	if up.shape.Partial && up.shape.Limit <= f.opts.PartialAbove && !r.bare {
		// What does not succeed here is missing still, and may be missing for ever: the file is right without it.
		_ = f.populate(ctx, 0, up.shape.Limit)
	}
	return nil
}

// settle ends the reservation with the result of a copy-up and wakes those who wait.
func (f *File) settle(r *reservation, err error) error {
	if errors.Is(err, ErrInDoubt) {
		f.Poison(err) // before the reservation ends, so that nobody tries again
		err = f.Err()
	}
	f.mu.Lock()
	f.copying = nil
	f.mu.Unlock()
	if err != nil {
		f.stats.Failed.Add(1)
	} else {
		f.stats.Faults.Add(1)
	}
	r.err = err
	close(r.done)
	return err
}

// raised is a committed upper.
type raised struct {
	upper *backing
	shape Shape
	ext   *extents // if partial
}

// swap makes a committed upper current: from here on reads go there.
func (f *File) swap(up raised) error {
	old, err := f.publish(up)
	if old != nil {
		f.closeBacking(old)
	}
	return err
}

// publish gives the backing to close, if any: the lower, if nobody reads it.
func (f *File) publish(up raised) (old *backing, _ error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := wholeFault
	if up.shape.Partial {
		e = partialFault
	}
	if err := f.moveLocked(e); err != nil {
		return up.upper, fmt.Errorf("%w: committed, but %w", ErrInDoubt, err)
	}
	up.upper.refs = 1
	f.upper, f.ext, f.named = up.upper, up.ext, false
	if f.state != Upper {
		return nil, nil
	}
	lower := f.lower
	f.lower = nil
	if lower.unrefLocked() {
		return lower, nil
	}
	return nil, nil
}

// copyUp stages an upper, raises it as want says and commits it. It copies no data unless the upper's file system cannot
// tell data from holes.
// Crash: before the Commit the staged file is marked and has no data that counts, so the lower is what shows.
// Compare: fs/overlayfs/copy_up.c:ovl_copy_up_tmpfile(), ovl_copy_up_meta_inode_data() (Linux 6.18).
func (f *File) copyUp(ctx context.Context, want request) (raised, error) {
	lower, err := f.acquire(true)
	if err != nil {
		return raised{}, err
	}
	defer f.release(lower)
	staged, err := f.target.Stage()
	if err != nil {
		return raised{}, fmt.Errorf("copyup: stage: %w", err)
	}
	upper := &backing{file: staged, fd: int(staged.Fd()), stage: true}
	settled := false
	abort := func(err error) (raised, error) {
		settled = true
		f.target.Abort(upper.file)
		f.closeBacking(upper)
		return raised{}, err
	}
	defer func() {
		if !settled { // a panic
			f.target.Abort(upper.file)
		}
	}()
	if err := f.checkBacking(upper); err != nil {
		return abort(err)
	}
	before, err := f.stat(upper.fd)
	if err != nil {
		return abort(fmt.Errorf("copyup: stat staged file: %w", err))
	}
	r := &raiser{f: f, ctx: ctx, want: want, lower: lower, fd: upper.fd, before: before, keep: min(lower.limit, before.Size)}
	if want.cut {
		r.keep = min(r.keep, want.size)
	}
	if err := r.run(); err != nil {
		return abort(errors.Join(err, r.undo()))
	}
	settled = true
	if err := f.target.Commit(staged, r.shape); err != nil {
		err = fmt.Errorf("copyup: commit: %w", err)
		if !errors.Is(err, ErrInDoubt) { // else staged may be the upper already
			err = errors.Join(err, r.undo())
		}
		f.closeBacking(upper)
		return raised{}, err
	}
	r.count()
	return raised{upper: upper, shape: r.shape, ext: r.ext}, nil
}
