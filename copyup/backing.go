package copyup

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// backing is one open descriptor of a lower or an upper file. File's cache holds one reference to it and every operation
// that uses it another one, so that a descriptor of the lower lives until its last reader is done.
type backing struct {
	file  *os.File
	fd    int   // of file
	lower bool  // read-only
	stage bool  // the target of a copy-up: must be writable at every offset
	size  int64 // lower: of the file
	limit int64 // lower: bytes of it that the file showed when it was opened; min(Target.LowerLimit, size)
	refs  int   // +checklocks:File.mu, by convention: the mutex of the File that owns it
}

// newBacking checks a descriptor that the Target opened and takes it over: on an error it is closed.
// Errors: ErrWritableLower; EIO for a descriptor that the Target should not have returned.
func (f *File) newBacking(file *os.File, lower bool) (*backing, error) {
	b := &backing{file: file, fd: int(file.Fd()), lower: lower}
	if err := f.checkBacking(b); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return b, nil
}

// checkBacking refuses what could write to a lower layer, what cannot be copied to, and what is not a regular file.
// An O_APPEND descriptor ignores the offset of pwrite(2), see its BUGS: right for an upper that is append-only itself
// (FS_APPEND_FL), wrong for a copy. One without write access is right for an upper that nobody may write.
func (f *File) checkBacking(b *backing) error {
	flags, err := retry(func() (int, error) { return f.sys.statusFlags(b.fd) })
	if err != nil {
		return fmt.Errorf("copyup: F_GETFL of %v: %w", b.file.Name(), err)
	}
	mode := flags & unix.O_ACCMODE
	switch {
	case b.lower && mode != unix.O_RDONLY:
		return fmt.Errorf("copyup: open %v: %w: %w", b.file.Name(), ErrWritableLower, unix.EIO)
	case mode == unix.O_WRONLY || b.stage && (mode != unix.O_RDWR || flags&unix.O_APPEND != 0):
		return fmt.Errorf("copyup: open %v: upper descriptor with flags %#x: %w", b.file.Name(), flags, unix.EIO)
	case flags&(unix.O_PATH|unix.O_DIRECT) != 0:
		return fmt.Errorf("copyup: open %v: flags %#x: %w", b.file.Name(), flags, unix.EIO)
	}
	st, err := f.stat(b.fd)
	if err != nil {
		return fmt.Errorf("copyup: stat %v: %w", b.file.Name(), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("copyup: open %v: not a regular file: %w", b.file.Name(), unix.EIO)
	}
	if b.lower {
		b.size, b.limit = st.Size, max(0, min(st.Size, f.target.LowerLimit()))
	}
	return nil
}

// stat is fstat(2).
func (f *File) stat(fd int) (st unix.Stat_t, err error) {
	err = retryErr(func() error { return f.sys.fstat(fd, &st) })
	return st, err
}

// acquire gives the descriptor of the lower or of the upper, with a reference to be released. A copy-up that commits
// later leaves it valid, but then it may no longer be where the data is: see moved.
// Preconditions: between begin and end, which keep the cache.
// Errors: errMoved where the state has no such file any more (the lower in Upper) or yet; those of Target.OpenLower and
// OpenUpper and of newBacking.
func (f *File) acquire(lower bool) (*backing, error) {
	open, name := f.target.OpenUpper, "upper"
	if lower {
		open, name = f.target.OpenLower, "lower"
	}
	for {
		b, err := f.cached(lower)
		if b != nil || err != nil {
			return b, err
		}
		file, err := open()
		if err != nil {
			return nil, fmt.Errorf("copyup: open %v: %w", name, err)
		}
		if b, err = f.newBacking(file, lower); err != nil {
			return nil, err
		}
		if f.offer(b) {
			return b, nil
		}
		// Somebody else opened it meanwhile, or a copy-up made this one old. Nothing was written through it.
		f.closeBacking(b)
	}
}

// acquireCurrent gives the upper if there is one, else the lower.
func (f *File) acquireCurrent() (*backing, error) {
	for {
		b, err := f.acquire(f.State().onLower())
		if !errors.Is(err, errMoved) {
			return b, err
		}
	}
}

// slotLocked is where the cache has a descriptor of this kind; nil if the state has no such file.
// +checklocks:f.mu
func (f *File) slotLocked(lower bool) **backing {
	switch {
	case lower && f.state != Upper:
		return &f.lower
	case !lower && !f.state.onLower():
		return &f.upper
	}
	return nil
}

// cached gives the cached descriptor with a new reference, or nil.
func (f *File) cached(lower bool) (*backing, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	slot := f.slotLocked(lower)
	if slot == nil {
		return nil, errMoved
	}
	if *slot != nil {
		(*slot).refs++
	}
	return *slot, nil
}

// offer puts a fresh descriptor into the cache, with a reference for the caller, if it is still what is wanted.
func (f *File) offer(b *backing) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	slot := f.slotLocked(b.lower)
	if slot == nil || *slot != nil {
		return false
	}
	b.refs = 2
	*slot = b
	return true
}

// moved reports whether data has left the lower since it was all there.
func (f *File) moved() bool { return !f.State().onLower() }

// release drops a reference; the last one closes the descriptor.
func (f *File) release(b *backing) {
	if f.unref(b) {
		f.closeBacking(b)
	}
}

func (f *File) unref(b *backing) (last bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return b.unrefLocked()
}

// unrefLocked takes one reference away and reports whether the caller must close b, after unlocking.
// Locks: the owning File's mu.
func (b *backing) unrefLocked() (last bool) {
	if b == nil {
		return false
	}
	b.refs--
	return b.refs == 0
}

func (f *File) closeAll(bs []*backing) {
	for _, b := range bs {
		f.closeBacking(b)
	}
}

// closeBacking closes a descriptor that nobody uses. Its error goes to the log: close(2) says that no retry is possible,
// and what close can report about an upper (a delayed write error on a network file system) fsync has reported or will.
func (f *File) closeBacking(b *backing) {
	if err := b.file.Close(); err != nil {
		f.logf("copyup: close %v: %v", b.file.Name(), err)
	}
}

// withUpper calls fn with the upper's descriptor.
// Preconditions: between begin and end, and the state has an upper.
func (f *File) withUpper(fn func(b *backing) error) error {
	b, err := f.acquire(false)
	if err != nil {
		return err
	}
	defer f.release(b)
	return fn(b)
}
