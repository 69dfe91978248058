package copyup

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// injection is what happens to the call that a fakeKernel fails.
type injection struct {
	name string
	err  error // nil: half of what was asked for is done (only pread, pwrite, copy_file_range)
}

var injections = []injection{
	{"EIO", unix.EIO}, {"ENOSPC", unix.ENOSPC}, {"EDQUOT", unix.EDQUOT}, {"EINTR", unix.EINTR}, {"short", nil},
}

// fakeKernel is the kernel, with a record of the calls, failures on demand, no waiting for disks, and a choice of the way
// in which data can be copied.
type fakeKernel struct {
	linux
	way way

	mu       sync.Mutex
	calls    []string
	failAt   int // fail the call with this number, from 1; 0: none
	inject   injection
	fired    bool
	failing  string // calls that all fail
	onCall   func(name string)
	started  []span       // what was to be written back
	freed    []span       // what was given back since the last sync
	resized  int          // changes of size since then that are journalled
	unsynced bool         // data was written since then
	onSync   func(fd int) // after a sync that succeeded
	onClone  func()       // after blocks were shared or moved: they are on the disk

	zeroRange bool // FALLOC_FL_ZERO_RANGE is emulated where the file system (tmpfs) has none
}

// way is how a copy-up can copy.
type way int

const (
	byClone  way = iota // reflink, emulated by copying where the file system has none
	byRange             // copy_file_range
	byBuffer            // neither
	byZeros             // neither; and no holes can be found or punched
	numWays
)

func (w way) String() string { return [...]string{"clone", "range", "buffer", "zeros"}[w] }

// enter counts a call and gives the error that it must answer, or that it must be short.
func (k *fakeKernel) enter(name string) (short bool, err error) {
	if k.onCall != nil {
		k.onCall(name)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls = append(k.calls, name)
	if k.failing == name {
		return false, unix.EIO
	}
	if k.failAt == 0 || len(k.calls) != k.failAt {
		return false, nil
	}
	k.fired = true
	return k.inject.err == nil, k.inject.err
}

// arm fails the n-th call from now on; 0 disarms.
func (k *fakeKernel) arm(n int, in injection) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls, k.failAt, k.inject, k.fired = nil, n, in, false
}

func (k *fakeKernel) hasFired() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.fired
}

// isSynced: a sync succeeded after the last write.
func (k *fakeKernel) isSynced() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.unsynced
}

func (k *fakeKernel) count(name string) (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range k.calls {
		if c == name {
			n++
		}
	}
	return n
}

// target gives the fail function of a fakeTarget whose calls count with the system calls.
func (k *fakeKernel) target(call string) error {
	_, err := k.enter(call)
	return err
}

func halve(n int, short bool) int {
	if short {
		return (n + 1) / 2
	}
	return n
}

func (k *fakeKernel) fstat(fd int, st *unix.Stat_t) error {
	if _, err := k.enter("fstat"); err != nil {
		return err
	}
	return k.linux.fstat(fd, st)
}

func (k *fakeKernel) statusFlags(fd int) (int, error) {
	if _, err := k.enter("fcntl"); err != nil {
		return 0, err
	}
	return k.linux.statusFlags(fd)
}

func (k *fakeKernel) pread(fd int, p []byte, off int64) (int, error) {
	short, err := k.enter("pread")
	if err != nil {
		return 0, err
	}
	return k.linux.pread(fd, p[:halve(len(p), short)], off)
}

func (k *fakeKernel) pwrite(fd int, bufs [][]byte, off int64) (int, error) {
	short, err := k.enter("pwrite")
	if err != nil {
		total := 0
		for _, b := range bufs {
			total += len(b)
		}
		return 0, errors.Join(err, k.leaveZeros(fd, off, total, err))
	}
	if short {
		p := slices.Concat(bufs...)
		bufs = [][]byte{p[:halve(len(p), true)]}
	}
	k.mu.Lock()
	k.unsynced = true
	k.mu.Unlock()
	return k.linux.pwrite(fd, bufs, off)
}

