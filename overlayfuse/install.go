package overlayfuse

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// install makes a dressed object the upper of in: under its name, and in the index if the lower file has more names.
//
// Preconditions: in and the parent are reserved, the parent is in the upper; nothing has the name there.
func (fs *FS) install(in *inode, a alias, t *temp, data upperData) error {
	u := upperObj{exists: true, key: t.key, data: data, limit: in.lower.st.Size}
	if a.parent == nil {
		return fs.installUnnamed(in, t, u)
	}
	d, err := fs.upperDir(a.parent)
	if err != nil {
		return err
	}
	defer d.release()
	link, err := fs.enterIndex(in, t, u.key)
	if err != nil {
		return err
	}
	err = fs.keepTimes(d, func() error {
		if err := fs.markImpure(a.parent, d); err != nil {
			return err
		}
		return fs.giveName(t, d.fd, a.name)
	})
	if err != nil {
		if link.index != "" {
			err = errors.Join(err, fs.index.remove(link.index))
		}
		return fmt.Errorf("name %q in the upper: %w", a.name, err)
	}
	fs.tab.link(in, alias{parent: a.parent, name: a.name, upper: true})
	in.mu.Lock()
	in.raise().upperObj = u
	in.setLinks(link)
	in.mu.Unlock()
	fs.tab.raised(in, u.key)
	return nil
}

// installUnnamed keeps the copy of an object that has no name left.
func (fs *FS) installUnnamed(in *inode, t *temp, u upperObj) error {
	fd, err := unix.FcntlInt(uintptr(t.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("keep unnamed upper object: %w", err)
	}
	pin := &dirFD{fd: fd}
	pin.refs.Store(1)
	in.mu.Lock()
	in.raise().upperObj, in.raise().pin = u, pin
	in.mu.Unlock()
	fs.tab.raised(in, u.key)
	return nil
}

// giveName moves or links a finished object to a name that must be free.
func (fs *FS) giveName(t *temp, dir int, name string) error {
	work := fs.layers.temp.fd
	if t.name == "" {
		return linkFD(t.fd, dir, name)
	}
	err := moveName(work, t.name, dir, name, unix.RENAME_NOREPLACE)
	if err == nil {
		t.name = ""
		if t.dir {
			fs.keepPlace(t.fd, name)
		}
	}
	return err
}

// swapIn has a finished directory change places with what has its name, which goes to the workdir under the temporary name.
func (fs *FS) swapIn(t *temp, dir int, name string) error {
	if err := moveName(fs.layers.temp.fd, t.name, dir, name, unix.RENAME_EXCHANGE); err != nil {
		return err
	}
	fs.keepPlace(t.fd, name)
	return nil
}

// enterIndex gives the upper of a lower file with several names its entry in the index.
func (fs *FS) enterIndex(in *inode, t *temp, key objKey) (linkCount, error) {
	if in.isDir() || in.lower.st.Nlink < 2 {
		return linkCount{}, nil
	}
	mark, err := fs.markOf(in.lower)
	if mark == nil || err != nil {
		return linkCount{}, err
	}
	n := int(in.lower.st.Nlink)
	link := linkCount{index: indexName(mark), names: n, lower: n}
	if fs.canMark(in) {
		if err := fs.setMark(t.fd, "nlink", formatNlink(link)); err != nil {
			return linkCount{}, err
		}
		if err := fs.setMark(t.fd, soleMark, nil); err != nil {
			return linkCount{}, err
		}
	}
	if t.name == "" {
		err = linkFD(t.fd, fs.index.dir.fd, link.index)
	} else {
		err = unix.Linkat(fs.layers.temp.fd, t.name, fs.index.dir.fd, link.index, 0)
	}
	if err != nil {
		return linkCount{}, fmt.Errorf("enter %s in index: %w", link.index, err)
	}
	fs.index.add(link.index, key)
	return link, nil
}

// keepTimes runs fn, which changes entries of the upper directory d, and gives d its times back: a copy-up is no change that anybody sees.
func (fs *FS) keepTimes(d *dirFD, fn func() error) error {
	st, err := statAt(d.fd, "")
	if err != nil {
		return fmt.Errorf("stat parent: %w", err)
	}
	if err := fn(); err != nil {
		return err
	}
	if err := timesFD(d.fd, st.Atim, st.Mtim); err != nil {
		// What fn did stands: to fail now would be to deny it.
		fs.log.WithError(err).Warn("overlay: a directory's times show a copy-up in it")
	}
	return nil
}

// markImpure notes on a directory of the upper that it holds copied-up objects, whose inode numbers are not those of the
// directory's own entries.
func (fs *FS) markImpure(p *inode, d *dirFD) error {
	if p.impure.Load() {
		return nil
	}
	if err := fs.setMark(d.fd, "impure", []byte("y")); err != nil {
		return err
	}
	p.impure.Store(true)
	return nil
}

// linkUp gives a name that only a lower layer has its link to the upper, which another name of the file or its index entry has made.
//
// Preconditions: in has an upper; in and a.parent are reserved and the parent is in the upper.
func (fs *FS) linkUp(in *inode, a alias) error {
	if a.upper {
		return nil
	}
	d, err := fs.upperDir(a.parent)
	if err != nil {
		return err
	}
	defer d.release()
	fd, err := fs.openUpperPath(in)
	if err != nil {
		return err
	}
	defer closeFD(fd)
	err = fs.keepTimes(d, func() error {
		if err := fs.markImpure(a.parent, d); err != nil {
			return err
		}
		return linkFD(fd, d.fd, a.name)
	})
	if err != nil {
		return fmt.Errorf("link %q in the upper: %w", a.name, err)
	}
	fs.tab.link(in, alias{parent: a.parent, name: a.name, upper: true})
	return nil
}
