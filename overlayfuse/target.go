package overlayfuse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/copyup"
)

// target is package copyup's view of one regular file: where its lower and upper are, and what the upper's marks say.
type target struct {
	in *inode

	// What Stage learned and Commit needs. Written by Stage, under the reservation in.copy, which Stage takes and Commit or Abort gives back.
	was   *quiet
	noted bool // was is stored with the upper
}

var _ copyup.Target = (*target)(nil)

// data is the inode's copyup.File, made when it is first wanted.
func (fs *FS) data(in *inode) *copyup.File {
	if f := in.file.Load(); f != nil {
		return f
	}
	for {
		u := in.upper()
		state := copyup.Lower
		switch {
		case !u.exists || u.data == dataBelow:
		case u.data == dataPartial:
			state = copyup.UpperShared
		default:
			state = copyup.Upper
		}
		f := copyup.New(&target{in: in}, state, &fs.engine) // may log, which needs in.mu
		in.mu.Lock()
		now := in.up()
		if now.exists == u.exists && now.data == u.data {
			in.file.CompareAndSwap(nil, f)
			f = in.file.Load()
		} else {
			f = nil
		}
		in.mu.Unlock()
		if f != nil {
			return f
		}
	}
}

// logData is the engine's log.
func (fs *FS) logData(of copyup.Target, format string, args ...any) {
	log := fs.log
	if t, ok := of.(*target); ok {
		log = log.WithFields(logrus.Fields{"ino": t.in.ino, "path": t.in.path()})
	}
	log.Errorf(format, args...)
}

// dropFile lets go of the data of an inode that nobody holds any longer. Its descriptors are closed with the last handle.
func (fs *FS) dropFile(in *inode) { fs.files.drop(in.file.Swap(nil)) }

// LowerLimit is the part of the lower data that shows: an upper may be shorter, or its marks may say so.
func (t *target) LowerLimit() int64 {
	if u := t.in.upper(); u.exists {
		return u.limit
	}
	return t.in.lower.st.Size
}

// OpenLower opens the data through the layer's private read-only mount.
func (t *target) OpenLower() (*os.File, error) {
	if t.in.lower == nil {
		return nil, fmt.Errorf("inode %d has no lower data: %w", t.in.ino, unix.EIO)
	}
	fd, err := t.in.fs.chain.openData(t.in.lower, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), t.in.fs.chain.where(t.in.lower.bottom())), nil
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

