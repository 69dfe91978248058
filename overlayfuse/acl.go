package overlayfuse

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// POSIX ACLs as xattrs hold them: a version word, then entries of 8 bytes (little endian).
//
//	0         4    6     8        12
//	version=2 tag  perm  id       next entry
//
// Source: include/uapi/linux/posix_acl_xattr.h, posix_acl.h.
const (
	aclPrefix  = "system.posix_acl_"
	aclAccess  = aclPrefix + "access"
	aclDefault = aclPrefix + "default"
	aclVersion = 2
	aclHeader  = 4
	aclEntry   = 8

	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

// newACLs are the ACLs that a new object inherits; nil for none.
type newACLs struct{ access, def []byte }

func (a newACLs) set(fd int) error {
	for name, v := range map[string][]byte{aclAccess: a.access, aclDefault: a.def} {
		if v == nil {
			continue
		}
		if err := setXattrFD(fd, name, v, 0); err != nil {
			return fmt.Errorf("inherit %s: %w", name, err)
		}
	}
	return nil
}

// defaultACL is what objects made in the directory p, whose upper is d, inherit; nil for none.
func (fs *FS) defaultACL(p *inode, d *dirFD) ([]byte, error) {
	if fs.cfg.NoACL || p.absent.known(absentDefaultACL) {
		return nil, nil
	}
	def, err := getXattrFD(d.fd, aclDefault)
	switch {
	case noXattr(err):
		p.absent.note(absentDefaultACL)
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read default ACL: %w", err)
	}
	return def, nil
}

// inheritACL applies a directory's default ACL, or else the umask, to the mode of a new object.
// Compare: fs/posix_acl.c:posix_acl_create(), posix_acl_create_masq().
func inheritACL(def []byte, o *newObject) (newACLs, error) {
	var none newACLs
	if def == nil {
		o.mode &^= o.umask & 0o777
		return none, nil
	}
	access, extended, err := maskACL(def, &o.mode)
	if err != nil {
		return none, fmt.Errorf("default ACL: %w", err)
	}
	a := none
	if extended {
		a.access = access
	}
	if isDir(o.mode) {
		a.def = def
	}
	return a, nil
}

var errACL = errors.New("malformed POSIX ACL")

// maskACL is the access ACL that follows from a default ACL and the mode asked for; mode becomes what is granted.
// extended: it says more than the mode.
func maskACL(def []byte, mode *uint32) (access []byte, extended bool, err error) {
	if err := checkACL(def); err != nil {
		return nil, false, err
	}
	access = append([]byte(nil), def...)
	group, mask := -1, -1
	m := *mode
	for i := aclHeader; i < len(access); i += aclEntry {
		switch binary.LittleEndian.Uint16(access[i:]) {
		case aclUserObj:
			m = m&^0o700 | cutACL(access[i+2:], m>>6)<<6
		case aclOther:
			m = m&^0o007 | cutACL(access[i+2:], m)
		case aclGroupObj:
			group = i
		case aclMask:
			mask, extended = i, true
		default:
			extended = true
		}
	}
	if mask < 0 {
		mask = group
	}
	if mask < 0 {
		return nil, false, fmt.Errorf("%w: no group entry: %w", errACL, unix.EINVAL)
	}
	*mode = m&^0o070 | cutACL(access[mask+2:], m>>3)<<3
	return access, extended, nil
}

// cutACL takes from an entry's permissions what bits don't have, and gives what stays.
func cutACL(perm []byte, bits uint32) uint32 {
	p := binary.LittleEndian.Uint16(perm) & uint16(bits&7)
	binary.LittleEndian.PutUint16(perm, p)
	return uint32(p)
}

func checkACL(b []byte) error {
	if len(b) < aclHeader || (len(b)-aclHeader)%aclEntry != 0 || binary.LittleEndian.Uint32(b) != aclVersion {
		return fmt.Errorf("%w: %d bytes: %w", errACL, len(b), unix.EINVAL)
	}
	return nil
}

// mapACL translates the ids in an ACL.
func mapACL(b []byte, id func(tag uint16, id uint32) (uint32, error)) ([]byte, error) {
	if len(b) == 0 {
		return b, nil
	}
	if err := checkACL(b); err != nil {
		return nil, err
	}
	out := append([]byte(nil), b...)
	for i := aclHeader; i < len(out); i += aclEntry {
		tag := binary.LittleEndian.Uint16(out[i:])
		if tag != aclUser && tag != aclGroup {
			continue
		}
		n, err := id(tag, binary.LittleEndian.Uint32(out[i+4:]))
		if err != nil {
			return nil, err
		}
		binary.LittleEndian.PutUint32(out[i+4:], n)
	}
	return out, nil
}

func (fs *FS) shownACLID(tag uint16, id uint32) (uint32, error) {
	if tag == aclUser {
		return shownID(fs.cfg.UIDMap, id), nil
	}
	return shownID(fs.cfg.GIDMap, id), nil
}

func (fs *FS) storedACLID(tag uint16, id uint32) (uint32, error) {
	maps := fs.cfg.GIDMap
	if tag == aclUser {
		maps = fs.cfg.UIDMap
	}
	n, ok := storedID(maps, id)
	if !ok {
		return 0, fmt.Errorf("id %d of an ACL is not mapped: %w", id, unix.EOVERFLOW)
	}
	return n, nil
}
