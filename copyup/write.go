package copyup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// WriteAt writes to the upper, after the copy-up if there is none yet; of a partial file, only the units that p touches.
// Writes to different units of a file run in parallel. Writing nothing does nothing.
// Errors: those of a copy-up, and then nothing was written; those of pwritev(2), and then the first n bytes were; of a sync, and
// then p may have been written, as on a plain file.
// Crash: each unit that p touches is old or new or, where p covers it in part, old with new in it.
func (f *File) WriteAt(p []byte, off int64, sync SyncMode) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("copyup: write at %d: %w", off, unix.EINVAL)
	}
	if len(p) == 0 {
		return 0, f.Err()
	}
	if err := f.begin(); err != nil {
		return 0, err
	}
	defer f.end()
	if err := f.raise(context.Background(), anySize()); err != nil {
		return 0, err
	}
	n, err := 0, errMoved
	if f.State() == UpperShared {
		n, err = f.writeShared(p, off)
	}
	if errors.Is(err, errMoved) {
		err = f.withUpper(func(b *backing) (err error) {
			n, err = f.pwriteFull(b.fd, [][]byte{p}, off)
			return err
		})
	}
	if n > 0 {
		f.opts.Background.touched(f, off, off+int64(n), true)
	}
	if err == nil {
		if err = f.syncWritten(sync); err != nil {
			return 0, err
		}
	}
	return n, err
}

// syncWritten makes what was written durable. Not by the write itself: one that fails to sync has written, and does not say so; and its
// error may be of somebody else's writeback, of which the kernel tells nobody else.
// While the upper's name may not be durable yet, fdatasync(2) would not make it so. Compare: fs/overlayfs/file.c:ovl_write_iter(), which
// does not sync either when volatile (Linux 6.18).
// Preconditions: the caller has no span.
func (f *File) syncWritten(sync SyncMode) error {
	if f.opts.Volatile || sync == SyncNone {
		return nil
	}
	err := f.syncUpper(sync == SyncData && f.isNamed())
	if err != nil {
		err = f.distrust(err)
		var own uint64 // the writer is told; if it syncs as well, once more
		_ = f.missed(&own)
	}
	return err
}

func (f *File) isNamed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.named
}

// writeShared writes to a partial file. Units that are missing in the upper are written whole, in one call with what
// the lower has around p, so that none of them ever shows zeros.
// Errors: errMoved, with nothing written, if the file is partial no more.
func (f *File) writeShared(p []byte, off int64) (n int, _ error) {
	w, release, err := f.reserveWrite(p, off)
	if err != nil {
		return 0, err
	}
	defer release()
	if s := f.cutUnit(w.whole.end); w.grows && s.off < s.end && s.off < w.whole.off {
		release()
		if err := f.fillCut(w.whole.end); err != nil {
			return 0, err
		}
		return f.writeShared(p, off)
	}
	err = f.withUpper(func(b *backing) (err error) {
		if err := f.storeLimit(b); err != nil {
			return err
		}
		f.quiet.RLock()
		defer f.quiet.RUnlock()
		n, err = f.runWrite(b, w)
		return err
	})
	return n, err
}

// reserveWrite reserves the units of a write. One that may fail half done and leave a larger file reserves what is behind it as well, where
// others could make the file larger meanwhile.
// Errors: errMoved if the file is partial no more.
func (f *File) reserveWrite(p []byte, off int64) (w write, release func(), err error) {
	for s := f.units(off, off+int64(len(p))); ; s.end = math.MaxInt64 {
		release, ok, err := f.reserveMapped(s)
		if err == nil && !ok {
			err = errMoved
		}
		if err != nil {
			return w, nil, err
		}
		if w = f.planWrite(p, off); !w.missing || !w.grows || s.end == math.MaxInt64 {
			return w, release, nil
		}
		release()
	}
}

// write is a write to a partial file whose units are reserved.
//
//	|  head  |  p  ...   p  |  tail  |       head and tail come from the lower; each is empty unless its unit is missing
//	at       off                             and shows something of the lower there
type write struct {
	p          []byte
	off        int64
	whole      span // units
	head, tail span
	missing    bool // some unit below the limit is missing
	grows      bool // may end beyond the limit, and so make the file larger
}

