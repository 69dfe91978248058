package copyup

import (
	"context"
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// CopyRange is copy_file_range(2) from f to dst on the backing files: the file system may share blocks or copy by
// itself, and where it cannot, bytes are read and written. dst is copied up first, unless nothing is to be copied.
// It gives fewer than n bytes at the end of f.
// Errors: EINVAL for negative numbers and for ranges of the same file that overlap; EOVERFLOW beyond the largest offset;
// those of Fault of dst; those of
// reading and writing, only if nothing was copied before.
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
	if err := dst.fault(context.Background(), wholeFile()); err != nil {
		return 0, err
	}
	n, err := f.clip(offIn, n) // again: f may be dst, or have changed
	if err != nil {
		return 0, err
	}
	out, err := dst.acquire()
	if err != nil {
		return 0, err
	}
	defer dst.release(out)
	in, err := f.acquire()
	if err != nil {
		return 0, err
	}
	defer f.release(in)
	return f.copyTo(in, out, offIn, offOut, n)
}

// clip gives how much of n bytes at off the file has.
func (f *File) clip(off, n int64) (int64, error) {
	b, err := f.acquire()
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

// copyTo copies n bytes, or to the end of in.
func (f *File) copyTo(in, out *backing, offIn, offOut, n int64) (done int64, err error) {
	bySteps := false
	for done < n {
		var c int64
		if !bySteps {
			var k int
			k, err = retry(func() (int, error) {
				return f.sys.copyFileRange(in.fd, offIn+done, out.fd, offOut+done, int(min(n-done, chunkBytes)))
			})
			c = int64(k)
			bySteps = err == nil && k == 0 || err != nil && unsupported(err)
		}
		if bySteps {
			c, err = f.copyBuffered(in.fd, offIn+done, out.fd, offOut+done, n-done)
		}
		done += max(c, 0)
		if err != nil {
			break
		}
		if c == 0 {
			return done, nil
		}
	}
	if err != nil && done == 0 {
		return 0, fmt.Errorf("copyup: copy range: %w", err)
	}
	return done, nil
}
