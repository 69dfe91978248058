package copyup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// ReadAt reads from wherever the data is. Reads that run during a copy-up see the lower until it is committed; a read that
// starts after a write returned sees that write.
// It is io.ReaderAt, except that the end of the file is n < len(p) with a nil error.
// Errors: those of pread(2); with one, n bytes are good.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("copyup: read at %d: %w", off, unix.EINVAL)
	}
	if err := f.begin(); err != nil {
		return 0, err
	}
	defer f.end()
	for {
		n, again, err := f.readOnce(p, off)
		if !again {
			return n, err
		}
	}
}

// readOnce reads from the descriptor that is current. It asks for another try if a copy-up was committed meanwhile: then
// a write may have been completed too, and what was read is older than that. There is one such commit in a File's life.
func (f *File) readOnce(p []byte, off int64) (n int, again bool, err error) {
	b, err := f.acquire()
	if err != nil {
		return 0, false, err
	}
	defer f.release(b)
	if b.lower {
		p = p[:max(0, min(int64(len(p)), b.limit-off))]
	}
	n, err = f.preadFull(b.fd, p, off)
	return n, f.moved(b), err
}

// preadFull reads until p is full or the file ends.
func (f *File) preadFull(fd int, p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := retry(func() (int, error) { return f.sys.pread(fd, p[done:], off+int64(done)) })
		if err != nil {
			return done, fmt.Errorf("copyup: read %d bytes at %d: %w", len(p), off, err)
		}
		if n == 0 {
			break
		}
		done += n
	}
	return done, nil
}

// WriteAt writes to the upper, after the copy-up if there is none yet. Writes to different places of a file run in
// parallel. Writing nothing does nothing.
// Errors: those of Fault, and then nothing was written; those of pwritev2(2), and then the first n bytes were.
func (f *File) WriteAt(p []byte, off int64, sync SyncMode) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("copyup: write at %d: %w", off, unix.EINVAL)
	}
	if len(p) == 0 {
		return 0, f.Err()
	}
	n := 0
	err := f.onUpper(func(fd int) (err error) {
		n, err = f.pwriteFull(fd, p, off, f.writeFlags(sync))
		return err
	})
	return n, err
}

// writeFlags gives the flags of pwritev2(2). Compare: fs/overlayfs/file.c:ovl_write_iter(), which drops them too when
// volatile (Linux 6.18).
func (f *File) writeFlags(sync SyncMode) int {
	switch {
	case f.opts.Volatile || sync == SyncNone:
		return 0
	case sync == SyncData:
		return unix.RWF_DSYNC
	default:
		return unix.RWF_SYNC | unix.RWF_DSYNC
	}
}

// pwriteFull writes all of p, or says how much and why not more.
func (f *File) pwriteFull(fd int, p []byte, off int64, flags int) (int, error) {
	done := 0
	for done < len(p) {
		n, err := retry(func() (int, error) { return f.sys.pwrite(fd, p[done:], off+int64(done), flags) })
		if err != nil {
			return done, fmt.Errorf("copyup: write %d bytes at %d: %w", len(p), off, err)
		}
		if n == 0 {
			return done, fmt.Errorf("copyup: write %d bytes at %d: %w: %w", len(p), off, io.ErrShortWrite, unix.EIO)
		}
		done += n
	}
	return done, nil
}

// Truncate sets the size. A copy-up that it needs copies only what remains, and nothing for size 0, and the upper appears
// with its new size at once.
// Errors: those of Fault; those of ftruncate(2).
func (f *File) Truncate(size int64) error {
	if size < 0 {
		return fmt.Errorf("copyup: truncate to %d: %w", size, unix.EINVAL)
	}
	if err := f.begin(); err != nil {
		return err
	}
	defer f.end()
	if err := f.fault(context.Background(), truncateTo(size)); err != nil {
		return err
	}
	// Also after our own copy-up: it stamps the times and takes a file capability away, as on a plain file.
	return f.withFD(func(fd int) error {
		if err := retryErr(func() error { return f.sys.ftruncate(fd, size) }); err != nil {
			return fmt.Errorf("copyup: truncate to %d: %w", size, err)
		}
		return nil
	})
}

// Allocate is fallocate(2) on the upper, in every mode that its file system has, after the copy-up if there is none yet.
// Errors: those of Fault; those of fallocate(2). Those of a call that no file system accepts come before the copy-up.
func (f *File) Allocate(mode uint32, off, length int64) error {
	if err := checkAllocate(mode, off, length); err != nil {
		return fmt.Errorf("copyup: allocate %d bytes at %d, mode %#x: %w", length, off, mode, err)
	}
	return f.onUpper(func(fd int) error {
		if err := retryErr(func() error { return f.sys.fallocate(fd, mode, off, length) }); err != nil {
			return fmt.Errorf("copyup: allocate %d bytes at %d, mode %#x: %w", length, off, mode, err)
		}
		return nil
	})
}

