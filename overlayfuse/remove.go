package overlayfuse

import (
	"errors"
	"fmt"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Unlink takes a name away. What a lower layer has under it is hidden by a whiteout.
func (fs *FS) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return fs.remove(h, name, false)
}

// Rmdir removes an empty directory.
func (fs *FS) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return fs.remove(h, name, true)
}

func (fs *FS) remove(h *fuse.InHeader, name string, dir bool) fuse.Status {
	p, s := fs.node(h.NodeId)
	if !s.Ok() {
		return s
	}
	return fs.fail("remove "+name, p, fs.removeName(p, name, dir))
}

// removeName takes p/name away.
//
// Errors: ENOENT, ENOTDIR, EISDIR, ENOTEMPTY, EPERM for an immutable lower object; those of the file system.
// Crash: the name is there or it isn't.
// Compare: fs/overlayfs/dir.c:ovl_do_remove().
func (fs *FS) removeName(p *inode, name string, dir bool) error {
	if fs.readOnly() {
		return unix.EROFS
	}
	in, err := fs.lookup(p, name)
	if err != nil {
		return err
	}
	if in == nil {
		return unix.ENOENT
	}
	defer fs.tab.forget(in, 1)
	switch {
	case dir && !in.isDir():
		return unix.ENOTDIR
	case !dir && in.isDir():
		return unix.EISDIR
	}
	if err := fs.copyUp(p); err != nil {
		return err
	}
	if err := fs.beforeLosing(in, p, name); err != nil {
		return err
	}
	defer lockAll(in, p)()
	a, ok := in.findAlias(p, name)
	if !ok {
		return unix.ENOENT
	}
	lower, err := fs.lookupLower(p, name)
	if err != nil {
		return err
	}
	if dir {
		return fs.removeDir(in, a, lower != nil)
	}
	return fs.removeFile(in, a, lower != nil)
}

// beforeLosing gets an object ready to lose a name: a file that has more of them in a lower layer needs an upper to count
// them on, and one that has more of them in the upper is to keep those.
func (fs *FS) beforeLosing(in, p *inode, name string) error {
	if in.upper().exists {
		return fs.logLinked(in, p, name)
	}
	if in.lower == nil {
		return nil
	}
	if !in.isDir() && in.lower.st.Nlink > 1 {
		return fs.copyUp(in)
	}
	return fs.mayCopyUp(in)
}

// Preconditions: in and a.parent are reserved, the parent is in the upper.
func (fs *FS) removeFile(in *inode, a alias, lower bool) error {
	d, err := fs.upperDir(a.parent)
	if err != nil {
		return err
	}
	defer d.release()
	if err := fs.pinUpper(in); err != nil {
		return err
	}
	switch {
	case a.upper && lower:
		err = fs.whiteoutOver(d, a.name, 0)
	case a.upper:
		err = unix.Unlinkat(d.fd, a.name, 0)
	default:
		err = fs.makeWhiteout(d.fd, a.name)
	}
	if err != nil {
		fs.dropPin(in)
		return fmt.Errorf("remove %q: %w", a.name, err)
	}
	return fs.lostName(in, a)
}

// lostName brings the tables up to date after a name of a file is gone.
//
// Preconditions: its upper, if there is one, is pinned.
func (fs *FS) lostName(in *inode, a alias) error {
	fs.tab.unlink(in, a.parent, a.name)
	if !in.upper().exists {
		fs.markDead(in)
		return nil
	}
	pin := in.pinned()
	if pin == nil {
		return fmt.Errorf("upper object of inode %d is out of reach: %w", in.ino, unix.EIO)
	}
	defer pin.release()
	if err := fs.countNames(in, pin.fd, -1); err != nil {
		return err
	}
	if err := fs.leaveIndex(in); err != nil {
		return err
	}
	st, err := statAt(pin.fd, "")
	if err != nil {
		return fmt.Errorf("stat upper: %w", err)
	}
	if st.Nlink == 0 {
		fs.markDead(in)
	}
	fs.dropPin(in)
	fs.changed(in)
	return nil
}

// leaveIndex takes a file without names out of the index.
func (fs *FS) leaveIndex(in *inode) error {
	in.mu.Lock()
	link := in.links()
	if link.index != "" && link.names <= 0 {
		in.setLinks(linkCount{})
	}
	in.mu.Unlock()
	if link.index == "" || link.names > 0 {
		return nil
	}
	return fs.index.remove(link.index)
}

