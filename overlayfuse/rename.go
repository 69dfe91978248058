package overlayfuse

import (
	"fmt"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const renameFlags = unix.RENAME_NOREPLACE | unix.RENAME_EXCHANGE | unix.RENAME_WHITEOUT

// side is one end of a rename.
type side struct {
	parent *inode
	name   string
	in     *inode // what the name means; nil if nothing
	dir    *dirFD // parent in the upper
	lower  bool   // a lower layer has the name as well
}

func (s *side) alias() alias { return alias{parent: s.parent, name: s.name, upper: true} }

// Rename moves anything anywhere, also a directory that lower layers have: its upper gets a redirect to them.
// With RENAME_WHITEOUT nothing is seen at the old name either, as a whiteout of an overlay is not.
func (fs *FS) Rename(_ <-chan struct{}, req *fuse.RenameIn, oldName, newName string) fuse.Status {
	p1, s := fs.node(req.NodeId)
	if !s.Ok() {
		return s
	}
	p2, s := fs.node(req.Newdir)
	if !s.Ok() {
		return s
	}
	from, to := &side{parent: p1, name: oldName}, &side{parent: p2, name: newName}
	return fs.fail("rename "+oldName, p1, fs.rename(from, to, uint(req.Flags)))
}

// rename moves from to to.
//
// Errors: EINVAL for unknown flags, ENOENT, EEXIST, ENOTEMPTY, EPERM; those of the file system.
// Crash: either both names are as before or both as after; RENAME_EXCHANGE with a whiteout may leave one that hides nothing.
// Compare: fs/overlayfs/dir.c:ovl_rename().
func (fs *FS) rename(from, to *side, flags uint) error {
	if fs.readOnly() {
		return unix.EROFS
	}
	if flags&^renameFlags != 0 || flags&unix.RENAME_EXCHANGE != 0 && flags != unix.RENAME_EXCHANGE {
		return unix.EINVAL
	}
	if len(to.name) > nameMax {
		return unix.ENAMETOOLONG
	}
	for _, s := range []*side{from, to} {
		var err error
		if s.in, err = fs.lookup(s.parent, s.name); err != nil {
			return err
		}
		if s.in != nil {
			defer fs.tab.forget(s.in, 1)
		}
	}
	if done, err := checkRename(from, to, flags); done || err != nil {
		return err
	}
	if err := fs.prepareRename(from, to, flags); err != nil {
		return err
	}
	defer lockAll(from.in, to.in, from.parent, to.parent)()
	for _, s := range []*side{from, to} {
		d, err := fs.upperDir(s.parent)
		if err != nil {
			return err
		}
		defer d.release()
		s.dir = d
		lower, err := fs.lookupLower(s.parent, s.name)
		if err != nil {
			return err
		}
		s.lower = lower != nil
	}
	if flags&unix.RENAME_EXCHANGE != 0 {
		return fs.exchange(from, to)
	}
	return fs.move(from, to)
}

// checkRename refuses what can be refused without looking at the disk. done: both names are one file already.
func checkRename(from, to *side, flags uint) (done bool, err error) {
	switch {
	case from.in == nil:
		return false, unix.ENOENT
	case flags&unix.RENAME_EXCHANGE != 0 && to.in == nil:
		return false, unix.ENOENT
	case flags&unix.RENAME_NOREPLACE != 0 && to.in != nil:
		return false, unix.EEXIST
	case from.in == to.in:
		return true, nil
	case flags&unix.RENAME_EXCHANGE != 0 || to.in == nil:
		return false, nil
	case from.in.isDir() && !to.in.isDir():
		return false, unix.ENOTDIR
	case !from.in.isDir() && to.in.isDir():
		return false, unix.EISDIR
	}
	return false, nil
}

// prepareRename brings all that moves into the upper.
func (fs *FS) prepareRename(from, to *side, flags uint) error {
	for _, in := range []*inode{from.parent, to.parent, from.in} {
		if err := fs.copyUp(in); err != nil {
			return err
		}
	}
	if err := fs.markFollow(from.in); err != nil {
		return err
	}
	if err := fs.logUpper(from.in, from.parent, from.name); err != nil {
		return err
	}
	switch {
	case to.in == nil:
		return nil
	case flags&unix.RENAME_EXCHANGE != 0:
		if err := fs.copyUp(to.in); err != nil {
			return err
		}
		if err := fs.markFollow(to.in); err != nil {
			return err
		}
		return fs.logUpper(to.in, to.parent, to.name)
	case to.in.isDir():
		if err := fs.checkEmpty(to.in); err != nil {
			return err
		}
	}
	return fs.beforeLosing(to.in, to.parent, to.name)
}

// readyToMove gives an object that changes its place the marks that it needs there, and a name of its own in the upper.
func (fs *FS) readyToMove(s, dst *side) error {
	in := s.in
	a, ok := in.findAlias(s.parent, s.name)
	if !ok {
		return unix.ENOENT
	}
	if !in.isDir() {
		if err := fs.linkUp(in, a); err != nil {
			return err
		}
	} else if err := fs.markMoved(in, dst); err != nil {
		return err
	}
	if in.key != in.upper().key {
		return fs.markImpure(dst.parent, dst.dir)
	}
	return nil
}

// markMoved makes a directory keep what it merges with, and merge with nothing else, in its new place.
func (fs *FS) markMoved(in *inode, dst *side) error {
	d, err := fs.upperDir(in)
	if err != nil {
		return err
	}
	defer d.release()
	if in.lower != nil {
		err := fs.setMark(d.fd, "redirect", []byte("/"+in.lower.path()))
		if tooLong(err) {
			return unix.EXDEV // as the kernel's overlayfs beyond redirect_max: mv(1) copies then
		}
		return err
	}
	if u := in.upper(); dst.parent.lower != nil && !u.opaque {
		if err := fs.setMark(d.fd, "opaque", []byte("y")); err != nil {
			return err
		}
		u.opaque = true
		in.setUpper(u)
	}
	return nil
}

// renameAt is renameat2(2) with the tables brought up to date. Paths of directories change only while nobody follows one.
func (fs *FS) renameAt(dirs bool, from, to *side, flags uint, after func()) error {
	if dirs {
		fs.ns.Lock()
		defer fs.ns.Unlock()
	}
	if err := moveName(from.dir.fd, from.name, to.dir.fd, to.name, flags); err != nil {
		return fmt.Errorf("rename %q to %q in the upper: %w", from.name, to.name, err)
	}
	after()
	return nil
}

// exchange swaps two names.
func (fs *FS) exchange(from, to *side) error {
	if err := fs.readyToMove(from, to); err != nil {
		return err
	}
	if err := fs.readyToMove(to, from); err != nil {
		return err
	}
	for _, s := range []*side{from, to} {
		if s.in.isDir() {
			continue
		}
		if err := fs.pinUpper(s.in); err != nil {
			return err
		}
		defer fs.dropPin(s.in)
	}
	return fs.renameAt(from.in.isDir() || to.in.isDir(), from, to, unix.RENAME_EXCHANGE, func() {
		fs.moved(from.in, from, to)
		fs.moved(to.in, to, from)
	})
}

// moved changes the name of an inode in the table.
func (fs *FS) moved(in *inode, from, to *side) {
	// The new name first: an inode without any would be dropped.
	fs.tab.link(in, to.alias())
	fs.tab.unlink(in, from.parent, from.name)
}

// move renames from to to, whose object, if any, loses the name.
func (fs *FS) move(from, to *side) error {
	if err := fs.readyToMove(from, to); err != nil {
		return err
	}
	// With RENAME_WHITEOUT or without: where nothing is below, a whiteout would hide nothing, and the kernel's overlayfs lists it.
	whiteout := from.lower
	over, err := fs.makeRoom(from, to)
	if err != nil {
		return err
	}
	var lost alias
	if to.in != nil {
		lost, _ = to.in.findAlias(to.parent, to.name)
		if err := fs.pinUpper(to.in); err != nil {
			return err
		}
	}
	if !from.in.isDir() {
		if err := fs.pinUpper(from.in); err != nil {
			return err
		}
		defer fs.dropPin(from.in)
	}
	how := uint(0)
	switch {
	case over: // a directory and the whiteout in its way change places
		how = unix.RENAME_EXCHANGE
	case whiteout:
		how = unix.RENAME_WHITEOUT
	}
	err = fs.renameAt(from.in.isDir(), from, to, how, func() {
		if to.in != nil && to.in.isDir() {
			fs.lostDir(to.in, lost)
		}
		fs.moved(from.in, from, to)
	})
	if err != nil {
		if to.in != nil {
			fs.dropPin(to.in)
			if to.in.isDir() {
				fs.dropDirPin(to.in)
			}
		}
		return err
	}
	if over && !whiteout {
		if err := unix.Unlinkat(from.dir.fd, from.name, 0); err != nil {
			fs.log.WithError(err).WithField("name", from.name).Warn("overlay: a whiteout that hides nothing stays")
		}
	}
	if to.in != nil && !to.in.isDir() {
		return fs.lostName(to.in, lost)
	}
	return nil
}