// units is [off, end) rounded out to units.
func (f *File) units(off, end int64) span {
	unit := f.opts.Unit
	return span{off &^ (unit - 1), (end + unit - 1) &^ (unit - 1)}
}

func (f *File) planWrite(p []byte, off int64) write {
	f.mu.Lock()
	defer f.mu.Unlock()
	end := off + int64(len(p))
	whole := f.units(off, end)
	w := write{p: p, off: off, whole: whole, head: span{off, off}, tail: span{end, end}, grows: end > f.ext.limit}
	for at := whole.off; at < min(whole.end, f.ext.limit) && !w.missing; {
		piece := f.ext.next(at, whole.end)
		w.missing, at = piece.lower, piece.end
	}
	if whole.off < min(off, f.ext.limit) && !f.ext.has(whole.off) {
		w.head = span{whole.off, min(off, f.ext.limit)}
	}
	if last := whole.end - f.ext.unit; end < min(whole.end, f.ext.limit) && !f.ext.has(last) {
		w.tail = span{end, min(whole.end, f.ext.limit)}
	}
	return w
}

// runWrite does it, and gives the number of bytes of p that are written.
func (f *File) runWrite(upper *backing, w write) (int, error) {
	head, tail := make([]byte, w.head.end-w.head.off), make([]byte, w.tail.end-w.tail.off)
	for _, e := range []struct {
		p   []byte
		off int64
	}{{head, w.head.off}, {tail, w.tail.off}} {
		if len(e.p) == 0 {
			continue
		}
		if _, err := f.readMissing(e.p, e.off); err != nil {
			return 0, fmt.Errorf("copyup: fill unit: %w", err)
		}
	}
	var size int64 // before
	if w.missing && w.grows {
		st, err := f.stat(upper.fd)
		if err != nil {
			return 0, fmt.Errorf("copyup: stat upper: %w", err)
		}
		size = st.Size
	}
	at := w.off - int64(len(head))
	if err := f.allocateScarce(upper.fd, w); err != nil {
		_, err = f.takeBack(upper, w, w.whole.off, 0, err)
		return 0, err
	}
	if w.head.end < w.off { // the limit lies between: what is there is a hole already
		if err := f.fillHead(upper, w, head); err != nil {
			return 0, err
		}
		head, at = nil, w.off
	}
	bufs := make([][]byte, 0, 3)
	for _, b := range [][]byte{head, w.p, tail} {
		if len(b) > 0 {
			bufs = append(bufs, b)
		}
	}
	n, err := f.pwriteFull(upper.fd, bufs, at)
	if err == nil {
		f.have(w.whole.off, w.whole.end)
		f.filled(len(head) + len(tail))
		return len(w.p), nil
	}
	end, err := f.takeBack(upper, w, at+int64(n), size, err)
	return int(min(max(0, end-w.off), int64(len(w.p)))), err
}

// fillHead writes what the lower has of a unit that the limit cuts, before a write behind the limit.
func (f *File) fillHead(upper *backing, w write, head []byte) error {
	n, err := f.pwriteFull(upper.fd, [][]byte{head}, w.head.off)
	if err == nil {
		f.have(w.whole.off, w.whole.off+f.opts.Unit)
		f.filled(n)
		return nil
	}
	_, err = f.takeBack(upper, w, w.head.off+int64(n), w.head.end, err)
	return err
}

// takeBack undoes what a write that failed at end left of units that were missing before, so that the lower shows. size is what the file
// must not exceed then. It gives the end of what counts as written.
func (f *File) takeBack(upper *backing, w write, end, size int64, cause error) (int64, error) {
	cut := end &^ (f.opts.Unit - 1)
	f.have(w.whole.off, cut)
	if err := f.empty(upper, span{max(cut, w.whole.off), w.whole.end}, cause); err != nil {
		return max(cut, w.whole.off), err
	}
	f.mu.Lock()
	there := f.ext.has(cut)
	f.mu.Unlock()
	if there {
		return end, cause
	}
	if w.grows && end > cut && end > size {
		if err := retryErr(func() error { return f.sys.ftruncate(upper.fd, max(size, cut)) }); err != nil {
			cause = errors.Join(cause, fmt.Errorf("copyup: take size back to %d: %w", max(size, cut), err))
		}
	}
	return cut, cause
}

