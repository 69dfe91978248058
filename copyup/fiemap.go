package copyup

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Source: linux/fiemap.h; Documentation/filesystems/fiemap.rst.
const (
	fsIocFiemap     = 0xc020660b
	fiemapSync      = 0x1
	fiemapLast      = 0x1
	fiemapUnwritten = 0x800
	fiemapExtents   = 64
)

type fiemapExtent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

type fiemap struct {
	start, length                    uint64
	flags, mapped, count, reserved32 uint32
	extents                          [fiemapExtents]fiemapExtent
}

// written lists the parts of a file's start that have been written, after a writeback of its dirty pages. Unlike SEEK_DATA
// it does not take clean pages in the cache for data: those that a read put over space that is allocated and was never
// written (xfs allocates such space around a write to a file that shares blocks).
// Errors: EOPNOTSUPP where the file system has no FIEMAP.
func (linux) written(fd int, limit int64) ([]span, error) {
	var all []span
	for pos := int64(0); pos < limit; {
		m := fiemap{start: uint64(pos), length: uint64(limit - pos), flags: fiemapSync, count: fiemapExtents}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fsIocFiemap, uintptr(unsafe.Pointer(&m)))
		if errno != 0 {
			return nil, errno
		}
		if m.mapped == 0 {
			break
		}
		for _, e := range m.extents[:min(m.mapped, fiemapExtents)] {
			s := span{int64(e.logical), int64(e.logical + e.length)}
			pos = max(pos, s.end)
			if e.flags&fiemapUnwritten == 0 {
				all = append(all, s)
			}
			if e.flags&fiemapLast != 0 {
				return all, nil
			}
		}
	}
	return all, nil
}

// Extent is a part of a file: the bytes from Off up to End.
type Extent struct{ Off, End int64 }

// DataOf lists where a partial upper has data of its own, up to limit, in order; dirty pages are written back first.
// Errors: those of FIEMAP (ioctl_fiemap) or, where a file system has none, of lseek(2).
func DataOf(file *os.File, limit int64) ([]Extent, error) {
	spans, err := newFile(nil, Upper, &Options{}, linux{}).dataOf(int(file.Fd()), limit)
	all := make([]Extent, len(spans))
	for i, s := range spans {
		all[i] = Extent{s.off, s.end}
	}
	return all, err
}

// dataOf lists where a partial upper has data below limit: what is written, or on a file system that has no disk, what
// lseek(2) finds.
func (f *File) dataOf(fd int, limit int64) ([]span, error) {
	all, err := retry(func() ([]span, error) { return f.sys.written(fd, limit) })
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOTTY) {
		return all, err
	}
	all = nil
	for pos := int64(0); pos < limit; {
		data, hole, err := f.nextData(fd, pos, limit)
		if err != nil {
			return nil, err
		}
		if data >= limit {
			break
		}
		all = append(all, span{data, hole})
		pos = hole
	}
	return all, nil
}
