package overlayfuse

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A copied-up object remembers what it was copied from, so that its inode number and its hard links stay. The mark is the
// kernel's (overlay.origin), readable by it:
//
//	offset 0        1           2            3      4         5         21
//	       version=0 magic=0xfb length (all) flags  handle    uuid of   file handle
//	                                                type      the fs    (name_to_handle_at)
//
// Source: fs/overlayfs/overlayfs.h:struct ovl_fb (Linux 6.18).
const (
	originMagic  = 0xfb
	originHeader = 21
	originFlags  = 0 // little endian; the only byte order that we are built for
)

// fsGetUUID is FS_IOC_GETFSUUID, struct fsuuid2 (linux/fs.h, Linux 6.9).
const fsGetUUID = 0x80111500

// originFS is a file system that lower layers are on.
type originFS struct {
	dev  uint64
	uuid [16]byte
	fd   int // a directory of it, open for open_by_handle_at; -1 where that is not permitted
}

// origins knows the file systems of the lower layers.
type origins struct {
	fss []originFS
}

// openOrigins opens each distinct file system of the chain once.
func openOrigins(c *chain) (*origins, error) {
	o := &origins{}
	seen := map[uint64]bool{}
	for _, r := range c.roots {
		if seen[r.dev] {
			continue
		}
		seen[r.dev] = true
		fd, err := openIn(r.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			o.close()
			return nil, fmt.Errorf("open lower layer %s: %w", r.path, err)
		}
		o.fss = append(o.fss, originFS{dev: r.dev, uuid: uuidOf(fd), fd: fd})
	}
	return o, nil
}

func (o *origins) close() {
	for _, f := range o.fss {
		closeFD(f.fd)
	}
	o.fss = nil
}

// uuidOf is the file system's uuid, zero where it has none or the kernel does not tell.
func uuidOf(fd int) [16]byte {
	var u struct {
		length uint8
		uuid   [16]byte
	}
	if err := ioctl(fd, fsGetUUID, unsafe.Pointer(&u)); err != nil || u.length != 16 {
		return [16]byte{}
	}
	return u.uuid
}

// encode is the origin mark for name in dir (or dir itself with name ""), an object of a lower layer on device dev. Nil: the file
// system has no file handles, and inode numbers are then kept only while the mount lives.
func (o *origins) encode(dir int, name string, dev uint64) ([]byte, error) {
	flags := 0
	if name == "" {
		flags = unix.AT_EMPTY_PATH
	}
	h, _, err := unix.NameToHandleAt(dir, name, flags)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EOVERFLOW) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("file handle: %w", err)
	}
	n := originHeader + h.Size()
	if n > nameMax/2 || h.Type() < 0 || h.Type() > 254 {
		return nil, nil // does not fit the format, or in hexadecimal not a name of the index
	}
	b := make([]byte, originHeader, n)
	b[1], b[2], b[3], b[4] = originMagic, byte(n), originFlags, byte(h.Type())
	for _, f := range o.fss {
		if f.dev == dev {
			copy(b[5:], f.uuid[:])
		}
	}
	return append(b, h.Bytes()...), nil
}

// decode finds the lower object of an origin mark. False: the mark is of another format or file system, or the object is
// gone (layers that were copied elsewhere): the copied-up object then stands for itself.
func (o *origins) decode(mark []byte, typ uint32) (unix.Stat_t, bool) {
	if len(mark) <= originHeader || mark[0] != 0 || mark[1] != originMagic || int(mark[2]) != len(mark) || mark[3]&^2 != originFlags {
		return unix.Stat_t{}, false
	}
	h := unix.NewFileHandle(int32(mark[4]), mark[originHeader:])
	for _, f := range o.fss {
		if f.fd < 0 || !bytes.Equal(f.uuid[:], mark[5:originHeader]) {
			continue
		}
		fd, err := unix.OpenByHandleAt(f.fd, h, unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW)
		if err != nil {
			continue
		}
		st, err := statAt(fd, "")
		closeFD(fd)
		if err == nil && st.Mode&unix.S_IFMT == typ {
			return st, true
		}
	}
	return unix.Stat_t{}, false
}

// indexName is the name of an origin's entry in the index: its hexadecimal digits, as the kernel's index has it.
// Compare: fs/overlayfs/namei.c:ovl_get_index_name_fh().
func indexName(mark []byte) string {
	return hex.EncodeToString(mark)
}
