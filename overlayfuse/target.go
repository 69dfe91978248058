package overlayfuse

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/copyup"
)

// target is package copyup's view of one regular file: where its lower and upper are, and how a copied file becomes the upper.
type target struct {
	in *inode

	// What Stage learned and Commit needs. Written by Stage, under the reservation in.copy, which Stage takes and Commit or Abort gives back.
	unlock func()
	stage  *temp // a new file; nil if the metacopy upper itself is filled
	at     alias
	atime  unix.Timespec // of the metacopy upper, which filling it would change
	mtime  unix.Timespec
	caps   []byte // its security.capability, which a write takes away
}

var (
	_ copyup.Target  = (*target)(nil)
	_ copyup.Limiter = (*target)(nil)
)

// data is the inode's copyup.File, made when it is first wanted.
func (fs *FS) data(in *inode) *copyup.File {
	if f := in.file.Load(); f != nil {
		return f
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if f := in.file.Load(); f != nil {
		return f
	}
	state := copyup.Lower
	if in.up.exists && !in.up.metacopy {
		state = copyup.Upper
	}
	f := copyup.New(&target{in: in}, state, copyup.Options{
		Volatile: fs.cfg.Volatile,
		Log:      fs.log.WithField("ino", in.ino).Errorf,
		Stats:    &fs.copies,
	})
	in.file.Store(f)
	return f
}

// dropFile lets go of the data of an inode that nobody holds any longer. Its descriptors are closed with the last handle.
func (fs *FS) dropFile(in *inode) { in.file.Store(nil) }

// LowerLimit is the part of the lower data that shows: a metacopy upper may be shorter after a crash.
func (t *target) LowerLimit() int64 {
	u := t.in.upper()
	if u.exists && u.metacopy {
		return u.limit
	}
	return t.in.lower.st.Size
}

// OpenLower opens the data through the layer's private read-only mount.
func (t *target) OpenLower() (*os.File, error) {
	if t.in.lower == nil {
		return nil, fmt.Errorf("inode %d has no lower data: %w", t.in.ino, unix.EIO)
	}
	r := t.in.lower.refs[len(t.in.lower.refs)-1]
	fd, err := t.in.fs.chain.open(r, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), t.in.fs.chain.where(r)), nil
}

// OpenUpper opens the upper by whatever leads to it: name, index or pinned descriptor.
func (t *target) OpenUpper() (*os.File, error) {
	fd, err := t.in.fs.openUpperPath(t.in)
	if err != nil {
		return nil, err
	}
	defer closeFD(fd)
	if t.in.fs.readOnly() {
		return openReal(fd, unix.O_RDONLY)
	}
	f, err := openReal(fd, unix.O_RDWR)
	if errors.Is(err, unix.EPERM) { // append-only
		f, err = openReal(fd, unix.O_RDWR|unix.O_APPEND)
	}
	if errors.Is(err, unix.EPERM) { // immutable
		f, err = openReal(fd, unix.O_RDONLY)
	}
	return f, err
}

// Stage reserves the inode and gives the file to copy into.
func (t *target) Stage() (_ *os.File, err error) {
	fs, in := t.in.fs, t.in
	if fs.readOnly() {
		return nil, unix.EROFS
	}
	a, err := t.reserve()
	if err != nil {
		return nil, err
	}
	unlock := t.unlock
	defer func() {
		if err != nil {
			unlock()
		}
	}()
	t.at = a
	if in.upper().exists {
		return t.stageMetacopy()
	}
	if err := fs.mayCopyUp(in); err != nil {
		return nil, err
	}
	fd, err := fs.tmpfile()
	if err != nil {
		return nil, err
	}
	t.stage = &temp{fs: fs, fd: fd, keep: true}
	return os.NewFile(uintptr(fd), "staged upper"), nil
}

// reserve takes the reservation of the inode alone, with the directory of one of its names in the upper. The directory is
// reserved only for the moment of Commit: copying takes long.
func (t *target) reserve() (alias, error) {
	fs, in := t.in.fs, t.in
	for {
		a, named := in.firstAlias()
		if named {
			if err := fs.copyUp(a.parent); err != nil {
				return a, err
			}
		}
		in.copy.Lock()
		_, still := in.findAlias(a.parent, a.name)
		if _, any := in.firstAlias(); still || !named && !any {
			t.unlock = in.copy.Unlock
			return a, nil
		}
		in.copy.Unlock()
	}
}

// stageMetacopy opens the installed upper that has no data yet. What filling it with data changes is put back by Commit.
func (t *target) stageMetacopy() (*os.File, error) {
	fd, err := t.in.fs.openUpperPath(t.in)
	if err != nil {
		return nil, err
	}
	defer closeFD(fd)
	st, err := statAt(fd, "")
	if err != nil {
		return nil, fmt.Errorf("stat metacopy upper: %w", err)
	}
	t.atime, t.mtime, t.stage = st.Atim, st.Mtim, nil
	t.caps, err = getXattrFD(fd, capabilityXattr)
	if err != nil && !noXattr(err) {
		return nil, fmt.Errorf("read %s: %w", capabilityXattr, err)
	}
	return openReal(fd, unix.O_RDWR)
}

// Commit makes the staged file the upper.
func (t *target) Commit(staged *os.File) error {
	defer t.unlock()
	if t.stage == nil {
		return t.commitMetacopy(staged)
	}
	fs, in := t.in.fs, t.in
	fd := int(staged.Fd())
	if err := fs.dress(fd, in, false); err != nil {
		return err
	}
	if t.at.parent != nil {
		defer lockAll(t.at.parent)()
	}
	return fs.install(in, t.at, t.stage, false)
}

// commitMetacopy takes the mark away from the filled upper: the one step that makes its data count.
func (t *target) commitMetacopy(staged *os.File) error {
	fs, in := t.in.fs, t.in
	fd := int(staged.Fd())
	if t.caps != nil {
		if err := unix.Setxattr(procFD(fd), capabilityXattr, t.caps, 0); err != nil {
			return fmt.Errorf("put %s back: %w", capabilityXattr, err)
		}
	}
	if err := timesFD(fd, t.atime, t.mtime); err != nil {
		return err
	}
	if err := fs.removeMark(fd, "metacopy"); err != nil {
		return err
	}
	// The redirect of a complete file says nothing; where it stays it does no harm.
	if err := fs.removeMark(fd, "redirect"); err != nil {
		fs.log.WithError(err).WithField("ino", in.ino).Debug("overlay: redirect of a complete file stays")
	}
	in.mu.Lock()
	in.up.metacopy = false
	in.mu.Unlock()
	return nil
}

// Abort gives the reservation back; an unnamed file goes with its descriptor.
func (t *target) Abort(*os.File) { t.unlock() }
