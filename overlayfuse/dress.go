package overlayfuse

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// dress gives t what the lower object of in has: owner, mode, xattrs, the capability after all that would remove it, the
// overlay's own marks, and the times last.
//
// Errors: ESTALE if src is not the object that was looked up.
func (fs *FS) dress(t *temp, src *source, in *inode, data upperData) error {
	if src.key() != in.lower.st.key() {
		return fmt.Errorf("%s: %w", fs.chain.where(in.lower.top()), errChanged)
	}
	now, err := statAt(t.fd, "")
	if err != nil {
		return fmt.Errorf("stat new upper object: %w", err)
	}
	t.key = keyOf(&now)
	owned := now.Uid == src.st.Uid && now.Gid == src.st.Gid
	if !owned {
		if err := chownFD(t.fd, int(src.st.Uid), int(src.st.Gid)); err != nil {
			return err
		}
	}
	if mode := uint32(src.st.Mode); in.typ != unix.S_IFLNK && (!owned || (now.Mode^mode)&07777 != 0) {
		if err := chmodFD(t.fd, mode); err != nil {
			return err
		}
	}
	if err := fs.copyXattrs(src.object(), t.fd); err != nil {
		return fmt.Errorf("%s: %w", fs.chain.where(in.lower.top()), err)
	}
	if err := fs.markCopy(t.fd, in, data); err != nil {
		return err
	}
	return timesFD(t.fd, timeOf(src.st.Atime), timeOf(src.st.Mtime))
}

func timeOf(t unix.StatxTimestamp) unix.Timespec {
	return unix.Timespec{Sec: t.Sec, Nsec: int64(t.Nsec)}
}

const capabilityXattr = "security.capability"

// copyXattrs copies all xattrs but the overlay's own, which speak of the object's place in the layers.
//
// Errors: one that the upper's file system does not know (EOPNOTSUPP) is left out unless permissions hang on it; every other fails.
// Compare: fs/overlayfs/copy_up.c:ovl_copy_xattr(), ovl_must_copy_xattr().
func (fs *FS) copyXattrs(src objectAt, dst int) error {
	names, err := src.list()
	if err != nil {
		return fmt.Errorf("list xattrs: %w", err)
	}
	if i := slices.Index(names, capabilityXattr); i >= 0 {
		names = append(slices.Delete(names, i, i+1), capabilityXattr)
	}
	for _, n := range names {
		if fs.ownXattr(n) {
			continue
		}
		v, err := getXattr(src, n)
		if noXattr(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read xattr %s: %w", n, err)
		}
		err = setXattrFD(dst, n, v, 0)
		if errors.Is(err, unix.EOPNOTSUPP) && !mustCopy(n) {
			continue
		}
		if err != nil {
			return fmt.Errorf("copy xattr %s: %w", n, err)
		}
	}
	return nil
}

func mustCopy(name string) bool {
	return strings.HasPrefix(name, "security.") || strings.HasPrefix(name, "system.posix_acl_")
}

// markCopy writes the overlay's marks on a copy: where it comes from, and how much data it has. A file without all of its data
// leads to its origin by itself, and gets that mark with the last of the data: both do not fit into an inode of ext4 (256
// bytes), and an xattr block for each file would cost more than the rest of a chown -R.
func (fs *FS) markCopy(fd int, in *inode, data upperData) error {
	switch data {
	case dataBelow:
		if err := fs.setMark(fd, metacopyMark, nil); err != nil {
			return err
		}
	case dataPartial:
		if err := fs.setMark(fd, metacopyMark, []byte(partialValue)); err != nil {
			return err
		}
	case dataHere:
	}
	if data != dataHere && in.lower.st.Nlink == 1 {
		return nil
	}
	return fs.markOrigin(fd, in)
}

func (fs *FS) markOrigin(fd int, in *inode) error {
	mark, err := fs.markOf(in.lower)
	if err != nil || mark == nil || !fs.canMark(in) {
		return err
	}
	return fs.setMark(fd, "origin", mark)
}

// markFollow makes a file whose data is not all in the upper find the rest wherever it is moved or linked to: it gets a redirect,
// an absolute one. Where that does not fit into the inode beside the other xattrs, the file is completed instead.
//
// Locks: takes the reservation of in.
func (fs *FS) markFollow(in *inode) error {
	if in.upper().data == dataHere || in.lower == nil {
		return nil
	}
	err := fs.onUpper(in, func(fd int) error {
		if in.upper().data == dataHere { // completed meanwhile
			return nil
		}
		return fs.setMark(fd, "redirect", []byte("/"+in.lower.path()))
	})
	if tooLong(err) {
		return fs.data(in).Complete(context.Background())
	}
	return err
}

// canMark tells whether the object can carry the overlay's marks: user.* xattrs are for files and directories only (xattr(7)).
func (fs *FS) canMark(in *inode) bool {
	return fs.layers.namespace != NamespaceUser || in.isDir() || in.typ == unix.S_IFREG
}

func (fs *FS) setMark(fd int, mark string, v []byte) error {
	if err := setXattrFD(fd, fs.prefix+mark, v, 0); err != nil {
		return fmt.Errorf("set %s%s: %w", fs.prefix, mark, err)
	}
	return nil
}

// tooLong tells that an xattr has no room in an inode.
func tooLong(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ERANGE)
}

func (fs *FS) removeMark(fd int, mark string) error {
	if err := removeXattrFD(fd, fs.prefix+mark); err != nil && !noXattr(err) {
		return fmt.Errorf("remove %s%s: %w", fs.prefix, mark, err)
	}
	return nil
}
