package copyup

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ReadAt reads from wherever the data is. Reads that run during a copy-up see the lower until it is committed; a read that
// starts after a write returned sees that write.
// It is io.ReaderAt, except that the end of the file is n < len(p) with a nil error.
// Errors: those of pread(2); with one, n bytes are good. EIO for a lower that has become shorter.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("copyup: read at %d: %w", off, unix.EINVAL)
	}
	if err := f.begin(); err != nil {
		return 0, err
	}
	defer f.end()
	for {
		n, err := f.readOnce(p, off)
		if !errors.Is(err, errMoved) {
			return n, err
		}
	}
}

// readOnce reads from where the data is now.
// Errors: errMoved if a copy-up was committed meanwhile: then a write may have been completed too, and what was read is
// older than that.
func (f *File) readOnce(p []byte, off int64) (n int, err error) {
	switch s := f.State(); {
	case s.onLower():
		n, err = f.readLower(p, off)
		if f.moved() {
			return 0, errMoved
		}
		return n, err
	case s == UpperShared:
		return f.readShared(p, off)
	}
	return f.readUpper(p, off)
}

func (f *File) readLower(p []byte, off int64) (int, error) {
	b, err := f.acquire(true)
	if err != nil {
		return 0, err
	}
	defer f.release(b)
	return f.preadFull(b.fd, p[:max(0, min(int64(len(p)), b.limit-off))], off)
}

func (f *File) readUpper(p []byte, off int64) (int, error) {
	b, err := f.acquire(false)
	if err != nil {
		return 0, err
	}
	defer f.release(b)
	n, err := f.preadFull(b.fd, p, off)
	if n > 0 {
		f.opts.Background.touched(f, off, off+int64(n), false)
	}
	return n, err
}

// readShared composes what is in the lower and what is in the upper. A write that completes meanwhile is seen or not; one
// that was complete before is seen, since the map is asked after.
func (f *File) readShared(p []byte, off int64) (int, error) {
	pieces, err := f.pieces(off, off+int64(len(p)))
	if err != nil {
		return 0, err
	}
	done := 0
	for _, piece := range pieces {
		part := p[done : done+int(piece.end-piece.off)]
		var n int
		if piece.lower {
			n, err = f.readMissing(part, piece.off)
		} else {
			n, err = f.readUpper(part, piece.off)
		}
		done += n
		if err != nil || n < len(part) { // the end of the file
			return done, err
		}
	}
	return done, nil
}

// pieces says where the parts of [off, end) are; beyond the end of the file, in the upper.
// Errors: errMoved if the file is not partial any more, or has to be looked at again.
func (f *File) pieces(off, end int64) ([]piece, error) {
	if err := f.load(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.state != UpperShared || f.ext == nil {
		return nil, errMoved
	}
	var ps []piece
	for off < end {
		p := f.ext.next(off, end)
		ps = append(ps, p)
		off = p.end
	}
	return ps, nil
}

// readMissing reads what must be in the lower, all of it.
func (f *File) readMissing(p []byte, off int64) (int, error) {
	b, err := f.acquire(true)
	if err != nil {
		return 0, err
	}
	defer f.release(b)
	n, err := f.preadFull(b.fd, p, off)
	if err == nil && n < len(p) {
		err = fmt.Errorf("copyup: lower ends at %d, %d bytes are missing: %w", off+int64(n), len(p)-n, unix.EIO)
	}
	return n, err
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
		pos, err := f.seekOnce(off, whence)
		if errors.Is(err, errMoved) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("copyup: seek from %d: %w", off, err)
		}
		return pos, nil
	}
}

// seekOnce: as readOnce.
func (f *File) seekOnce(off int64, whence int) (pos int64, err error) {
	switch s := f.State(); {
	case s.onLower():
		pos, err = f.seekLower(off, whence)
		if f.moved() {
			return 0, errMoved
		}
		return pos, err
	case s == UpperShared:
		return f.seekShared(off, whence)
	}
	err = f.withUpper(func(b *backing) error {
		pos, err = f.seekFD(b.fd, off, whence)
		return err
	})
	return pos, err
}

func (f *File) seekLower(off int64, whence int) (int64, error) {
	b, err := f.acquire(true)
	if err != nil {
		return 0, err
	}
	defer f.release(b)
	pos, err := f.seekFD(b.fd, off, whence)
	switch {
	case err == nil && (off >= b.limit || whence == unix.SEEK_DATA && pos >= b.limit):
		return 0, unix.ENXIO
	case err == nil:
		pos = min(pos, b.limit)
	}
	return pos, err
}

// seekShared goes through the pieces until one of them has what is looked for.
func (f *File) seekShared(off int64, whence int) (int64, error) {
	lower, err := f.acquire(true)
	if err != nil {
		return 0, err
	}
	defer f.release(lower)
	upper, err := f.acquire(false)
	if err != nil {
		return 0, err
	}
	defer f.release(upper)
	st, err := f.stat(upper.fd)
	if err != nil {
		return 0, err
	}
	if off < 0 || off >= st.Size {
		return 0, unix.ENXIO
	}
	pieces, err := f.pieces(off, st.Size)
	if err != nil {
		return 0, err
	}
	for _, p := range pieces {
		fd := upper.fd
		if p.lower {
			fd = lower.fd
		}
		pos, err := f.seekFD(fd, p.off, whence)
		switch {
		case errors.Is(err, unix.ENXIO): // no data here, or the lower ends: not in this piece
			if whence == unix.SEEK_HOLE {
				return p.off, nil
			}
		case err != nil:
			return 0, err
		case pos < p.end:
			return pos, nil
		}
	}
	if whence == unix.SEEK_HOLE {
		return st.Size, nil
	}
	return 0, unix.ENXIO
}

// WithCurrent calls fn with the descriptor of the upper, or of the lower, read-only, before there is an upper. fn must not
// keep it. A copy-up may be committed while fn runs; who minds holds faults away.
func (f *File) WithCurrent(fn func(*os.File) error) error {
	if err := f.begin(); err != nil {
		return err
	}
	defer f.end()
	b, err := f.acquireCurrent()
	if err != nil {
		return err
	}
	defer f.release(b)
	return fn(b.file)
}

// WithLower calls fn with the descriptor of the lower, read-only, while all of the data is there. A copy-up may be committed while
// fn runs, and then what fn gave is the error still.
// Errors: ErrMovedUp.
func (f *File) WithLower(fn func(*os.File) error) error {
	if err := f.begin(); err != nil {
		return err
	}
	defer f.end()
	if f.moved() {
		return ErrMovedUp
	}
	b, err := f.acquire(true)
	if errors.Is(err, errMoved) {
		return ErrMovedUp
	}
	if err != nil {
		return err
	}
	defer f.release(b)
	if err := fn(b.file); err != nil {
		return err
	}
	if f.moved() {
		return ErrMovedUp
	}
	return nil
}

// WithUpper is WithCurrent for the upper only. It copies nothing up: see Complete.
// Errors: ErrNoUpper (with ENODATA) while the data is in the lower.
func (f *File) WithUpper(fn func(*os.File) error) error {
	if f.State().onLower() {
		return errors.Join(ErrNoUpper, unix.ENODATA)
	}
	return f.WithCurrent(fn)
}