// Stage brings the file's attributes to the upper, if that has not been done, reserves the inode and opens the upper. A new one is
// marked partial at once: it has no data, so nothing of it counts but the lower's.
func (t *target) Stage() (_ *os.File, err error) {
	fs, in := t.in.fs, t.in
	data := dataPartial
	if fs.engine.Unit == 0 {
		data = dataBelow
	}
	made, err := fs.copyUpAs(in, data)
	if err != nil {
		return nil, err
	}
	f := fs.staged(made)
	in.copy.Lock()
	defer func() {
		if err != nil {
			in.copy.Unlock()
		}
	}()
	if f == nil {
		fd, err := fs.openUpperPath(in)
		if err != nil {
			return nil, err
		}
		defer closeFD(fd)
		if f, err = openReal(fd, unix.O_RDWR); err != nil {
			return nil, err
		}
	}
	was, err := in.quietly(int(f.Fd()))
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	// A partial upper is staged for a write, which changes its times. A metacopy one may be completed with nobody's knowledge.
	if in.upper().data == dataBelow {
		if t.noted, err = noteQuiet(int(f.Fd()), fs.prefix, was); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	t.was = &was
	return f, nil
}

// staged is the file open as made, which it takes over; nil for -1, and where another descriptor is needed.
func (fs *FS) staged(made int) *os.File {
	switch {
	case made < 0:
		return nil
	case fs.keepsOrder():
		return os.NewFile(uintptr(made), "staged")
	}
	closeFD(made)
	return nil
}

// Commit makes the data of the upper count. The limit comes before the mark that makes it count.
func (t *target) Commit(staged *os.File, shape copyup.Shape) error {
	fs, in := t.in.fs, t.in
	defer in.copy.Unlock()
	fd := int(staged.Fd())
	was, noted := t.was, t.noted
	t.was, t.noted = nil, false
	if err := was.restore(fd); err != nil {
		return err
	}
	var err error
	if shape.Partial {
		err = t.markPartial(fd, shape, noted)
	} else {
		err = fs.complete(in, fd)
	}
	if err != nil && noted {
		_ = fs.removeMark(fd, wasMark) // the next Stage replaces it
	}
	return err
}

// markPartial is Commit of a partial upper. The note goes after the mark, until which the data is nobody's.
func (t *target) markPartial(fd int, shape copyup.Shape, noted bool) error {
	fs, in := t.in.fs, t.in
	u := in.upper()
	switch {
	case shape.Cut:
		if err := fs.setLimit(fd, shape.Limit); err != nil {
			return err
		}
	case u.data != dataPartial:
		// One that an earlier attempt left would count from now on.
		if err := fs.removeMark(fd, limitMark); err != nil {
			return err
		}
	}
	if u.data != dataPartial {
		if err := fs.setMark(fd, metacopyMark, []byte(partialValue)); err != nil {
			return err
		}
	}
	if noted {
		if err := fs.removeMark(fd, wasMark); err != nil {
			if errBack := fs.setMark(fd, metacopyMark, nil); errBack != nil {
				return fmt.Errorf("%w: %w", copyup.ErrInDoubt, errors.Join(err, errBack))
			}
			return err
		}
	}
	u.data, u.limit = dataPartial, min(u.limit, shape.Limit)
	in.setUpper(u)
	return nil
}

// Abort gives the reservation back.
func (t *target) Abort(staged *os.File) {
	defer t.in.copy.Unlock()
	was, noted := t.was, t.noted
	t.was, t.noted = nil, false
	if !noted {
		return
	}
	err := was.restore(int(staged.Fd()))
	if err == nil {
		err = t.in.fs.removeMark(int(staged.Fd()), wasMark)
	}
	if err != nil {
		t.in.fs.logData(t, "overlay: the times of a file that was not copied up: %v", err)
	}
}

// SetLimit stores the lower limit.
func (t *target) SetLimit(upper *os.File, limit int64) error {
	if err := t.in.fs.setLimit(int(upper.Fd()), limit); err != nil {
		return err
	}
	t.in.mu.Lock()
	defer t.in.mu.Unlock()
	t.in.raise().limit = limit
	return nil
}

func (fs *FS) setLimit(fd int, limit int64) error {
	return fs.setMark(fd, limitMark, binary.LittleEndian.AppendUint64(nil, uint64(limit)))
}

// MeanEmpty notes that a size of 0 is meant.
func (t *target) MeanEmpty(upper *os.File) error {
	return t.in.fs.setMark(int(upper.Fd()), metacopyMark, []byte(emptiedValue))
}

// Quietly copies data while nobody changes attributes.
func (t *target) Quietly(upper *os.File, lasting bool, fn func() error) error {
	t.in.copy.Lock()
	defer t.in.copy.Unlock()
	fs, fd := t.in.fs, int(upper.Fd())
	q, err := t.in.quietly(fd)
	if err != nil {
		return err
	}
	noted := false
	if lasting {
		if noted, err = noteQuiet(fd, fs.prefix, q); err != nil {
			return err
		}
	}
	err = fn()
	errRestore := q.restore(fd)
	if noted && errRestore == nil { // whatever came of fn: what is changed from here on is to stay
		errRestore = fs.removeMark(fd, wasMark)
	}
	return errors.Join(err, errRestore)
}

// Complete takes the marks away.
func (t *target) Complete(upper *os.File) error {
	t.in.copy.Lock()
	defer t.in.copy.Unlock()
	return t.in.fs.complete(t.in, int(upper.Fd()))
}

// complete takes the marks of a file away that has all of its data: the first one is the step that counts. The file has
// the mark of its origin by then, so that its inode number stays.
//
// Preconditions: in is reserved.
func (fs *FS) complete(in *inode, fd int) error {
	var errOrigin error
	if in.lower.st.Nlink == 1 {
		errOrigin = fs.markOrigin(fd, in)
	}
	if err := fs.removeMark(fd, metacopyMark); err != nil {
		return err
	}
	in.mu.Lock()
	in.raise().data = dataHere
	in.mu.Unlock()
	// What the others say of a complete file is nothing; where one stays it does no harm.
	err := errors.Join(errOrigin, fs.removeMark(fd, limitMark), fs.removeMark(fd, "redirect"), fs.removeMark(fd, wasMark))
	if err != nil {
		fs.log.WithError(err).WithField("ino", in.ino).Debug("overlay: marks of a complete file")
	}
	return nil
}

// Keep holds the inode as the kernel does, unless its last name is gone: its blocks are then wanted back soon.
func (t *target) Keep() (release func(), ok bool) {
	fs, in := t.in.fs, t.in
	if _, named := in.firstAlias(); !named || in.isDead() || !fs.tab.refLive(in) {
		return nil, false
	}
	return func() { fs.tab.forget(in, 1) }, true
}

// quiet is what a change of data changes of an upper file beside the data.
type quiet struct {
	atime, mtime unix.Timespec
	caps         []byte // security.capability, which a write takes away
}

// quietly is quietly(fd) of the inode's upper.
func (in *inode) quietly(fd int) (quiet, error) {
	if in.absent.known(absentCapability) {
		return timesOf(fd)
	}
	return quietly(fd)
}

// timesOf is quietly of a file without a capability.
func timesOf(fd int) (q quiet, err error) {
	st, err := statAt(fd, "")
	if err != nil {
		return q, fmt.Errorf("stat upper: %w", err)
	}
	q.atime, q.mtime = st.Atim, st.Mtim
	return q, nil
}

func quietly(fd int) (q quiet, err error) {
	if q, err = timesOf(fd); err != nil {
		return q, err
	}
	q.caps, err = getXattrFD(fd, capabilityXattr)
	if err != nil && !noXattr(err) {
		return q, fmt.Errorf("read %s: %w", capabilityXattr, err)
	}
	return q, nil
}

// noteQuiet stores q with the file until it is put back: a kill before that leaves it for who looks the file up next. Without room for it,
// only that is lost.
func noteQuiet(fd int, prefix string, q quiet) (noted bool, err error) {
	if err = setXattrFD(fd, prefix+wasMark, q.encode(), 0); err == nil || tooLong(err) {
		return err == nil, nil
	}
	return false, fmt.Errorf("set %s%s: %w", prefix, wasMark, err)
}

// keepQuiet runs fn, which changes data of a file that nobody uses, open for reading at least, and puts back what it changes beside that.
//
// Crash: as of noteQuiet.
func keepQuiet(fd int, prefix string, fn func() error) error {
	q, err := quietly(fd)
	if err != nil {
		return err
	}
	noted, err := noteQuiet(fd, prefix, q)
	if err != nil {
		return err
	}
	err = fn()
	errRestore := q.restore(fd)
	if noted && errRestore == nil {
		errRestore = removeXattrFD(fd, prefix+wasMark)
	}
	return errors.Join(err, errRestore)
}

// encode is the form that is stored while it is not put back: seconds and nanoseconds of atime and mtime, 8 bytes each, little endian,
// then the capability.
func (q quiet) encode() []byte {
	var b []byte
	for _, n := range []int64{q.atime.Sec, q.atime.Nsec, q.mtime.Sec, q.mtime.Nsec} {
		b = binary.LittleEndian.AppendUint64(b, uint64(n))
	}
	return append(b, q.caps...)
}

const quietHeader = 32 // bytes before the capability

func decodeQuiet(b []byte) (quiet, error) {
	if len(b) < quietHeader {
		return quiet{}, fmt.Errorf("mark %s of %d bytes: %w", wasMark, len(b), unix.EUCLEAN)
	}
	n := func(i int) int64 { return int64(binary.LittleEndian.Uint64(b[i*8:])) }
	q := quiet{atime: unix.Timespec{Sec: n(0), Nsec: n(1)}, mtime: unix.Timespec{Sec: n(2), Nsec: n(3)}}
	if len(b) > quietHeader {
		q.caps = b[quietHeader:]
	}
	return q, nil
}

// restore puts it back.
func (q quiet) restore(fd int) error {
	if q.caps != nil {
		if err := setXattrFD(fd, capabilityXattr, q.caps, 0); err != nil {
			return fmt.Errorf("put %s back: %w", capabilityXattr, err)
		}
	}
	st, err := statAt(fd, "")
	if err != nil {
		return fmt.Errorf("stat upper: %w", err)
	}
	if st.Mtim == q.mtime {
		return nil
	}
	return timesFD(fd, q.atime, q.mtime)
}
