package copyup

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// raiser makes one staged upper ready for its Commit.
type raiser struct {
	f      *File
	ctx    context.Context
	want   request
	lower  *backing
	fd     int         // staged
	before unix.Stat_t // staged file as Stage gave it
	keep   int64       // bytes at the start of the lower that go on showing

	cloned, copied int64 // bytes
	shape          Shape
	ext            *extents // if the shape is partial
}

// run decides what the upper becomes, with as little data as can be.
// Errors: after one, undo.
func (r *raiser) run() error {
	if err := r.clean(); err != nil {
		return err
	}
	empty, err := r.nothingToKeep()
	if err != nil {
		return err
	}
	if !empty {
		if err := r.clone(); err != nil {
			return err
		}
	}
	partial := !empty && r.cloned < r.keep || r.f.opts.LooseNames && r.keep > 0
	unit := r.f.opts.Unit
	if partial && (unit == 0 || unitsIn(r.keep, unit) > maxUnits) {
		if err := r.copyDurably(); err != nil {
			return err
		}
		partial = false
	}
	if r.want.cut {
		if err := r.truncate(r.want.size); err != nil {
			return err
		}
	}
	r.shape = Shape{Partial: partial, Limit: r.keep, Cut: r.keep < r.lower.size}
	if partial {
		r.ext = newExtents(unit, r.keep)
		r.ext.add(0, r.ext.up(r.cloned))
	}
	return nil
}

// nothingToKeep: of the lower nothing is to show but zeros.
func (r *raiser) nothingToKeep() (bool, error) {
	if r.keep == 0 {
		return true, nil
	}
	pos, err := r.f.seekFD(r.lower.fd, 0, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO), err == nil && pos >= r.keep:
		return true, nil
	case err != nil && !unsupported(err):
		return false, fmt.Errorf("copyup: find data in lower: %w", err)
	}
	return false, nil
}

// clean takes away data that an upper has although its marks say that it counts for nothing. Its size is what stat(2)
// shows and must not be touched.
func (r *raiser) clean() error {
	if r.before.Size == 0 || r.before.Blocks == 0 {
		return nil
	}
	_, err := r.f.seekFD(r.fd, 0, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return nil // the blocks are of xattrs
	}
	err = retryErr(func() error {
		return r.f.sys.fallocate(r.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, WholeBlocks(r.before.Size))
	})
	if err != nil && (r.f.opts.Unit != 0 || !errors.Is(err, unix.EOPNOTSUPP)) { // else all of it is overwritten
		return fmt.Errorf("copyup: empty staged file: %w", err)
	}
	return nil
}

// WholeBlocks is a size rounded up to blocks, whatever size these have: fallocate(2) only zeroes a block that it is to punch out in part.
func WholeBlocks(size int64) int64 {
	const most = 64 << 10
	return (size + most - 1) &^ (most - 1)
}

func (r *raiser) truncate(size int64) error {
	if err := retryErr(func() error { return r.f.sys.ftruncate(r.fd, size) }); err != nil {
		return fmt.Errorf("copyup: set size of staged file: %w", err)
	}
	return nil
}

// clone shares the lower's blocks with the staged file where the file system can (ioctl_ficlonerange(2)): all whole blocks
// of the part to keep, and the last partial one if it is also the lower's last. Without a size to change yet: a range may
// end within a block only where both files end.
//
// A lower that is not on the disk yet, of an image that was unpacked just now, is not cloned if the upper can be partial: the call would
// write all of it back first (fs/remap_range.c:__generic_remap_file_range_prep(), Linux 6.18).
func (r *raiser) clone() error {
	if r.f.stats.noClone.Load() {
		return nil
	}
	st, err := r.f.stat(r.lower.fd)
	if err != nil {
		return fmt.Errorf("copyup: stat lower: %w", err)
	}
	n := r.keep
	if n != st.Size || n != r.before.Size {
		n -= n % max(int64(st.Blksize), r.f.opts.Unit, 1)
	}
	if n == 0 || r.f.opts.Unit != 0 && r.dirty(n) {
		return nil
	}
	err = retryErr(func() error { return r.f.sys.cloneRange(r.fd, r.lower.fd, n) })
	switch {
	case err == nil:
		r.cloned = n
	case errors.Is(err, unix.EOPNOTSUPP): // EXDEV, of another file system, comes before that
		r.f.stats.noClone.Store(true)
	case !unsupported(err):
		return fmt.Errorf("copyup: clone lower: %w", err)
	}
	return nil
}

// dirtyLook is how many bytes are looked at, at each end of a lower file: the page cache is asked page by page, 70 ns each.
const dirtyLook = 16 << 20

// dirty tells whether the first n bytes of the lower are not on the disk. It looks at both ends: a file is written, and written back, from
// the first to the last.
func (r *raiser) dirty(n int64) bool {
	last := max(dirtyLook, n-dirtyLook)
	return r.f.sys.dirty(r.lower.fd, 0, min(n, dirtyLook)) || last < n && r.f.sys.dirty(r.lower.fd, last, n-last)
}

// copyDurably copies what was not cloned and waits for the disk: for a file system whose uppers are no extent maps.
func (r *raiser) copyDurably() error {
	c := copier{f: r.f, ctx: r.ctx, src: r.lower.fd, dst: r.fd, unit: 1}
	err := c.data(r.cloned, r.keep, func(int64, int64) {})
	r.copied = c.copied
	if err != nil {
		return err
	}
	if r.f.opts.Volatile {
		return nil
	}
	if err := retryErr(func() error { return r.f.sys.fdatasync(r.fd) }); err != nil {
		return fmt.Errorf("copyup: sync staged file: %w", err)
	}
	return nil
}

// undo gives a staged file the size back that stat(2) shows; its data counts for nothing until a Commit.
// Errors: ErrInDoubt, since the size is then wrong.
func (r *raiser) undo() error {
	if !r.want.cut {
		return nil
	}
	if err := r.truncate(r.before.Size); err != nil {
		return fmt.Errorf("%w: size of the metacopy upper: %w", ErrInDoubt, err)
	}
	return nil
}

func (r *raiser) count() {
	s := r.f.stats
	s.BytesCloned.Add(uint64(r.cloned))
	s.BytesCopied.Add(uint64(r.copied))
	s.NotCopied.Add(-r.copied)
	if r.want.cut { // nobody would have copied that
		s.NotCopied.Add(-max(0, min(r.lower.limit, r.before.Size)-r.keep))
	}
	switch {
	case r.cloned == r.keep && r.cloned > 0:
		s.Reflinked.Add(1)
	case r.shape.Partial:
		s.Partial.Add(1)
	case r.keep == 0 && r.lower.limit > 0:
		s.Avoided.Add(1)
	}
}

// unsupported reports whether an error of FICLONERANGE, copy_file_range(2) or lseek(2) says that it has to be done in
// another way. EPERM and ETXTBSY are for swap files and the like; a plain write then tells the real reason.
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