// leaveZeros does what ext4 does to a large folio for whose last blocks there is no space: those before are zeros, and were holes.
func (k *fakeKernel) leaveZeros(fd int, off int64, n int, cause error) error {
	if !errors.Is(cause, unix.ENOSPC) && !errors.Is(cause, unix.EDQUOT) || k.way == byZeros {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	unit := min(testUnit, int64(st.Blksize)) // no more than what is written has
	for at := off &^ (unit - 1); at < min(off+int64(n)/2, st.Size); at += unit {
		data, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if err == nil && data < at+unit {
			continue
		}
		if err != nil && !errors.Is(err, unix.ENXIO) {
			return err
		}
		if _, err := unix.Pwrite(fd, make([]byte, min(unit, st.Size-at)), at); err != nil {
			return err
		}
	}
	return nil
}

// note keeps what is given back, and whether the size was changed.
func (k *fakeKernel) note(s span, resized bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if s != (span{}) {
		k.freed = append(k.freed, s)
	}
	if resized {
		k.resized++
	}
}

func (k *fakeKernel) ftruncate(fd int, size int64) error {
	if _, err := k.enter("ftruncate"); err != nil {
		return err
	}
	k.note(span{size, math.MaxInt64}, true)
	return k.linux.ftruncate(fd, size)
}

func (k *fakeKernel) fallocate(fd int, mode uint32, off, length int64) error {
	if _, err := k.enter("fallocate"); err != nil {
		return err
	}
	if k.way == byZeros {
		return unix.EOPNOTSUPP
	}
	err := k.linux.fallocate(fd, mode, off, length)
	if k.zeroRange && mode&unix.FALLOC_FL_ZERO_RANGE != 0 && errors.Is(err, unix.EOPNOTSUPP) {
		err = k.emulateZeroRange(fd, mode, off, length)
	}
	if err != nil {
		return err
	}
	if mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) != 0 {
		k.note(span{(off + testUnit - 1) &^ (testUnit - 1), (off + length) &^ (testUnit - 1)}, false)
	}
	if mode&unix.FALLOC_FL_KEEP_SIZE == 0 {
		k.note(span{}, true)
	}
	if mode&(unix.FALLOC_FL_COLLAPSE_RANGE|unix.FALLOC_FL_INSERT_RANGE) != 0 && k.onClone != nil {
		k.onClone() // blocks move, after a writeback
	}
	return nil
}

func (k *fakeKernel) emulateZeroRange(fd int, mode uint32, off, length int64) error {
	if err := k.linux.fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, length); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || mode&unix.FALLOC_FL_KEEP_SIZE != 0 || off+length <= st.Size {
		return err
	}
	return k.linux.ftruncate(fd, off+length)
}

func (k *fakeKernel) lseek(fd int, off int64, whence int) (int64, error) {
	if _, err := k.enter("lseek"); err != nil {
		return 0, err
	}
	if k.way == byZeros {
		return 0, unix.EINVAL
	}
	return k.linux.lseek(fd, off, whence)
}

func (k *fakeKernel) cloneRange(dst, src int, length int64) error {
	if _, err := k.enter("clone"); err != nil {
		return err
	}
	if k.way != byClone {
		return unix.EOPNOTSUPP
	}
	err := k.linux.cloneRange(dst, src, length)
	if errors.Is(err, unix.EOPNOTSUPP) {
		buf := make([]byte, length)
		if n, err := k.linux.pread(src, buf, 0); err != nil || int64(n) != length {
			return errors.Join(err, fmt.Errorf("clone read %d of %d bytes", n, length))
		}
		_, err = k.linux.pwrite(dst, [][]byte{buf}, 0)
	}
	if err == nil && k.onClone != nil {
		k.onClone()
	}
	return err
}

func (k *fakeKernel) copyFileRange(src int, srcOff int64, dst int, dstOff int64, length int) (int, error) {
	short, err := k.enter("copy_file_range")
	switch {
	case err != nil:
		return 0, errors.Join(err, k.leaveZeros(dst, dstOff, length, err))
	case k.way == byZeros:
		return 0, nil // as some file systems do
	case k.way == byBuffer:
		return 0, unix.EXDEV
	}
	return k.linux.copyFileRange(src, srcOff, dst, dstOff, halve(length, short))
}

func (k *fakeKernel) fsync(fd int) error { return k.synced("fsync", fd) }

func (k *fakeKernel) fdatasync(fd int) error { return k.synced("fdatasync", fd) }

func (k *fakeKernel) synced(name string, fd int) error {
	if _, err := k.enter(name); err != nil {
		return err
	}
	k.durable(fd)
	return nil
}

// durable: what was done so far survives a power cut.
func (k *fakeKernel) durable(fd int) {
	k.mu.Lock()
	k.freed, k.resized, k.unsynced = nil, 0, false
	k.mu.Unlock()
	if k.onSync != nil {
		k.onSync(fd)
	}
}

// startWriteback that fails loses what was to be written, as a disk does.
func (k *fakeKernel) startWriteback(fd int, off, length int64) error {
	_, err := k.enter("start")
	k.mu.Lock()
	k.started = append(k.started, span{off, off + length})
	k.mu.Unlock()
	if err != nil {
		return errors.Join(err, k.linux.fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, length))
	}
	return k.linux.startWriteback(fd, off, length)
}

func (k *fakeKernel) awaitWriteback(fd int, off, length int64) error {
	if _, err := k.enter("await"); err != nil {
		return err
	}
	return k.linux.awaitWriteback(fd, off, length)
}

func (k *fakeKernel) written(fd int, limit int64) ([]span, error) {
	if _, err := k.enter("fiemap"); err != nil {
		return nil, err
	}
	return k.linux.written(fd, limit)
}

func (k *fakeKernel) dropCache(fd int, off, length int64) (int64, error) {
	if _, err := k.enter("drop"); err != nil {
		return 0, err
	}
	return k.linux.dropCache(fd, off, length)
}
