package copyup

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// load makes the extent map of a partial file known, once: from the upper's own data extents. Nothing to do in any other state.
//
// Errors: EIO, with the offset, for an upper that this package did not write: extents that end within a unit, or a file
// of more units than a map has.
func (f *File) load() error {
	if f.loaded() {
		return nil
	}
	f.loading.Lock()
	defer f.loading.Unlock()
	if f.loaded() {
		return nil
	}
	ext, due, err := f.readExtents()
	if errors.Is(err, errMoved) {
		return nil
	}
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state == UpperShared && f.ext == nil {
		f.ext, f.limitDue = ext, due
	}
	return nil
}

func (f *File) loaded() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state != UpperShared || f.ext != nil
}

// readExtents gives the map, and whether the lower limit has to be stored before the file can be made larger: a truncation was
// cut short, and the size of the upper alone says what the limit is.
func (f *File) readExtents() (_ *extents, due bool, _ error) {
	lower, err := f.acquire(true)
	if err != nil {
		return nil, false, err
	}
	defer f.release(lower)
	upper, err := f.acquire(false)
	if err != nil {
		return nil, false, err
	}
	defer f.release(upper)
	st, err := f.stat(upper.fd)
	if err != nil {
		return nil, false, fmt.Errorf("copyup: stat upper: %w", err)
	}
	// Not lower.limit: that is from when the lower was opened, and this may be the second time (see distrust).
	limit := max(0, min(lower.size, f.target.LowerLimit()))
	// Smaller than what is stored if a truncation was cut short: see "Crash" in doc.go.
	ext := newExtents(f.opts.Unit, min(limit, st.Size))
	if unitsIn(ext.limit, ext.unit) > maxUnits {
		return nil, false, fmt.Errorf("copyup: partial upper of %d bytes: %w", st.Size, unix.EIO)
	}
	data, err := f.dataOf(upper.fd, ext.limit)
	if err != nil {
		return nil, false, fmt.Errorf("copyup: extents of the upper: %w", err)
	}
	for _, d := range data {
		// The last unit may be cut by the end of the file or lie across the limit.
		end := ext.up(d.end)
		if d.off != ext.down(d.off) || d.end != end && d.end < min(ext.limit, st.Size) {
			return nil, false, fmt.Errorf("copyup: data of a partial upper at %d to %d, not aligned to %d: %w", d.off, d.end, ext.unit, unix.EIO)
		}
		ext.add(d.off, end)
	}
	return ext, st.Size < lower.size && ext.limit == st.Size, nil
}

// nextData finds the first data of a file at or after pos: [data, hole), both limit if there is none before limit.
func (f *File) nextData(fd int, pos, limit int64) (data, hole int64, err error) {
	data, err = f.seekFD(fd, pos, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return limit, limit, nil // only a hole is left
	case err != nil:
		return 0, 0, fmt.Errorf("copyup: find data: %w", err)
	case data >= limit:
		return limit, limit, nil
	}
	if hole, err = f.seekFD(fd, data, unix.SEEK_HOLE); err != nil {
		return 0, 0, fmt.Errorf("copyup: find hole: %w", err)
	}
	return data, min(hole, limit), nil
}

// nextLowerData is nextData of a lower. Where its file system does not tell, everything is data.
func (f *File) nextLowerData(fd int, pos, limit int64) (data, hole int64, err error) {
	if data, hole, err = f.nextData(fd, pos, limit); unsupported(err) {
		return pos, limit, nil
	}
	return data, hole, err
}

func (f *File) seekFD(fd int, off int64, whence int) (int64, error) {
	return retry(func() (int64, error) { return f.sys.lseek(fd, off, whence) })
}
