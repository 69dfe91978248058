package overlayfuse

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Extended attributes. The overlay's own (trusted.overlay.opaque and so on) are not to be seen through the mount; those that a nested
// overlay sets there are stored with "overlay." put in after the prefix. Compare: fs/overlayfs/xattrs.c:ovl_xattr_escape_name().

const escape = "overlay."

// xattrNameMax is how long a name may be, in bytes (XATTR_NAME_MAX of linux/limits.h).
const xattrNameMax = 255

// ownXattr tells one of the overlay's own attributes by its stored name.
func (fs *FS) ownXattr(stored string) bool {
	rest, ok := strings.CutPrefix(stored, fs.prefix)
	return ok && !strings.HasPrefix(rest, escape)
}

// storedXattr is the stored name of an attribute that the mount shows as name.
func (fs *FS) storedXattr(name string) string {
	if rest, ok := strings.CutPrefix(name, fs.prefix); ok {
		return fs.prefix + escape + rest
	}
	return name
}

// shownXattr is storedXattr's inverse, for names that are not the overlay's own.
func (fs *FS) shownXattr(stored string) string {
	if rest, ok := strings.CutPrefix(stored, fs.prefix+escape); ok {
		return fs.prefix + rest
	}
	return stored
}

// refuseXattr is EOPNOTSUPP for what the mount was told not to have, and for a name that is too long once it is stored; EINVAL for the prefix
// of the overlay's own alone.
func (fs *FS) refuseXattr(name string) error {
	switch {
	case fs.cfg.NoXattrs, fs.cfg.NoACL && strings.HasPrefix(name, aclPrefix), len(fs.storedXattr(name)) > xattrNameMax:
		return unix.EOPNOTSUPP
	case name == fs.prefix:
		return unix.EINVAL
	}
	return nil
}

// GetXAttr reads an attribute of the object itself, also of a symlink.
func (fs *FS) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	in, s := fs.node(h.NodeId)
	if !s.Ok() {
		return 0, s
	}
	v, err := fs.getXattr(in, name)
	if err != nil {
		return 0, fs.fail("getxattr "+name, in, err)
	}
	return reply(v, dest)
}

// reply copies an answer of unknown length as getxattr(2) wants it.
func reply(v, dest []byte) (uint32, fuse.Status) {
	if len(v) > len(dest) {
		return uint32(len(v)), fuse.ERANGE
	}
	return uint32(copy(dest, v)), fuse.OK
}

func (fs *FS) getXattr(in *inode, name string) ([]byte, error) {
	if err := fs.refuseXattr(name); err != nil {
		return nil, err
	}
	bit := absentBit(name)
	if in.absent.known(bit) {
		return nil, unix.ENODATA
	}
	v, err := fs.readXattr(in, fs.storedXattr(name))
	if errors.Is(err, unix.ENODATA) {
		in.absent.note(bit)
	}
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(name, aclPrefix) {
		return mapACL(v, fs.shownACLID)
	}
	return v, nil
}

// readXattr is the value of a stored attribute of the object whose attributes the inode shows.
func (fs *FS) readXattr(in *inode, stored string) ([]byte, error) {
	return onShown(fs, in, func(o objectAt) ([]byte, error) { return getXattr(o, stored) },
		func(fd int) ([]byte, error) { return getXattrFD(fd, stored) })
}

// onShown reads something of the object whose attributes the inode shows: of a lower one by its name, which is not compared with what
// was looked up (see "Changed layers"), of an upper one, which may be renamed meanwhile, by an O_PATH descriptor.
func onShown[T any](fs *FS, in *inode, lower func(o objectAt) (T, error), upper func(fd int) (T, error)) (T, error) {
	var none T
	if in.lower != nil && !in.upper().exists {
		p, err := fs.lowerPlace(in.lower.top(), in.isDir())
		if err != nil {
			return none, err
		}
		defer p.release()
		return lower(p.object())
	}
	fd, _, err := fs.openPath(in)
	if err != nil {
		return none, err
	}
	defer closeFD(fd)
	return upper(fd)
}

// ListXAttr lists names. Those of the trusted namespace are for the privileged, as with every file system.
func (fs *FS) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	in, s := fs.node(h.NodeId)
	if !s.Ok() {
		return 0, s
	}
	if fs.cfg.NoXattrs {
		return 0, fuse.OK
	}
	names, err := fs.listXattr(in)
	if err != nil {
		return 0, fs.fail("listxattr", in, err)
	}
	trusted := func(n string) bool { return strings.HasPrefix(n, "trusted.") }
	if slices.ContainsFunc(names, trusted) && !callerHas(h.Pid, unix.CAP_SYS_ADMIN) {
		names = slices.DeleteFunc(names, trusted)
	}
	var b []byte
	for _, n := range names {
		b = append(append(b, n...), 0)
	}
	return reply(b, dest)
}

func (fs *FS) listXattr(in *inode) ([]string, error) {
	stored, err := onShown(fs, in, objectAt.list, listXattrFD)
	if err != nil {
		return nil, fmt.Errorf("list xattrs: %w", err)
	}
	var names []string
	for _, n := range stored {
		if shown := fs.shownXattr(n); !fs.ownXattr(n) && fs.refuseXattr(shown) == nil {
			names = append(names, shown)
		}
	}
	return names, nil
}

// SetXAttr sets an attribute. It copies no data.
func (fs *FS) SetXAttr(_ <-chan struct{}, req *fuse.SetXAttrIn, name string, v []byte) fuse.Status {
	in, s := fs.node(req.NodeId)
	if !s.Ok() {
		return s
	}
	// fs/fuse sets the flag with every ACL; a default ACL has nothing to do with the mode.
	kill := name == aclAccess && req.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0
	return fs.fail("setxattr "+name, in, fs.setXattr(in, name, v, int(req.Flags), kill))
}

func (fs *FS) setXattr(in *inode, name string, v []byte, flags int, killSGID bool) error {
	if fs.readOnly() {
		return unix.EROFS
	}
	if err := fs.refuseXattr(name); err != nil {
		return err
	}
	if strings.HasPrefix(name, aclPrefix) {
		var err error
		if v, err = mapACL(v, fs.storedACLID); err != nil {
			return err
		}
	}
	in.absent.forget(absentBit(name))
	return fs.onUpper(in, func(fd int) error {
		if err := setXattrFD(fd, fs.storedXattr(name), v, flags); err != nil {
			return fmt.Errorf("set xattr %s: %w", name, err)
		}
		if !killSGID {
			return nil
		}
		st, err := statAt(fd, "")
		if err != nil {
			return fmt.Errorf("stat: %w", err)
		}
		return chmodFD(fd, st.Mode&^unix.S_ISGID)
	})
}

// RemoveXAttr removes an attribute. One that isn't there copies nothing up.
func (fs *FS) RemoveXAttr(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	in, s := fs.node(h.NodeId)
	if !s.Ok() {
		return s
	}
	return fs.fail("removexattr "+name, in, fs.removeXattr(in, name))
}

func (fs *FS) removeXattr(in *inode, name string) error {
	if fs.readOnly() {
		return unix.EROFS
	}
	if !in.upper().exists {
		if _, err := fs.getXattr(in, name); err != nil {
			return err
		}
	}
	if err := fs.refuseXattr(name); err != nil {
		return err
	}
	return fs.onUpper(in, func(fd int) error { return removeXattrFD(fd, fs.storedXattr(name)) })
}
