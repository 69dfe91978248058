package overlayfuse

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/copyup"
)

// With io=writeback the kernel has the size and the times of a regular file, and believes nobody else about them: it tells them by
// SETATTR, some time after the data. So what changes data here leaves the modification time as it was. What the
// kernel checks by opening a file, here nobody does: a file that is not for writing is found out when the data comes.
// Compare: fs/fuse/inode.c:fuse_get_cache_mask(), fuse_flush_times() of fs/fuse/dir.c (Linux 6.18).

// timeLocks keep a change of data and a change of times of one file apart. They come before the reservations of copyup.File, and are
// held across I/O. The zero value is ready.
type timeLocks struct {
	mu     sync.Mutex // a leaf
	byFile map[*inode]*timeLock
}

// timeLock is of one file that somebody changes.
type timeLock struct {
	sync.Mutex
	users int
}

// lock takes the lock of a file.
func (l *timeLocks) lock(in *inode) (unlock func()) {
	l.mu.Lock()
	t := l.byFile[in]
	if t == nil {
		if l.byFile == nil {
			l.byFile = map[*inode]*timeLock{}
		}
		t = &timeLock{}
		l.byFile[in] = t
	}
	t.users++
	l.mu.Unlock()
	t.Lock()
	return func() {
		t.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(l.byFile, in)
		}
	}
}

// untimed changes the data of a file by fn and puts its modification time back, where the kernel tells it.
func (fs *FS) untimed(in *inode, f *copyup.File, fn func() error) error {
	if !fs.opensUnasked() {
		return fn()
	}
	defer fs.times.lock(in)()
	before, err := fs.stat(in)
	if err != nil {
		return err
	}
	if err := fn(); err != nil || f.State() < copyup.UpperShared {
		return err
	}
	return f.WithUpper(func(real *os.File) error {
		defer lockAll(in)() // a completion puts the times back that it has found
		st, err := statAt(int(real.Fd()), "")
		if err != nil || st.Mtim == before.Mtim {
			return err
		}
		return timesFD(int(real.Fd()), unix.Timespec{Nsec: unix.UTIME_OMIT}, before.Mtim)
	})
}

// mayWriteUnasked refuses what open(2) would, had it been asked: an upper that is immutable or append-only, which OpenUpper opens
// accordingly. To append is refused as well: the kernel writes whole pages back, in any order.
//
// Errors: EPERM.
func mayWriteUnasked(f *copyup.File) error {
	if f.State() != copyup.Upper { // of such a file all data was brought to the upper first
		return nil
	}
	return f.WithUpper(func(real *os.File) error {
		flags, err := unix.FcntlInt(real.Fd(), unix.F_GETFL, 0)
		if err != nil {
			return fmt.Errorf("F_GETFL of upper: %w", err)
		}
		if flags&unix.O_ACCMODE == unix.O_RDONLY || flags&unix.O_APPEND != 0 {
			return fmt.Errorf("write to an immutable or append-only file: %w", unix.EPERM)
		}
		return nil
	})
}

// locksWriters tells whether an ioctl would make a file immutable or append-only.
// Source: linux/fs.h, FS_IMMUTABLE_FL, FS_APPEND_FL, FS_XFLAG_IMMUTABLE and FS_XFLAG_APPEND, in the first four bytes.
func locksWriters(cmd uint32, arg []byte) bool {
	const flags, xflags = 0x10 | 0x20, 0x08 | 0x10
	if len(arg) < 4 {
		return false
	}
	v := binary.NativeEndian.Uint32(arg)
	return cmd == ioctlSetFlags && v&flags != 0 || cmd == ioctlSetXattr && v&xflags != 0
}

// writeUnasked is a write to a file that the kernel opened without asking.
func (fs *FS) writeUnasked(h *handle, in *fuse.WriteIn, data []byte) (n int, err error) {
	if err := mayWriteUnasked(h.data); err != nil {
		return 0, err
	}
	err = fs.untimed(h.in, h.data, func() error {
		n, err = fs.write(h, in, data)
		return err
	})
	return n, err
}