// markDead notes that no name is left.
func (fs *FS) markDead(in *inode) {
	fs.tab.unhash(in)
	in.mu.Lock()
	in.dead = true
	in.mu.Unlock()
	if f := in.file.Load(); f != nil {
		f.Forget()
	}
	if fs.lost != nil { // what a file lacks that nobody can open is no loss
		fs.lost.forget(in.ino)
	}
}

// makeWhiteout hides a lower name that the upper does not have.
func (fs *FS) makeWhiteout(dir int, name string) error {
	return unix.Mknodat(dir, name, unix.S_IFCHR, 0)
}

// whiteoutOver puts a whiteout in the place of the upper object name, in one step. With RENAME_EXCHANGE the
// object, a directory, goes to work/work and is discarded there.
func (fs *FS) whiteoutOver(d *dirFD, name string, flags uint) error {
	work := fs.layers.temp.fd
	tmp := fs.temps.next()
	if err := fs.makeWhiteout(work, tmp); err != nil {
		return fmt.Errorf("make whiteout in %s: %w", fs.layers.temp.path, err)
	}
	err := moveName(work, tmp, d.fd, name, flags)
	if err != nil {
		return joinUndo(err, unix.Unlinkat(work, tmp, 0))
	}
	if flags&unix.RENAME_EXCHANGE != 0 {
		fs.discard(tmp)
	}
	return nil
}

// discard removes a directory from work/work that is part of nothing any more. What can't be removed now is when the
// workdir is opened the next time.
func (fs *FS) discard(name string) {
	if err := removeTree(fs.layers.temp.fd, name); err != nil {
		fs.log.WithError(err).WithField("path", fs.layers.temp.path+"/"+name).Warn("overlay: a removed directory stays in the workdir")
	}
}

// removeTree removes name below dir with all that is in it.
func removeTree(dir int, name string) error {
	err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	if !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		if errors.Is(err, unix.ENOTDIR) {
			err = unix.Unlinkat(dir, name, 0)
		}
		return err
	}
	fd, err := openIn(dir, name, oPathDir, 0)
	if err != nil {
		return err
	}
	defer closeFD(fd)
	names, err := listNames(fd)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := removeTree(fd, n); err != nil {
			return err
		}
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}

// removeDir removes an empty directory.
//
// Preconditions: as removeFile.
func (fs *FS) removeDir(in *inode, a alias, lower bool) error {
	// One that merges with nothing is as empty as its upper, unless there are whiteouts in that.
	alone := in.lower == nil && !lower
	if !alone {
		if err := fs.checkEmpty(in); err != nil {
			return err
		}
	}
	d, err := fs.upperDir(a.parent)
	if err != nil {
		return err
	}
	defer d.release()
	if err := fs.pinUpper(in); err != nil {
		return err
	}
	switch {
	case !in.upper().exists:
		err = fs.makeWhiteout(d.fd, a.name)
	case lower:
		err = fs.whiteoutOver(d, a.name, unix.RENAME_EXCHANGE)
	default:
		err = unix.Unlinkat(d.fd, a.name, unix.AT_REMOVEDIR)
		if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
			if err = fs.checkEmpty(in); err == nil {
				err = fs.discardUpperDir(d, a.name)
			}
		}
	}
	if err != nil {
		fs.dropDirPin(in)
		return fmt.Errorf("remove directory %q: %w", a.name, err)
	}
	fs.lostDir(in, a)
	return nil
}

// discardUpperDir removes a directory that holds whiteouts.
func (fs *FS) discardUpperDir(d *dirFD, name string) error {
	tmp := fs.temps.next()
	if err := moveName(d.fd, name, fs.layers.temp.fd, tmp, unix.RENAME_NOREPLACE); err != nil {
		return err
	}
	fs.discard(tmp)
	return nil
}

// lostDir brings the tables up to date after a directory is gone. Its descriptor stays for those who are in it.
func (fs *FS) lostDir(in *inode, a alias) {
	fs.tab.unlink(in, a.parent, a.name)
	fs.markDead(in)
	fs.dirs.drop(dirKey{in: in})
}

// dropDirPin gives the descriptor of a directory back that stayed after all.
func (fs *FS) dropDirPin(in *inode) {
	in.mu.Lock()
	pin := in.unpin()
	in.mu.Unlock()
	if pin != nil {
		pin.release()
	}
}

// checkEmpty refuses a directory with visible entries.
//
// Errors: ENOTEMPTY.
func (fs *FS) checkEmpty(in *inode) error {
	es, err := fs.list(in)
	if err != nil {
		return err
	}
	if len(es) > 0 {
		return unix.ENOTEMPTY
	}
	return nil
}
