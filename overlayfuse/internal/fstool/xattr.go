package fstool

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

var xattrOps = map[string]op{
	"setxattr":  {"PATH NAME VALUE [FLAGS]", setxattr},
	"getxattr":  {"PATH NAME", getxattr},
	"xattrsize": {"PATH NAME SIZE", xattrsize},
	"rmxattr":   {"PATH NAME", func(_ *process, a []string) (string, error) { return "", unix.Lremovexattr(a[0], a[1]) }},
	"lsxattr":   {"PATH", lsxattr},
	"fsetxattr": {"FD NAME VALUE", (*process).fsetxattr},
	"fgetxattr": {"FD NAME", (*process).fgetxattr},
	"setacl":    {"PATH KIND ACL", setacl},
	"getacl":    {"PATH KIND", getacl},
	"setcap":    {"PATH CAPABILITY", setcap},
}

// value reads an xattr's value: 0x... is hexadecimal, "size:N" is N bytes of x, the rest is text.
func value(s string) ([]byte, error) {
	if h, ok := strings.CutPrefix(s, "0x"); ok {
		b, err := hex.DecodeString(h)
		if err != nil {
			return nil, badRequest("bad value " + s)
		}
		return b, nil
	}
	if n, ok := strings.CutPrefix(s, "size:"); ok {
		size, err := number(n)
		return []byte(strings.Repeat("x", int(size))), err
	}
	return []byte(s), nil
}

func setxattr(_ *process, a []string) (string, error) {
	v, err := value(a[2])
	if err != nil {
		return "", err
	}
	how := 0
	if len(a) > 3 {
		if how, err = flags(a[3], map[string]int{"create": unix.XATTR_CREATE, "replace": unix.XATTR_REPLACE}); err != nil {
			return "", err
		}
	}
	return "", unix.Lsetxattr(a[0], a[1], v, how)
}

// getxattr answers text as it is, other values as 0x...
func getxattr(_ *process, a []string) (string, error) {
	v, err := lgetxattr(a[0], a[1])
	return show(v), err
}

func lgetxattr(path, name string) ([]byte, error) {
	buf := make([]byte, 65536)
	n, err := unix.Lgetxattr(path, name, buf)
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}

func show(v []byte) string {
	for _, c := range v {
		if c < ' ' || c > '~' {
			return "0x" + hex.EncodeToString(v)
		}
	}
	return string(v)
}

// xattrsize asks with a buffer of SIZE bytes and answers what the call returned.
func xattrsize(_ *process, a []string) (string, error) {
	size, err := number(a[2])
	if err != nil {
		return "", err
	}
	n, err := unix.Lgetxattr(a[0], a[1], make([]byte, size))
	return fmt.Sprint(n), err
}

// lsxattr answers the sorted names, without security.selinux and its like (the machine's policy may add them).
func lsxattr(_ *process, a []string) (string, error) {
	names, err := llistxattr(a[0])
	return strings.Join(names, " "), err
}

func llistxattr(path string) ([]string, error) {
	buf := make([]byte, 65536)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return nil, err
	}
	names := strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 })
	names = slices.DeleteFunc(names, func(s string) bool { return s == "security.selinux" || s == "security.SMACK64" })
	slices.Sort(names)
	return names, nil
}

func (p *process) fsetxattr(a []string) (string, error) {
	fd, err := p.fd(a[0])
	if err != nil {
		return "", err
	}
	v, err := value(a[2])
	if err != nil {
		return "", err
	}
	return "", unix.Fsetxattr(fd, a[1], v, 0)
}

func (p *process) fgetxattr(a []string) (string, error) {
	fd, err := p.fd(a[0])
	if err != nil {
		return "", err
	}
	buf := make([]byte, 65536)
	n, err := unix.Fgetxattr(fd, a[1], buf)
	if err != nil {
		return "", err
	}
	return show(buf[:n]), nil
}

