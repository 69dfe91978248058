package copyup

import (
	"context"
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// Truncate sets the size. It copies nothing but the unit that the new size or the old one cuts, and files up to
// Options.PartialAbove.
// Errors: those of a copy-up; those of ftruncate(2).
// Crash: the old size or the new one; what is beyond the new one never shows again.
func (f *File) Truncate(size int64) error {
	if size < 0 {
		return fmt.Errorf("copyup: truncate to %d: %w", size, unix.EINVAL)
	}
	if err := f.begin(); err != nil {
		return err
	}
	defer f.end()
	want := anySize()
	if size == 0 || f.opts.Unit == 0 {
		want = truncateTo(size)
	}
	if err := f.raise(context.Background(), want); err != nil {
		return err
	}
	// Also after our own copy-up: it stamps the times and takes a file capability away, as on a plain file.
	if f.State() == UpperShared {
		if err := f.truncateShared(size); !errors.Is(err, errMoved) {
			return err
		}
	}
	return f.withUpper(func(b *backing) error { return f.ftruncate(b, size) })
}

func (f *File) ftruncate(b *backing, size int64) error {
	tail := f.staleTail(b, size)
	if err := retryErr(func() error { return f.sys.ftruncate(b.fd, size) }); err != nil {
		return fmt.Errorf("copyup: truncate to %d: %w", size, err)
	}
	if tail.off < tail.end {
		// It makes the last block dirty, and changes nothing that anybody sees. Without space, the crash is what it is on a plain file.
		_ = f.sys.fallocate(b.fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, tail.off, tail.end-tail.off)
	}
	return nil
}

// staleTail is what of the last block a truncation to size leaves on the disk: see Options.StaleTails.
func (f *File) staleTail(b *backing, size int64) span {
	unit := f.opts.Unit
	if !f.opts.StaleTails || unit == 0 || size%unit == 0 {
		return span{}
	}
	st, err := f.stat(b.fd)
	if err != nil || st.Size <= size {
		return span{}
	}
	return span{size, (size + unit - 1) &^ (unit - 1)}
}

// truncateShared is Truncate of a partial file. Making it smaller comes before the limit that says that the lower beyond
// shows no more; making it larger again comes after. With a crash between them, the size itself is the limit.
// Errors: errMoved, with nothing done, if the file is partial no more.
func (f *File) truncateShared(size int64) error {
	if err := f.fillCut(size); err != nil {
		return err
	}
	release, ok, err := f.reserveMapped(wholeSpan())
	if err != nil {
		return err
	}
	if !ok {
		return errMoved
	}
	defer release()
	if s := f.cutUnit(size); s.off < s.end { // a truncation came between
		release()
		return f.truncateShared(size)
	}
	gone := false
	err = f.withUpper(func(b *backing) error {
		if err := f.storeLimit(b); err != nil {
			return err
		}
		if size == 0 && f.opts.LooseNames {
			if err := f.target.MeanEmpty(b.file); err != nil {
				return fmt.Errorf("copyup: mean size 0: %w", err)
			}
		}
		err := f.ftruncate(b, size)
		if err != nil { // perhaps it was half done
			st, errStat := f.stat(b.fd)
			if errStat != nil {
				return errors.Join(err, errStat)
			}
			size = st.Size
		}
		gone = f.cut(size)
		// What fails here is tried again before anything can make the file larger.
		if errLimit := f.storeLimit(b); errLimit != nil {
			f.logf("copyup: %v: stays to be done", errLimit)
		}
		return err
	})
	release()
	if err != nil || !gone {
		return err
	}
	return f.becomeUpper(f.fullMap(), span{})
}

// cutUnit gives the unit that has to be in the upper before its size changes to size, or grows to it: the one that the size
// cuts, before or after. A file system may write zeros into it, hole or not (btrfs does: fs/btrfs/inode.c:
// btrfs_truncate_block(), Linux 6.18), and then it would count. Empty if there is none that is missing.
func (f *File) cutUnit(size int64) span {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ext == nil {
		return span{}
	}
	at := min(size, f.ext.limit)
	if s := (span{f.ext.down(at), at}); s.off < s.end && !f.ext.has(s.off) {
		return s
	}
	return span{}
}

// fillCut brings the cutUnit to the upper.
func (f *File) fillCut(size int64) error {
	if err := f.load(); err != nil {
		return err
	}
	s := f.cutUnit(size)
	if s.off >= s.end {
		return nil
	}
	return f.populate(context.Background(), s.off, s.end)
}

// cut makes the lower limit smaller, and reports whether nothing of the lower can show any more.
func (f *File) cut(limit int64) (gone bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if limit < f.ext.limit {
		f.stats.NotCopied.Add(-min(f.ext.limit-limit, f.ext.missing*f.ext.unit))
		f.ext.cut(limit)
		f.limitDue, f.named = true, false
	}
	return f.ext.limit == 0
}

// storeLimit brings the stored lower limit up to date. Nothing may make the file larger before.
// Preconditions: a span is reserved.
func (f *File) storeLimit(b *backing) error {
	f.mu.Lock()
	due, limit := f.limitDue, int64(0)
	if due {
		limit = f.ext.limit
	}
	f.mu.Unlock()
	if !due {
		return nil
	}
	if err := f.target.SetLimit(b.file, limit); err != nil {
		return fmt.Errorf("copyup: store lower limit %d: %w", limit, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.limitDue = f.ext != nil && f.ext.limit != limit
	return nil
}

// Allocate is fallocate(2) on the upper, in every mode that its file system has, after the copy-up if there is none yet. Of a
// partial file, what is to be allocated is copied first; what is to show zeros is written, if that is less than to complete the rest of
// the file; and what moves data needs a complete file.
// Errors: those of a copy-up and of Complete; those of fallocate(2). Those of a call that no file system accepts come
// before the copy-up.
func (f *File) Allocate(mode uint32, off, length int64) error {
	if err := checkAllocate(mode, off, length); err != nil {
		return fmt.Errorf("copyup: allocate %d bytes at %d, mode %#x: %w", length, off, mode, err)
	}
	if err := f.begin(); err != nil {
		return err
	}
	defer f.end()
	if err := f.raise(context.Background(), anySize()); err != nil {
		return err
	}
	for f.State() == UpperShared {
		err := f.allocateShared(mode, off, length)
		if !errors.Is(err, errMoved) {
			return err
		}
	}
	return f.withUpper(func(b *backing) error { return f.fallocate(b, mode, off, length) })
}

func (f *File) fallocate(b *backing, mode uint32, off, length int64) error {
	if err := retryErr(func() error { return f.sys.fallocate(b.fd, mode, off, length) }); err != nil {
		return fmt.Errorf("copyup: allocate %d bytes at %d, mode %#x: %w", length, off, mode, err)
	}
	return nil
}

// allocateShared is Allocate of a partial file.
// Errors: errMoved, with nothing allocated, if it has to be tried again.
func (f *File) allocateShared(mode uint32, off, length int64) error {
	if err := f.load(); err != nil {
		return err
	}
	f.mu.Lock()
	if f.ext == nil {
		f.mu.Unlock()
		return errMoved
	}
	unit := f.ext.unit
	s := span{f.ext.down(off), f.ext.up(min(off+length, math.MaxInt64-unit))}
	below := s.off < f.ext.limit
	f.mu.Unlock()
	const harmless = unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_UNSHARE_RANGE // neither changes what the file shows
	const zeros = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_ZERO_RANGE
	if below && mode&zeros != 0 {
		return f.zeroShared(mode, span{off, off + length})
	}
	if below && mode&^harmless != 0 {
		if err := f.complete(context.Background(), nil); err != nil {
			return err
		}
		return errMoved
	}
	if err := f.populate(context.Background(), s.off, s.end); err != nil {
		return err
	}
	if err := f.fillCut(s.end); err != nil {
		return err
	}
	release, ok, err := f.reserveMapped(s)
	if err != nil {
		return err
	}
	if !ok {
		return errMoved
	}
	defer release()
	if m, c := f.firstMissing(s), f.cutUnit(s.end); m.off < m.end || c.off < c.end { // they went missing again
		return errMoved
	}
	return f.withUpper(func(b *backing) error {
		if err := f.storeLimit(b); err != nil {
			return err
		}
		return f.fallocate(b, mode, off, length)
	})
}

// zeroShared is allocateShared of what makes zeros, in any way: in a partial file a hole would show the lower.
//
//	| unit | unit | unit | unit | unit |
//	    |----------z----------|             z is to show zeros
//	       | inner       |                  what it covers of whole units: it need not be in the upper if the rest of the file is
//
// Zeros are written; but if that would take more space than to complete the rest, and the mode is one of holes, that is done instead.
func (f *File) zeroShared(mode uint32, z span) error {
	f.mu.Lock()
	if f.ext == nil {
		f.mu.Unlock()
		return errMoved
	}
	s := span{f.ext.down(z.off), f.ext.up(min(z.end, math.MaxInt64-f.ext.unit))}
	inner := span{f.ext.up(z.off), min(f.ext.down(z.end), f.ext.up(f.ext.limit))}
	f.mu.Unlock()
	rest := false
	if mode&unix.FALLOC_FL_PUNCH_HOLE != 0 && inner.off < inner.end {
		var err error
		if rest, err = f.restIsLess(inner); err != nil {
			return err
		}
	}
	if !rest {
		inner = span{}
	} else if err := f.populateBut(context.Background(), inner, nil); err != nil { // it may lack space: before anything can be seen
		return err
	}
	if err := f.fillCut(s.end); err != nil {
		return err
	}
	held := s
	if mode&unix.FALLOC_FL_KEEP_SIZE == 0 {
		held.end = math.MaxInt64 // nobody else makes the file larger meanwhile
	}
	release, ok, err := f.reserveMapped(held)
	if err != nil {
		return err
	}
	if !ok {
		return errMoved
	}
	defer release()
	if c := f.cutUnit(s.end); c.off < c.end {
		return errMoved
	}
	err = f.withUpper(func(b *backing) error { return f.makeZeros(b, mode, z, inner) })
	release()
	if err != nil || !rest {
		return err
	}
	// All that the upper has of inner is zeros now, and what it lacks is wanted no more.
	if err := f.completeBut(context.Background(), inner, nil); err != nil {
		return err
	}
	if f.State() == UpperShared {
		return errMoved
	}
	if err := f.withUpper(func(b *backing) error { return f.fallocate(b, mode, z.off, z.end-z.off) }); err != nil {
		f.logf("copyup: zeros, but no hole: %v", err)
	}
	return nil
}

// restIsLess tells whether less data of the lower is missing outside of a span than in it.
func (f *File) restIsLess(in span) (bool, error) {
	most, err := f.missingData(in, math.MaxInt64)
	if err != nil || most == 0 {
		return false, err
	}
	rest, err := f.missingData(span{0, in.off}, most)
	if err != nil || rest >= most {
		return false, err
	}
	behind, err := f.missingData(span{in.end, math.MaxInt64}, most-rest)
	return rest+behind < most, err
}

// missingData counts the bytes of a span that are data of the lower and missing in the upper, up to some number.
func (f *File) missingData(s span, most int64) (n int64, _ error) {
	err := f.eachPiece(s, func(p piece) (bool, error) {
		if p.lower {
			n += p.end - p.off
		}
		return n < most, nil
	})
	return n, err
}

// eachPiece calls do for each part of s, up to the limit, that the upper has, and for each that only the lower has and that is data there,
// until do gives false.
func (f *File) eachPiece(s span, do func(piece) (bool, error)) error {
	lower, err := f.acquire(true)
	if errors.Is(err, errMoved) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.release(lower)
	for more := true; more; {
		f.mu.Lock()
		if f.ext == nil || s.off >= min(s.end, f.ext.limit) {
			f.mu.Unlock()
			return nil
		}
		p := f.ext.next(s.off, min(s.end, f.ext.limit))
		f.mu.Unlock()
		s.off = p.end
		if p.lower {
			more, err = f.eachData(lower, p, do)
		} else {
			more, err = do(p)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// eachData calls do for each part of a piece of the lower that is data.
func (f *File) eachData(lower *backing, p piece, do func(piece) (bool, error)) (more bool, _ error) {
	for at := p.off; at < p.end; {
		data, hole, err := f.nextLowerData(lower.fd, at, p.end)
		if err != nil || data >= p.end {
			return err == nil, err
		}
		if more, err := do(piece{data, hole, true}); err != nil || !more {
			return false, err
		}
		at = hole
	}
	return true, nil
}

// makeZeros makes zeros of z, but for what the upper lacks of but.
// Preconditions: the units of z are reserved, and the size if mode can change it.
func (f *File) makeZeros(b *backing, mode uint32, z, but span) error {
	if err := f.storeLimit(b); err != nil {
		return err
	}
	st, err := f.stat(b.fd)
	if err != nil {
		return fmt.Errorf("copyup: stat upper: %w", err)
	}
	f.mu.Lock()
	// Up to where the lower could show something. Not beyond the end of the file: to write there would make it larger.
	end := max(z.off, min(z.end, f.ext.up(f.ext.limit), st.Size))
	limit := f.ext.limit
	f.mu.Unlock()
	if end < z.end { // first: perhaps the file system does not know the mode, or so large a file
		if err := f.fallocate(b, mode|unix.FALLOC_FL_KEEP_SIZE, end, z.end-end); err != nil {
			return err
		}
	}
	zero := func(p piece) (bool, error) { return true, f.writeZeros(b, span{p.off, p.end}) }
	zeroUpper := func(p piece) (bool, error) {
		if p.lower {
			return true, nil
		}
		return zero(p)
	}
	err = f.eachPiece(span{z.off, min(but.off, end)}, zero)
	if err == nil {
		err = f.eachPiece(span{but.off, min(but.end, end)}, zeroUpper)
	}
	if err == nil {
		err = f.eachPiece(span{max(z.off, but.end), end}, zero)
	}
	if err == nil && limit < end { // of the unit that the limit cuts
		err = f.writeZeros(b, span{max(z.off, limit), end})
	}
	if err != nil || mode&unix.FALLOC_FL_KEEP_SIZE != 0 || z.end <= st.Size {
		return err
	}
	return f.ftruncate(b, z.end)
}

// writeZeros writes zeros to z.
// Preconditions: the units of z are reserved.
func (f *File) writeZeros(b *backing, z span) error {
	zeros := make([]byte, min(chunkBytes, z.end-z.off))
	for at := z.off; at < z.end; {
		p := zeros[:min(int64(len(zeros)), z.end-at)]
		f.quiet.RLock()
		n, err := f.runWrite(b, f.planWrite(p, at))
		f.quiet.RUnlock()
		if n > 0 {
			f.opts.Background.touched(f, at, at+int64(n), true)
		}
		if err != nil {
			return err
		}
		at += int64(n)
	}
	return nil
}

// checkAllocate refuses what the kernel refuses whatever the file: modes exclude each other, but for FALLOC_FL_KEEP_SIZE, which some need and
// some have not. Compare: fs/open.c:vfs_fallocate() (Linux 6.18).
func checkAllocate(mode uint32, off, length int64) error {
	if off < 0 || length <= 0 {
		return unix.EINVAL
	}
	keep := mode&unix.FALLOC_FL_KEEP_SIZE != 0
	known := false
	switch mode &^ unix.FALLOC_FL_KEEP_SIZE {
	case 0, unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_UNSHARE_RANGE:
		known = true
	case unix.FALLOC_FL_PUNCH_HOLE:
		known = keep
	case unix.FALLOC_FL_COLLAPSE_RANGE, unix.FALLOC_FL_INSERT_RANGE, unix.FALLOC_FL_WRITE_ZEROES:
		known = !keep
	}
	if !known {
		return unix.EOPNOTSUPP
	}
	if off > math.MaxInt64-length {
		return unix.EFBIG
	}
	return nil
}
