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
	pwrite(fd int, p []byte, off int64, flags int) (int, error)
	ftruncate(fd int, size int64) error
	fallocate(fd int, mode uint32, off, length int64) error
	lseek(fd int, off int64, whence int) (int64, error)
	cloneRange(dst, src int, length int64) error // FICLONERANGE from offset 0 to offset 0; length 0: to the end of src
	copyFileRange(src int, srcOff int64, dst int, dstOff int64, length int) (int, error)
	fsync(fd int) error
	fdatasync(fd int) error
}

// linux is the kernel.
type linux struct{}

var _ kernel = linux{}

func (linux) fstat(fd int, st *unix.Stat_t) error { return unix.Fstat(fd, st) }

func (linux) statusFlags(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0) }

func (linux) pread(fd int, p []byte, off int64) (int, error) { return unix.Pread(fd, p, off) }

func (linux) pwrite(fd int, p []byte, off int64, flags int) (int, error) {
	if flags == 0 {
		return unix.Pwrite(fd, p, off)
	}
	return unix.Pwritev2(fd, [][]byte{p}, off, flags)
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