// allocateModes are the bits of fallocate(2) that a file system can know.
const allocateModes = unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_COLLAPSE_RANGE |
	unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_INSERT_RANGE | unix.FALLOC_FL_UNSHARE_RANGE | unix.FALLOC_FL_WRITE_ZEROES

// checkAllocate refuses what the kernel refuses whatever the file. Compare: fs/open.c:vfs_fallocate() (Linux 6.18).
func checkAllocate(mode uint32, off, length int64) error {
	switch {
	case off < 0 || length <= 0:
		return unix.EINVAL
	case mode&^allocateModes != 0:
		return unix.EOPNOTSUPP
	case mode&unix.FALLOC_FL_PUNCH_HOLE != 0 && mode&unix.FALLOC_FL_KEEP_SIZE == 0:
		return unix.EOPNOTSUPP
	case off > math.MaxInt64-length:
		return unix.EFBIG
	}
	return nil
}

// Seek finds data or a hole at or after off, as lseek(2) with SEEK_DATA or SEEK_HOLE does.
// Errors: ENXIO as there; EINVAL for any other whence.
func (f *File) Seek(off int64, whence int) (int64, error) {
	if whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE {
		return 0, fmt.Errorf("copyup: seek with whence %d: %w", whence, unix.EINVAL)
	}
	if err := f.begin(); err != nil {
		return 0, err
	}
	defer f.end()
	for {
		pos, again, err := f.seekOnce(off, whence)
		if !again {
			return pos, err
		}
	}
}

func (f *File) seekOnce(off int64, whence int) (pos int64, again bool, err error) {
	b, err := f.acquire()
	if err != nil {
		return 0, false, err
	}
	defer f.release(b)
	pos, err = retry(func() (int64, error) { return f.sys.lseek(b.fd, off, whence) })
	switch {
	case err == nil && b.lower && (off >= b.limit || whence == unix.SEEK_DATA && pos >= b.limit):
		err = unix.ENXIO
	case err == nil && b.lower:
		pos = min(pos, b.limit)
	}
	if err != nil {
		return 0, f.moved(b), fmt.Errorf("copyup: seek from %d: %w", off, err)
	}
	return pos, f.moved(b), nil
}

// Sync makes what was written durable: fdatasync(2) or fsync(2) of the upper. Nothing to do while the data is in the
// lower, or when volatile.
// Errors: those of fsync(2); what they say about lost data holds here too.
func (f *File) Sync(dataOnly bool) error {
	if err := f.begin(); err != nil {
		return err
	}
	defer f.end()
	if f.opts.Volatile || f.State().onLower() {
		return nil
	}
	call := f.sys.fsync
	if dataOnly {
		call = f.sys.fdatasync
	}
	return f.withFD(func(fd int) error {
		if err := retryErr(func() error { return call(fd) }); err != nil {
			return fmt.Errorf("copyup: sync: %w", err)
		}
		return nil
	})
}

// onUpper completes the copy-up and calls fn with the upper's descriptor.
func (f *File) onUpper(fn func(fd int) error) error {
	if err := f.begin(); err != nil {
		return err
	}
	defer f.end()
	if err := f.fault(context.Background(), wholeFile()); err != nil {
		return err
	}
	return f.withFD(fn)
}

// withFD calls fn with the descriptor that is current.
// Preconditions: between begin and end.
func (f *File) withFD(fn func(fd int) error) error {
	b, err := f.acquire()
	if err != nil {
		return err
	}
	defer f.release(b)
	return fn(b.fd)
}

// WithCurrent calls fn with the descriptor that holds the data when it is called: the lower, read-only, or the upper. fn
// must not keep it. A copy-up may be committed while fn runs; who minds holds faults away.
func (f *File) WithCurrent(fn func(*os.File) error) error {
	if err := f.begin(); err != nil {
		return err
	}
	defer f.end()
	b, err := f.acquire()
	if err != nil {
		return err
	}
	defer f.release(b)
	return fn(b.file)
}

// WithUpper is WithCurrent for the upper only. It copies nothing up: see Fault.
// Errors: ErrNoUpper (with ENODATA) while the data is in the lower.
func (f *File) WithUpper(fn func(*os.File) error) error {
	if f.State().onLower() {
		return errors.Join(ErrNoUpper, unix.ENODATA)
	}
	return f.WithCurrent(fn)
}
