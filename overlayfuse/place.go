package overlayfuse

import (
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"
)

// Where an inode's real object is, as descriptors. Names change under us, so whatever was reached by a name of the upper is
// compared with the identity that the inode remembers, and looked for again if it is another object.

// placeTries bounds how often a moving object is looked for: each failure means that a rename or unlink ran in between.
const placeTries = 1000

// upperDir opens the upper directory of a directory inode.
//
// Locks: takes ns for reading. Errors: ENOENT if it has been removed.
func (fs *FS) upperDir(in *inode) (*dirFD, error) {
	key := dirKey{in: in}
	if d := fs.dirs.get(key); d != nil {
		return d, nil
	}
	fs.ns.RLock()
	defer fs.ns.RUnlock()
	return fs.upperDirLocked(in)
}

// Locks: ns is held.
func (fs *FS) upperDirLocked(in *inode) (*dirFD, error) {
	key := dirKey{in: in}
	if d := fs.dirs.get(key); d != nil {
		return d, nil
	}
	in.mu.RLock()
	u, pin, dead := in.up(), in.pin(), in.dead
	a := in.oldest()
	if pin != nil {
		pin.refs.Add(1)
	}
	in.mu.RUnlock()
	switch {
	case pin != nil:
		return pin, nil
	case !u.exists:
		return nil, fmt.Errorf("directory %d is not in the upper: %w", in.ino, unix.ENOENT)
	case in.root:
		fd, err := openIn(fs.layers.upper.fd, ".", oPathDir, 0)
		if err != nil {
			return nil, fmt.Errorf("open upper %s: %w", fs.layers.upper.path, err)
		}
		return fs.dirs.put(key, fd), nil
	case dead || a.parent == nil:
		return nil, unix.ENOENT
	}
	parent, err := fs.upperDirLocked(a.parent)
	if err != nil {
		return nil, err
	}
	defer parent.release()
	fd, err := openIn(parent.fd, a.name, oPathDir, 0)
	if err != nil {
		return nil, fmt.Errorf("open upper directory %q: %w", a.name, err)
	}
	st, err := statAt(fd, "")
	if err == nil && keyOf(&st) != u.key {
		err = fmt.Errorf("upper directory %q was replaced behind our back: %w", a.name, unix.ESTALE)
	}
	if err != nil {
		closeFD(fd)
		return nil, err
	}
	d := fs.dirs.put(key, fd)
	if in.isDead() { // removed meanwhile, after it was dropped from the cache
		fs.dirs.drop(key)
	}
	return d, nil
}

// place is where a real object is: name in dir, or dir itself if name is "".
type place struct {
	dir   *dirFD
	name  string
	upper bool
}

func (p place) release() { p.dir.release() }

// stat is the status of the object itself.
func (p place) stat() (unix.Stat_t, error) { return statAt(p.dir.fd, p.name) }

// object is the place as an object.
func (p place) object() objectAt {
	if p.name == "" {
		return objectAt{p.dir.fd, "."}
	}
	return objectAt{p.dir.fd, p.name}
}

// open is an O_PATH descriptor of the object.
func (p place) open() (int, error) {
	if p.name == "" {
		return unix.FcntlInt(uintptr(p.dir.fd), unix.F_DUPFD_CLOEXEC, 0)
	}
	return openIn(p.dir.fd, p.name, unix.O_PATH, 0)
}

// upperPlace is a place of the inode's upper object; who uses it compares identities (see withUpper).
func (fs *FS) upperPlace(in *inode) (place, error) {
	if in.isDir() {
		d, err := fs.upperDir(in)
		return place{dir: d, upper: true}, err
	}
	in.mu.RLock()
	pin, link := in.pin(), in.links()
	if pin != nil {
		pin.refs.Add(1)
	}
	var a alias
	for x := range in.aliases {
		if x.upper {
			a = x
			break
		}
	}
	in.mu.RUnlock()
	switch {
	case pin != nil:
		return place{dir: pin, upper: true}, nil
	case link.index != "":
		fs.index.dir.refs.Add(1)
		return place{dir: fs.index.dir, name: link.index, upper: true}, nil
	case a.parent == nil:
		return place{}, unix.ENOENT
	}
	d, err := fs.upperDir(a.parent)
	return place{dir: d, name: a.name, upper: true}, err
}