// empty makes those units of s holes again that are missing, after a write or copy of them has failed. It may have given them blocks, of
// which nothing was reported: ext4 allocates all blocks of a folio, and leaves zeros in the first ones if there is no space for the
// last (fs/ext4/inode.c:ext4_block_write_begin(), Linux 6.18). Whoever reads the map next would take them for data.
//
// Errors: the file is then poisoned.
// Preconditions: s is reserved.
func (f *File) empty(upper *backing, s span, cause error) error {
	f.noteScarce(cause)
	return f.eachMissing(s, func(m span) error {
		if err := f.punch(upper, m.off, m.end-m.off); err != nil {
			f.Poison(fmt.Errorf("copyup: %w: units at %d to %d half written: %w", ErrInDoubt, m.off, m.end, errors.Join(cause, err)))
			return f.Err()
		}
		return nil
	})
}

// eachMissing calls do for the missing units of s, up to a chunk at a time.
func (f *File) eachMissing(s span, do func(span) error) error {
	for m := f.firstMissing(s); m.off < m.end; m = f.firstMissing(span{m.end, s.end}) {
		if err := do(m); err != nil {
			return err
		}
	}
	return nil
}

// scarceTime is for how long after a failure for want of space missing units are allocated before they are written.
const scarceTime = time.Minute

// NoRoom tells the errors of a file system that is full, or of a quota that is used up.
func NoRoom(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// noteScarce notes that an error says that there is no space.
func (f *File) noteScarce(err error) {
	if NoRoom(err) {
		f.stats.scarce.Store(time.Now().Add(scarceTime).UnixNano())
	}
}

func (f *File) scarce() bool {
	until := f.stats.scarce.Load()
	return until != 0 && time.Now().UnixNano() < until
}

// allocateScarce gives the missing units of a write their blocks first if space is short: that fails without leaving zeros (see empty), also
// for who is killed before they are taken back. Blocks that were never written are a hole to whoever reads the map.
func (f *File) allocateScarce(fd int, w write) error {
	if !w.missing || !f.scarce() {
		return nil
	}
	return f.eachMissing(w.whole, func(m span) error { return f.allocate(fd, m.off, m.end-m.off) })
}

// allocate is fallocate(2) of blocks that are to be written next; what the file system can't do is no error.
func (f *File) allocate(fd int, off, n int64) error {
	err := retryErr(func() error { return f.sys.fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, off, n) })
	if err != nil && !unsupported(err) {
		return fmt.Errorf("copyup: allocate %d bytes at %d: %w", n, off, err)
	}
	return nil
}

func (f *File) punch(upper *backing, off, n int64) error {
	return retryErr(func() error {
		return f.sys.fallocate(upper.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
}

// have notes units that the upper has now. They are reserved.
func (f *File) have(off, end int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ext != nil {
		f.ext.add(off, end)
	}
}

// filled counts bytes that were copied to fill units.
func (f *File) filled(n int) {
	f.stats.BytesCopied.Add(uint64(n))
	f.stats.NotCopied.Add(-int64(n))
}

// pwriteFull writes all of bufs, or says how much and why not more.
func (f *File) pwriteFull(fd int, bufs [][]byte, off int64) (int, error) {
	done, total := 0, 0
	for _, b := range bufs {
		total += len(b)
	}
	for done < total {
		n, err := retry(func() (int, error) { return f.sys.pwrite(fd, rest(bufs, done), off+int64(done)) })
		if err != nil {
			return done, fmt.Errorf("copyup: write %d bytes at %d: %w", total, off, err)
		}
		if n == 0 {
			return done, fmt.Errorf("copyup: write %d bytes at %d: %w: %w", total, off, io.ErrShortWrite, unix.EIO)
		}
		done += n
	}
	return done, nil
}

// rest is bufs without the first n bytes.
func rest(bufs [][]byte, n int) [][]byte {
	if n == 0 {
		return bufs
	}
	var r [][]byte
	for _, b := range bufs {
		if n >= len(b) {
			n -= len(b)
			continue
		}
		r, n = append(r, b[n:]), 0
	}
	return r
}
