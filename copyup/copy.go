package copyup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// chunkBytes bounds one copy_file_range(2), so that a cancelled copy-up ends soon.
	chunkBytes = 16 << 20
	// bufferBytes is the unit of the read/write fallback.
	bufferBytes = 256 << 10
)

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferBytes); return &b }}

// copier fills one staged upper from the lower: the first keep bytes, then up to size a hole.
type copier struct {
	f        *File
	ctx      context.Context
	src, dst int         // descriptors: lower, staged
	before   unix.Stat_t // staged file as Stage gave it
	keep     int64       // bytes to copy from the start of the lower; at most size
	size     int64       // final size

	copied, cloned int64 // bytes
	bySteps        bool  // copy_file_range does not work between the two
}

// run makes the staged file what it has to be and, unless volatile, its data durable.
// Errors: after one, undo.
func (c *copier) run() error {
	if err := c.clean(); err != nil {
		return err
	}
	if err := c.clone(); err != nil {
		return err
	}
	if err := c.truncate(c.size); err != nil {
		return err
	}
	if err := c.segments(); err != nil {
		return err
	}
	if c.copied+c.cloned == 0 || c.f.opts.Volatile {
		return nil // sizes and holes are metadata: journalled before the name that Commit makes
	}
	if err := retryErr(func() error { return c.f.sys.fdatasync(c.dst) }); err != nil {
		return fmt.Errorf("copyup: sync staged file: %w", err)
	}
	return nil
}

// clean takes away what an earlier attempt left in a metacopy upper. Its size is what stat(2) shows and must not be
// touched: the blocks are punched out or, where the file system cannot do that, overwritten with zeros.
func (c *copier) clean() error {
	if c.before.Size == 0 {
		return nil
	}
	_, err := c.seek(c.dst, 0, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return nil
	}
	err = retryErr(func() error {
		return c.f.sys.fallocate(c.dst, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, c.before.Size)
	})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return c.zero(c.before.Size)
	}
	if err != nil {
		return fmt.Errorf("copyup: empty staged file: %w", err)
	}
	return nil
}

// zero overwrites the first n bytes of the staged file.
func (c *copier) zero(n int64) error {
	zeros := make([]byte, bufferBytes)
	for off := int64(0); off < n; {
		if c.ctx.Err() != nil {
			return interrupted(c.ctx)
		}
		w, err := c.f.pwriteFull(c.dst, zeros[:min(n-off, bufferBytes)], off, 0)
		if err != nil {
			return fmt.Errorf("copyup: empty staged file: %w", err)
		}
		off += int64(w)
	}
	return nil
}

func (c *copier) truncate(size int64) error {
	if err := retryErr(func() error { return c.f.sys.ftruncate(c.dst, size) }); err != nil {
		return fmt.Errorf("copyup: set size of staged file: %w", err)
	}
	return nil
}

// clone shares the lower's blocks with the staged file where the file system can (ioctl_ficlonerange(2)): all whole blocks
// of the part to keep, and the last partial one if it is also the lower's last.
func (c *copier) clone() error {
	st, err := c.f.stat(c.src)
	if err != nil {
		return fmt.Errorf("copyup: stat lower: %w", err)
	}
	n := c.keep
	if n != st.Size {
		n -= n % max(int64(st.Blksize), 1)
	}
	if n == 0 {
		return nil
	}
	err = retryErr(func() error { return c.f.sys.cloneRange(c.dst, c.src, n) })
	switch {
	case err == nil:
		c.cloned = n
	case !unsupported(err):
		return fmt.Errorf("copyup: clone lower: %w", err)
	}
	return nil
}

// unsupported reports whether an error of FICLONERANGE or copy_file_range(2) says that these two files have to be copied
// in another way. EPERM and ETXTBSY are for swap files and the like; a plain write then tells the real reason.
func unsupported(err error) bool {
	for _, e := range []unix.Errno{
		unix.EOPNOTSUPP, unix.EXDEV, unix.EINVAL, unix.ENOTTY, unix.ENOSYS, unix.EPERM, unix.ETXTBSY,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// segments copies the data between cloned and keep and leaves the lower's holes as holes.
func (c *copier) segments() error {
	for pos := c.cloned; pos < c.keep; {
		data, err := c.seek(c.src, pos, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		}
		hole := c.keep
		switch {
		case unsupported(err):
			data = pos // a file system that does not tell: everything is data
		case err != nil:
			return fmt.Errorf("copyup: find data in lower: %w", err)
		default:
			if hole, err = c.seek(c.src, data, unix.SEEK_HOLE); err != nil {
				return fmt.Errorf("copyup: find hole in lower: %w", err)
			}
		}
		end := min(hole, c.keep)
		if err := c.extent(data, end); err != nil {
			return err
		}
		pos = max(pos, end)
		if data >= c.keep {
			return nil
		}
	}
	return nil
}

func (c *copier) seek(fd int, off int64, whence int) (int64, error) {
	return retry(func() (int64, error) { return c.f.sys.lseek(fd, off, whence) })
}

// extent copies [off, end).
func (c *copier) extent(off, end int64) error {
	for off < end {
		if c.ctx.Err() != nil {
			return interrupted(c.ctx)
		}
		n, err := c.step(off, end)
		if err != nil {
			return err
		}
		off += n
		c.copied += n
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
	r, err := retry(func() (int, error) { return f.sys.pread(src, buf, srcOff) })
	if err != nil {
		return 0, fmt.Errorf("copyup: read %d bytes at %d: %w", len(buf), srcOff, err)
	}
	w, err := f.pwriteFull(dst, buf[:r], dstOff, 0)
	if err != nil {
		return int64(w), fmt.Errorf("copyup: write %d bytes at %d: %w", r, dstOff, err)
	}
	return int64(w), nil
}

// undo gives a staged file that has a name the size back that stat(2) shows; its blocks are nobody's until a Commit, and
// clean removes them before the next attempt. A file without a name needs nothing.
// Errors: ErrInDoubt, since the size is then wrong.
func (c *copier) undo() error {
	if c.before.Nlink == 0 {
		return nil
	}
	if err := c.truncate(c.before.Size); err != nil {
		return fmt.Errorf("%w: size of the metacopy upper: %w", ErrInDoubt, err)
	}
	return nil
}