// lowerPlace is the place of a real object of a lower layer.
func (fs *FS) lowerPlace(r ref, dir bool) (place, error) {
	if dir || r.path == "" {
		d, err := fs.chain.lowerDir(r.layer, r.path)
		if err != nil {
			return place{}, fmt.Errorf("open directory %s: %w", fs.chain.where(r), err)
		}
		return place{dir: d}, nil
	}
	d, err := fs.chain.lowerDir(r.layer, dirOf(r.path))
	if err != nil {
		return place{}, fmt.Errorf("open directory of %s: %w", fs.chain.where(r), err)
	}
	return place{dir: d, name: path.Base(r.path)}, nil
}

// stat is the status of the object whose attributes the inode shows, upper or lower.
func (fs *FS) stat(in *inode) (st unix.Stat_t, err error) {
	for range placeTries {
		u := in.upper()
		if !u.exists {
			break
		}
		var p place
		if p, err = fs.upperPlace(in); err == nil {
			st, err = p.stat()
			p.release()
			if err == nil && keyOf(&st) == u.key {
				return st, nil
			}
		}
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ESTALE) {
			return st, err
		}
		err = unix.ESTALE
		fs.settle()
	}
	if err != nil {
		return st, fmt.Errorf("upper object %d of inode %d: %w", in.upper().key.ino, in.ino, err)
	}
	if in.lower == nil {
		return st, fmt.Errorf("inode %d has no object: %w", in.ino, unix.EIO)
	}
	return in.lower.st.stat(), nil
}

// settle waits for a namespace operation that is under way.
func (fs *FS) settle() {
	fs.ns.RLock()
	defer fs.ns.RUnlock()
}

// openUpperPath is an O_PATH descriptor of the inode's upper object. The caller closes it.
func (fs *FS) openUpperPath(in *inode) (int, error) {
	var err error
	for range placeTries {
		u := in.upper()
		if !u.exists {
			return -1, fmt.Errorf("inode %d has no upper: %w", in.ino, unix.EIO)
		}
		var p place
		if p, err = fs.upperPlace(in); err != nil {
			if errors.Is(err, unix.ENOENT) {
				fs.settle()
				continue
			}
			return -1, err
		}
		var fd int
		fd, err = p.open()
		p.release()
		if err == nil {
			var st unix.Stat_t
			if st, err = statAt(fd, ""); err == nil && keyOf(&st) == u.key {
				return fd, nil
			}
			closeFD(fd)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return -1, err
		}
		fs.settle()
	}
	return -1, fmt.Errorf("upper object of inode %d: %w", in.ino, unix.ESTALE)
}

// openPath is an O_PATH descriptor of the object whose attributes the inode shows, and whether it is in the upper.
func (fs *FS) openPath(in *inode) (fd int, upper bool, err error) {
	if in.upper().exists {
		fd, err = fs.openUpperPath(in)
		return fd, true, err
	}
	if in.lower == nil {
		return -1, false, fmt.Errorf("inode %d has no object: %w", in.ino, unix.EIO)
	}
	p, err := fs.lowerPlace(in.lower.top(), in.isDir())
	if err != nil {
		return -1, false, err
	}
	defer p.release()
	if fd, err = p.open(); err != nil {
		return -1, false, err
	}
	if err := in.lower.check(fd); err != nil {
		closeFD(fd)
		return -1, false, fmt.Errorf("%s: %w", fs.chain.where(in.lower.top()), err)
	}
	return fd, false, nil
}

// onUpper copies in up, without its data, and calls fn with a descriptor of the upper object, which may be O_PATH.
//
// Errors: EROFS; those of copyUp and fn.
// Locks: fn runs with in reserved.
func (fs *FS) onUpper(in *inode, fn func(fd int) error) error {
	fd, err := fs.copyUpAs(in, dataBelow)
	if err != nil {
		return err
	}
	defer lockAll(in)() // a metacopy upper that is being filled gets its times and capability back at the end
	if fd < 0 {
		if fd, err = fs.openUpperPath(in); err != nil {
			return err
		}
	}
	defer closeFD(fd)
	defer fs.changed(in)
	return fn(fd)
}
