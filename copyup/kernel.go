package copyup

import (
	"errors"

	"golang.org/x/sys/unix"
)

// kernel is every system call that this package makes on a descriptor, so that tests can fail the n-th of them.
// Each method is one call, without retries.
type kernel interface {
	fstat(fd int, st *unix.Stat_t) error
	statusFlags(fd int) (int, error) // fcntl(F_GETFL)
	pread(fd int, p []byte, off int64) (int, error)
	pwrite(fd int, bufs [][]byte, off int64) (int, error) // the buffers one after the other
	ftruncate(fd int, size int64) error
	fallocate(fd int, mode uint32, off, length int64) error
	lseek(fd int, off int64, whence int) (int64, error)
	cloneRange(dst, src int, length int64) error // FICLONERANGE from offset 0 to offset 0
	copyFileRange(src int, srcOff int64, dst int, dstOff int64, length int) (int, error)
	fsync(fd int) error
	fdatasync(fd int) error
	startWriteback(fd int, off, length int64) error                 // sync_file_range(WRITE)
	awaitWriteback(fd int, off, length int64) error                 // sync_file_range(WAIT_BEFORE)
	written(fd int, limit int64) ([]span, error)                    // FIEMAP, see fiemap.go
	dirty(fd int, off, length int64) bool                           // pages that are not on the disk
	dropCache(fd int, off, length int64) (dropped int64, err error) // posix_fadvise(DONTNEED); bytes that left the cache
}

// linux is the kernel.
type linux struct{}

var _ kernel = linux{}

func (linux) fstat(fd int, st *unix.Stat_t) error { return unix.Fstat(fd, st) }

func (linux) statusFlags(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0) }

func (linux) pread(fd int, p []byte, off int64) (int, error) { return unix.Pread(fd, p, off) }

func (linux) pwrite(fd int, bufs [][]byte, off int64) (int, error) {
	if len(bufs) == 1 {
		return unix.Pwrite(fd, bufs[0], off)
	}
	return unix.Pwritev(fd, bufs, off)
}

func (linux) ftruncate(fd int, size int64) error { return unix.Ftruncate(fd, size) }

func (linux) fallocate(fd int, mode uint32, off, length int64) error {
	return unix.Fallocate(fd, mode, off, length)
}

func (linux) lseek(fd int, off int64, whence int) (int64, error) { return unix.Seek(fd, off, whence) }

func (linux) cloneRange(dst, src int, length int64) error {
	return unix.IoctlFileCloneRange(dst, &unix.FileCloneRange{Src_fd: int64(src), Src_length: uint64(length)})
}

func (linux) copyFileRange(src int, srcOff int64, dst int, dstOff int64, length int) (int, error) {
	return unix.CopyFileRange(src, &srcOff, dst, &dstOff, length, 0)
}

func (linux) fsync(fd int) error { return unix.Fsync(fd) }

func (linux) fdatasync(fd int) error { return unix.Fdatasync(fd) }

func (linux) startWriteback(fd int, off, length int64) error {
	return unix.SyncFileRange(fd, off, length, unix.SYNC_FILE_RANGE_WRITE)
}

func (linux) awaitWriteback(fd int, off, length int64) error {
	return unix.SyncFileRange(fd, off, length, unix.SYNC_FILE_RANGE_WAIT_BEFORE)
}

// cached is what the page cache has of a range. Without cachestat(2) (Linux 6.5) it is not known and nothing.
func cached(fd int, off, length int64) (cs unix.Cachestat_t) {
	r := unix.CachestatRange{Off: uint64(off), Len: uint64(length)}
	if err := unix.Cachestat(uint(fd), &r, &cs, 0); err != nil {
		return unix.Cachestat_t{}
	}
	return cs
}

func (linux) dropCache(fd int, off, length int64) (int64, error) {
	before := cached(fd, off, length).Cache
	if err := unix.Fadvise(fd, off, length, unix.FADV_DONTNEED); err != nil {
		return 0, err
	}
	after := cached(fd, off, length).Cache
	return int64(before-min(before, after)) * int64(unix.Getpagesize()), nil
}

func (linux) dirty(fd int, off, length int64) bool {
	cs := cached(fd, off, length)
	return cs.Dirty > 0 || cs.Writeback > 0
}

// retry makes a call again as long as a signal interrupts it (signal(7): all calls of kernel are safe to restart).
func retry[T any](call func() (T, error)) (T, error) {
	for {
		v, err := call()
		if !errors.Is(err, unix.EINTR) {
			return v, err
		}
	}
}

// retryErr is retry for a call that gives nothing but an error.
func retryErr(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
