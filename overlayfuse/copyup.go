package overlayfuse

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Copy-up of an object: a directory, a special file or the attributes of a regular one. Its data is package copyup's
// business, through target.go. Every object is made complete in work/work and then gets its name.
// Compare: fs/overlayfs/copy_up.c:ovl_copy_up_one().

// lockAll reserves inodes in the one order that there is: files before directories, then by age. Nil and equal ones
// are taken once. The result gives them back.
func lockAll(ins ...*inode) (unlock func()) {
	slices.SortFunc(ins, func(a, b *inode) int {
		switch {
		case a == b:
			return 0
		case a == nil:
			return -1
		case b == nil:
			return 1
		case a.isDir() != b.isDir():
			if b.isDir() {
				return -1
			}
			return 1
		case a.seq < b.seq:
			return -1
		}
		return 1
	})
	ins = slices.Compact(ins)
	for _, in := range ins {
		if in != nil {
			in.copy.Lock()
		}
	}
	return func() {
		for _, in := range ins {
			if in != nil {
				in.copy.Unlock()
			}
		}
	}
}

// copyUpAs gives in an upper object, without data for a regular file. The directories above it come first.
//
// data is what a regular file's upper is marked as: metacopy, or partial if its first data is to follow. made is the upper of a regular
// file that was made now, open for reading and writing, for the caller to close; else it is -1.
//
// Errors: EROFS; EPERM for an immutable or append-only lower object; those of the file systems. The lower stays what is shown.
// Locks: takes reservations of in and of directories, one after the other.
// Crash: a directory above may be in the upper already, which nobody can see; the object has its name and all attributes, or no name.
func (fs *FS) copyUpAs(in *inode, data upperData) (made int, err error) {
	if fs.readOnly() {
		return -1, unix.EROFS
	}
	for !in.upper().exists {
		a, named := in.firstAlias()
		if named {
			if err := fs.copyUp(a.parent); err != nil {
				return -1, err
			}
		}
		done, made, err := fs.copyUpOnce(in, a, named, data)
		if done || err != nil {
			return made, err
		}
	}
	return -1, nil
}

// copyUp is copyUpAs for a change of attributes or names.
func (fs *FS) copyUp(in *inode) error {
	made, err := fs.copyUpAs(in, dataBelow)
	if made >= 0 {
		closeFD(made)
	}
	return err
}

// copyUpOnce does nothing if the inode lost the name meanwhile.
func (fs *FS) copyUpOnce(in *inode, a alias, named bool, data upperData) (done bool, made int, err error) {
	defer lockAll(in, a.parent)()
	if in.upper().exists {
		return true, -1, nil
	}
	if named {
		if _, ok := in.findAlias(a.parent, a.name); !ok {
			return false, -1, nil
		}
	} else if _, ok := in.firstAlias(); ok {
		return false, -1, nil
	}
	made, err = fs.copyUpLocked(in, a, data)
	return true, made, err
}

// copyUpLocked is copyUp with in and the parent reserved and the parent in the upper. With no parent the object is one
// without a name (unlinked while open).
func (fs *FS) copyUpLocked(in *inode, a alias, data upperData) (made int, err error) {
	if in.lower == nil {
		return -1, fmt.Errorf("inode %d has no lower: %w", in.ino, unix.EIO)
	}
	if in.isDir() && a.parent == nil {
		return -1, unix.ENOENT
	}
	src, err := fs.source(in)
	if err != nil {
		return -1, err
	}
	defer src.release()
	t, err := fs.makeCopy(in)
	if err != nil {
		return -1, err
	}
	defer t.close()
	if in.typ != unix.S_IFREG {
		data = dataHere
	}
	if err := fs.dress(t, src, in, data); err != nil {
		return -1, err
	}
	if err := fs.install(in, a, t, data); err != nil || data == dataHere {
		return -1, err
	}
	fs.copies.NotCopied.Add(in.lower.st.Size)
	if data == dataBelow {
		fs.copies.Avoided.Add(1)
	}
	t.keep = true
	return t.fd, nil
}

// keepsOrder tells that the upper's file system keeps all changes of names and attributes in their order over a crash: one journal has
// them. btrfs logs single inodes (logged.go); of others nothing is known. And an fsync of the descriptor with which an unnamed file was
// made is one of the name that it got later only where this holds: btrfs logs the directories above the descriptor's dentry, which is in
// the workdir still, and the new name's may be lost with all that was synced in them (fs/btrfs/tree-log.c:log_new_ancestors_fast(),
// Linux 6.18; found by contrib/powercut).
func (fs *FS) keepsOrder() bool { return keepsOrder(fs.layers.upper.fsType) }

// keepsOrder is FS.keepsOrder of an f_type of statfs(2).
func keepsOrder(fsType int64) bool {
	switch fsType {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.TMPFS_MAGIC:
		return true
	}
	return false
}

// source is the lower object that an upper is made from, as it is now.
type source struct {
	place
	st unix.Statx_t
}

// source finds what in is copied up from. The caller releases it.
//
// Errors: EPERM for an object that its layer protects against every change.
func (fs *FS) source(in *inode) (*source, error) {
	p, err := fs.lowerPlace(in.lower.top(), in.isDir())
	if err != nil {
		return nil, err
	}
	s := &source{place: p}
	flags := unix.AT_SYMLINK_NOFOLLOW
	if p.name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	err = unix.Statx(p.dir.fd, p.name, flags, unix.STATX_BASIC_STATS, &s.st)
	switch {
	case err != nil:
		err = fmt.Errorf("statx %s: %w", fs.chain.where(in.lower.top()), err)
	case s.st.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0:
		err = unix.EPERM
	}
	if err != nil {
		p.release()
		return nil, err
	}
	return s, nil
}

func (s *source) key() objKey {
	return objKey{unix.Mkdev(s.st.Dev_major, s.st.Dev_minor), s.st.Ino}
}

// mayCopyUp refuses what source does.
func (fs *FS) mayCopyUp(in *inode) error {
	s, err := fs.source(in)
	if err == nil {
		s.release()
	}
	return err
}

// makeCopy makes an object of in's type; a regular file as a hole of the lower's size.
func (fs *FS) makeCopy(in *inode) (*temp, error) {
	link := ""
	if in.typ == unix.S_IFLNK {
		var err error
		if link, err = fs.readlink(in); err != nil {
			return nil, err
		}
	}
	st := &in.lower.st
	t, err := fs.makeTemp(st.Mode, deviceNumber(st.rdev()), link)
	if err != nil {
		return nil, err
	}
	if in.typ == unix.S_IFREG {
		if err := truncateFD(t.fd, st.Size); err != nil {
			t.close()
			return nil, fmt.Errorf("size %d of the upper file: %w", st.Size, err)
		}
	}
	return t, nil
}
