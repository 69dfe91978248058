package overlayfuse

import (
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Copy-up of an object: a directory, a special file or the attributes of a regular one. Its data is package copyup's
// business, through target in file.go. Every object is made complete in work/work and then gets its name.
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

// copyUp gives in an upper object, without data for a regular file. The directories above it come first.
//
// data is what a regular file's upper is marked as: metacopy, or partial if its first data is to follow. made is the upper of one that
// is partial, open for reading and writing, if it was made now.
//
// Errors: EROFS; EPERM for an immutable or append-only lower object; those of the file systems. The lower stays what is shown.
// Locks: takes reservations of in and of directories, one after the other.
// Crash: a directory above may be in the upper already, which nobody can see; the object has its name and all attributes, or no name.
func (fs *FS) copyUpAs(in *inode, data upperData) (made *os.File, err error) {
	if fs.readOnly() {
		return nil, unix.EROFS
	}
	for !in.upper().exists {
		a, named := in.firstAlias()
		if named {
			if err := fs.copyUp(a.parent); err != nil {
				return nil, err
			}
		}
		done, made, err := fs.copyUpOnce(in, a, named, data)
		if done || err != nil {
			return made, err
		}
	}
	return nil, nil
}

// copyUp is copyUpAs for a change of attributes or names.
func (fs *FS) copyUp(in *inode) error {
	_, err := fs.copyUpAs(in, dataBelow)
	return err
}

// copyUpOnce does nothing if the inode lost the name meanwhile.
func (fs *FS) copyUpOnce(in *inode, a alias, named bool, data upperData) (done bool, made *os.File, err error) {
	defer lockAll(in, a.parent)()
	if in.upper().exists {
		return true, nil, nil
	}
	if named {
		if _, ok := in.findAlias(a.parent, a.name); !ok {
			return false, nil, nil
		}
	} else if _, ok := in.firstAlias(); ok {
		return false, nil, nil
	}
	made, err = fs.copyUpLocked(in, a, data)
	return true, made, err
}

// copyUpLocked is copyUp with in and the parent reserved and the parent in the upper. With no parent the object is one
// without a name (unlinked while open).
func (fs *FS) copyUpLocked(in *inode, a alias, data upperData) (made *os.File, err error) {
	if in.lower == nil {
		return nil, fmt.Errorf("inode %d has no lower: %w", in.ino, unix.EIO)
	}
	if err := fs.mayCopyUp(in); err != nil {
		return nil, err
	}
	if in.isDir() {
		return nil, fs.copyUpDir(in, a)
	}
	t, err := fs.makeCopy(in)
	if err != nil {
		return nil, err
	}
	defer t.close()
	if in.typ != unix.S_IFREG {
		data = dataHere
	}
	if err := fs.dress(t.fd, in, data); err != nil {
		return nil, err
	}
	if err := fs.install(in, a, t, data); err != nil || data == dataHere {
		return nil, err
	}
	fs.copies.NotCopied.Add(in.lower.st.Size)
	if data == dataBelow {
		fs.copies.Avoided.Add(1)
	}
	if data == dataPartial && !t.keep && t.name == "" && fs.syncsByInode() {
		t.keep = true
		made = os.NewFile(uintptr(t.fd), a.name)
	}
	return made, nil
}

// syncsByInode tells that an fsync of the descriptor with which an unnamed file was made is one of the name that it got later, too. On
// btrfs it is not: it logs the directories above the descriptor's dentry, which is in the workdir still, and the new name's may be lost
// with all that was synced in them (fs/btrfs/tree-log.c:log_new_ancestors_fast(), Linux 6.18; found by contrib/powercut).
func (fs *FS) syncsByInode() bool {
	switch fs.layers.upper.fsType {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.TMPFS_MAGIC:
		return true
	}
	return false
}

// mayCopyUp refuses an object that its layer protects against every change.
func (fs *FS) mayCopyUp(in *inode) error {
	p, err := fs.lowerPlace(in.lower.top(), in.isDir())
	if err != nil {
		return err
	}
	defer p.release()
	var sx unix.Statx_t
	flags := unix.AT_SYMLINK_NOFOLLOW
	if p.name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if err := unix.Statx(p.dir.fd, p.name, flags, unix.STATX_TYPE, &sx); err != nil {
		return fmt.Errorf("statx %s: %w", fs.chain.where(in.lower.top()), err)
	}
	if sx.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0 {
		return unix.EPERM
	}
	return nil
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
		if err := unix.Ftruncate(t.fd, st.Size); err != nil {
			t.close()
			return nil, fmt.Errorf("size %d of the upper file: %w", st.Size, err)
		}
	}
	return t, nil
}

// copyUpDir makes the upper directory.
func (fs *FS) copyUpDir(in *inode, a alias) error {
	if a.parent == nil {
		return unix.ENOENT
	}
	t, err := fs.makeTemp(in.lower.st.Mode, 0, "")
	if err != nil {
		return err
	}
	defer t.close()
	if err := fs.dress(t.fd, in, dataHere); err != nil {
		return err
	}
	return fs.install(in, a, t, dataHere)
}
