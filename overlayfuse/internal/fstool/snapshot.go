package fstool

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

func init() {
	maps.Copy(operations, map[string]op{
		"snapshot":    {"PATH [handles]", snapshot},
		"scribble":    {"FD OFFSET COUNT SEED", (*process).scribble},
		"mapscribble": {"FD OFFSET COUNT SEED", (*process).mapScribble},
		"digest":      {"FD OFFSET COUNT", (*process).digest},
	})
}

// Object is one name of a tree, and what it names.
type Object struct {
	Path    string // relative to the tree; "." is its root
	Err     string // why the rest is missing
	Type    string
	Mode    uint32
	UID     uint32
	GID     uint32
	Size    uint64 // of a directory: 0
	Nlink   uint32 // of a directory: 0
	Ino     uint64
	Dev     string
	Rdev    string
	Mtime   int64             // seconds
	Xattrs  map[string]string // hexadecimal
	Content string            // a file's hash, a symlink's target
	Listed  string            // what the directory's listing says: d_ino and d_type
	Handle  string            // name_to_handle_at(2), if asked for: another object with the same number has another
}

// snapshot answers every object of the tree as a JSON array of Object, sorted by path.
func snapshot(_ *process, a []string) (string, error) {
	s := &snapshooter{root: a[0], handles: len(a) > 1}
	s.visit(".", "")
	out, err := json.Marshal(s.all)
	return string(out), err
}

type snapshooter struct {
	root    string
	handles bool
	all     []Object
}

// visit adds rel and what is below it. What can't be read is told in Err; the walk goes on.
func (s *snapshooter) visit(rel, listed string) {
	o := Object{Path: rel, Listed: listed}
	full := path.Join(s.root, rel)
	if err := s.fill(&o, full); err != nil {
		o.Err = err.Error()
	}
	i := len(s.all)
	s.all = append(s.all, o)
	if o.Type != "dir" {
		return
	}
	below, err := readPath(full)
	if err != nil {
		s.all[i].Err = "list: " + err.Error()
		return
	}
	slices.SortFunc(below, func(x, y entry) int { return strings.Compare(x.name, y.name) })
	for _, e := range below {
		listed := fmt.Sprint(e.ino, " ", typeName(uint32(e.kind)<<12))
		switch e.name {
		case ".":
			s.all[i].Listed = listed
		case "..":
		default:
			s.visit(path.Join(rel, e.name), listed)
		}
	}
}

func (s *snapshooter) fill(o *Object, full string) error {
	var st unix.Stat_t
	if err := unix.Lstat(full, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	o.Type, o.Mode, o.UID, o.GID = typeName(st.Mode), st.Mode&0o7777, st.Uid, st.Gid
	o.Ino, o.Dev, o.Mtime = st.Ino, fmt.Sprint(st.Dev), st.Mtim.Sec
	o.Rdev = fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	if o.Type != "dir" {
		o.Size, o.Nlink = uint64(st.Size), uint32(st.Nlink)
	}
	names, err := llistxattr(full)
	if err != nil {
		return fmt.Errorf("list xattrs: %w", err)
	}
	o.Xattrs = map[string]string{}
	for _, name := range names {
		v, err := lgetxattr(full, name)
		if err != nil {
			return fmt.Errorf("xattr %s: %w", name, err)
		}
		o.Xattrs[name] = hex.EncodeToString(v)
	}
	if s.handles {
		h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, full, 0)
		if err != nil {
			return fmt.Errorf("handle: %w", err)
		}
		o.Handle = hex.EncodeToString(h.Bytes())
	}
	switch o.Type {
	case "file":
		o.Content, err = hashFile(full)
	case "symlink":
		o.Content, err = os.Readlink(full)
	}
	return err
}

func hashFile(full string) (string, error) {
	f, err := os.OpenFile(full, os.O_RDONLY|unix.O_NOATIME, 0)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	n, err := io.Copy(h, f)
	return fmt.Sprintf("%d bytes %x", n, h.Sum(nil)[:8]), errors.Join(err, f.Close())
}

// Noise is n bytes, none of them 0, that only the seed determines.
func Noise(n int, seed uint64) []byte {
	g := rand.New(rand.NewPCG(seed, 1))
	out := make([]byte, n)
	for i := range out {
		out[i] = byte(1 + g.IntN(255))
	}
	return out
}

// scribble writes COUNT bytes of Noise at OFFSET, or at the descriptor's position if that is -1, and answers how many.
func (p *process) scribble(a []string) (string, error) {
	fd, err := p.fd(a[0])
	if err != nil {
		return "", err
	}
	n, err := numbers(a[1:4]...)
	if err != nil {
		return "", err
	}
	content, done := Noise(int(n[1]), uint64(n[2])), 0
	if n[0] < 0 {
		done, err = unix.Write(fd, content)
	} else {
		done, err = unix.Pwrite(fd, content, n[0])
	}
	return fmt.Sprint(done), err
}

// mapScribble stores COUNT bytes of Noise at OFFSET through a shared mapping, as far as the file reaches, and answers how many.
func (p *process) mapScribble(a []string) (string, error) {
	fd, err := p.fd(a[0])
	if err != nil {
		return "", err
	}
	n, err := numbers(a[1:4]...)
	if err != nil {
		return "", err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	end := min(n[0]+n[1], st.Size)
	if end <= n[0] {
		return "0", nil
	}
	m, err := unix.Mmap(fd, 0, int(end), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return "", err
	}
	copy(m[n[0]:], Noise(int(end-n[0]), uint64(n[2])))
	return fmt.Sprint(end - n[0]), errors.Join(unix.Msync(m, unix.MS_SYNC), unix.Munmap(m))
}

// digest answers how many of COUNT bytes there are at OFFSET, and their hash.
func (p *process) digest(a []string) (string, error) {
	fd, err := p.fd(a[0])
	if err != nil {
		return "", err
	}
	n, err := numbers(a[1:3]...)
	if err != nil {
		return "", err
	}
	buf := make([]byte, n[1])
	got, err := unix.Pread(fd, buf, n[0])
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d bytes %x", got, sha256.Sum256(buf[:got])), nil
}
