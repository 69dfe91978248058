package copyup

import (
	"context"
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// CopyRange is copy_file_range(2) from f to dst on the backing files: the file system may share blocks or copy by
// itself, and where it cannot, or dst is partial, bytes are read and written. dst is raised first, unless nothing is to be copied.
// It gives fewer than n bytes at the end of f.
// Errors: EINVAL for negative numbers and for ranges of the same file that overlap; EOVERFLOW beyond the largest offset;
// those of a copy-up of dst; those of reading and writing, only if nothing was copied before.
// Locks: never both files' at once.
func (f *File) CopyRange(dst *File, offIn, offOut, n int64) (int64, error) {
	switch {
	case offIn < 0 || offOut < 0 || n < 0:
		return 0, fmt.Errorf("copyup: copy %d bytes from %d to %d: %w", n, offIn, offOut, unix.EINVAL)
	case max(offIn, offOut) > math.MaxInt64-n:
		return 0, fmt.Errorf("copyup: copy %d bytes from %d to %d: %w", n, offIn, offOut, unix.EOVERFLOW)
	case f == dst && offIn < offOut+n && offOut < offIn+n:
		return 0, fmt.Errorf("copyup: copy %d bytes from %d to %d: %w", n, offIn, offOut, unix.EINVAL)
	}
	if err := f.begin(); err != nil {
		return 0, err
	}
	defer f.end()
	if err := dst.begin(); err != nil {
		return 0, err
	}
	defer dst.end()
	if n, err := f.clip(offIn, n); n == 0 || err != nil {
		return 0, err
	}
	if err := dst.raise(context.Background(), anySize()); err != nil {
		return 0, err
	}
	n, err := f.clip(offIn, n) // again: f may be dst, or have changed
	if err != nil {
		return 0, err
	}
	done := int64(0)
	for done < n {
		c, err := f.copyStep(dst, offIn+done, offOut+done, n-done)
		done += max(c, 0)
		switch {
		case errors.Is(err, errMoved):
			continue
		case err != nil && done == 0:
			return 0, fmt.Errorf("copyup: copy range: %w", err)
		case err != nil || c == 0:
			return done, nil
		}
	}
	return done, nil
}

// clip gives how much of n bytes at off the file has.
func (f *File) clip(off, n int64) (int64, error) {
	b, err := f.acquireCurrent()
	if err != nil {
		return 0, err
	}
	defer f.release(b)
	size := b.limit
	if !b.lower {
		st, err := f.stat(b.fd)
		if err != nil {
			return 0, fmt.Errorf("copyup: stat: %w", err)
		}
		size = st.Size
	}
	return max(0, min(n, size-off)), nil
}

// copyStep copies some of n bytes, 0 at the end of f.
// Errors: errMoved to try again.
func (f *File) copyStep(dst *File, offIn, offOut, n int64) (int64, error) {
	if dst.State() == UpperShared {
		return f.copyByHand(dst, offIn, offOut, n)
	}
	where := piece{offIn, offIn + n, f.State().onLower()}
	if f.State() == UpperShared {
		pieces, err := f.pieces(offIn, offIn+n)
		if err != nil {
			return 0, err
		}
		where = pieces[0]
	}
	in, err := f.acquire(where.lower)
	if err != nil {
		return 0, err
	}
	defer f.release(in)
	out, err := dst.acquire(false)
	if err != nil {
		return 0, err
	}
	defer dst.release(out)
	n = where.end - where.off
	k, err := retry(func() (int, error) { return f.sys.copyFileRange(in.fd, offIn, out.fd, offOut, int(min(n, chunkBytes))) })
	c := int64(k)
	if err == nil && k == 0 || err != nil && unsupported(err) {
		c, err = f.copyBuffered(in.fd, offIn, out.fd, offOut, n)
	}
	if c > 0 {
		dst.opts.Background.touched(dst, offOut, offOut+c, true)
	}
	return c, err
}

// copyByHand is for a target whose units have to be filled.
func (f *File) copyByHand(dst *File, offIn, offOut, n int64) (int64, error) {
	buf := make([]byte, min(n, chunkBytes))
	r, err := f.ReadAt(buf, offIn)
	if r == 0 {
		return 0, err
	}
	w, err := dst.WriteAt(buf[:r], offOut, SyncNone)
	return int64(w), err
}