// aclTags are the tags of include/uapi/linux/posix_acl.h by their short names, in the order that the kernel wants.
var aclTags = []struct {
	name string
	tag  uint16
}{{"u", 0x01}, {"u:", 0x02}, {"g", 0x04}, {"g:", 0x08}, {"m", 0x10}, {"o", 0x20}}

// aclXattr is the name of the xattr of a KIND: access or default.
func aclXattr(kind string) string { return "system.posix_acl_" + kind }

// setacl sets an ACL written as u=rwx,u:1000=rw-,g=r-x,g:5=r--,m=rwx,o=---. An empty ACL removes it.
func setacl(_ *process, a []string) (string, error) {
	if a[2] == "" {
		return "", unix.Removexattr(a[0], aclXattr(a[1]))
	}
	blob := binary.LittleEndian.AppendUint32(nil, 2) // POSIX_ACL_XATTR_VERSION
	for _, entry := range strings.Split(a[2], ",") {
		who, perm, ok := strings.Cut(entry, "=")
		if !ok || len(perm) != 3 {
			return "", badRequest("bad ACL entry " + entry)
		}
		tag, id, err := aclWho(who)
		if err != nil {
			return "", err
		}
		var bits uint16
		for i, c := range perm {
			if c != '-' {
				bits |= 4 >> i
			}
		}
		blob = binary.LittleEndian.AppendUint16(blob, tag)
		blob = binary.LittleEndian.AppendUint16(blob, bits)
		blob = binary.LittleEndian.AppendUint32(blob, id)
	}
	return "", unix.Setxattr(a[0], aclXattr(a[1]), blob, 0)
}

func aclWho(who string) (tag uint16, id uint32, err error) {
	id = 0xffffffff
	name, number, named := strings.Cut(who, ":")
	if named {
		n, err := strconv.ParseUint(number, 10, 32)
		if err != nil {
			return 0, 0, badRequest("bad ACL id " + number)
		}
		name, id = name+":", uint32(n)
	}
	for _, t := range aclTags {
		if t.name == name {
			return t.tag, id, nil
		}
	}
	return 0, 0, badRequest("bad ACL tag " + who)
}

func getacl(_ *process, a []string) (string, error) {
	blob, err := lgetxattr(a[0], aclXattr(a[1]))
	if err != nil {
		return "", err
	}
	if len(blob) < 4 || len(blob)%8 != 4 {
		return "", badRequest(fmt.Sprintf("an ACL of %d bytes", len(blob)))
	}
	var out []string
	for b := blob[4:]; len(b) > 0; b = b[8:] {
		tag, bits, id := binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:]), binary.LittleEndian.Uint32(b[4:])
		who := fmt.Sprintf("%#x", tag)
		for _, t := range aclTags {
			if t.tag == tag {
				who = t.name
			}
		}
		if strings.HasSuffix(who, ":") {
			who += fmt.Sprint(id)
		}
		perm := []byte("rwx")
		for i := range perm {
			if bits&(4>>i) == 0 {
				perm[i] = '-'
			}
		}
		out = append(out, who+"="+string(perm))
	}
	return strings.Join(out, ","), nil
}

// setcap gives a file one permitted and effective capability, by number (security.capability, revision 2).
func setcap(_ *process, a []string) (string, error) {
	n, err := number(a[1])
	if err != nil {
		return "", err
	}
	blob := binary.LittleEndian.AppendUint32(nil, 0x02000001) // VFS_CAP_REVISION_2 | VFS_CAP_FLAGS_EFFECTIVE
	for word := range int64(2) {
		var permitted uint32
		if n/32 == word {
			permitted = 1 << (n % 32)
		}
		blob = binary.LittleEndian.AppendUint32(blob, permitted)
		blob = binary.LittleEndian.AppendUint32(blob, 0) // inheritable
	}
	return "", unix.Setxattr(a[0], "security.capability", blob, 0)
}
