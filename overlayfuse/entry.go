package overlayfuse

import (
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ref is one real object: a path in a lower layer.
type ref struct {
	layer int
	path  string
}

// entry is what a name means in the merged lower view. It never changes, belongs to no mount, and is the larger part of what
// a live inode costs: see lowerStat, and the names that it leaves out.
type entry struct {
	up    *entry // the merged directory that holds the name; nil for the root
	name  string
	stack *stack // nil: the object is one real one, name in the directory up.dirs()[at]
	st    lowerStat
	at    uint32
}

// stack is the real objects that an entry is made of.
//
//	directory: those that merge, topmost first
//	other:     the first is the object, whose attributes count; the last one holds the data (another one only where
//	           metacopy files stand above it)
type stack struct {
	refs []ref

	build   sync.Mutex              // reserves the making of listing; held across I/O
	listing atomic.Pointer[listing] // of a directory: nil until it is wanted, and after it was evicted
}

func (e *entry) isDir() bool { return isDir(e.st.Mode) }

// top is the real object whose attributes count.
func (e *entry) top() ref {
	if e.stack != nil {
		return e.stack.refs[0]
	}
	d := e.up.stack.refs[e.at]
	return ref{d.layer, joinPath(d.path, e.name)}
}

// bottom is the real object that holds the data of a file.
func (e *entry) bottom() ref {
	if e.stack != nil {
		return e.stack.refs[len(e.stack.refs)-1]
	}
	return e.top()
}

// depth is the number of real objects.
func (e *entry) depth() int {
	if e.stack == nil {
		return 1
	}
	return len(e.stack.refs)
}

// dirs are the real directories that merge in a directory, topmost first.
func (e *entry) dirs() []ref { return e.stack.refs }

// path is the path in the merged lower view: what a redirect to the entry says, without the leading slash.
func (e *entry) path() string {
	n := 0
	for d := e; d.up != nil; d = d.up {
		n += len(d.name) + 1
	}
	if n == 0 {
		return ""
	}
	b := make([]byte, n-1)
	for d := e; d.up != nil; d = d.up {
		n -= len(d.name) + 1
		copy(b[n:], d.name)
		if n > 0 {
			b[n-1] = '/'
		}
	}
	return string(b)
}

// newEntry is what name in dir was found to mean. It keeps the name.
func newEntry(dir *entry, name string, f *found) *entry {
	e := &entry{up: dir, name: name, st: newLowerStat(&f.st)}
	if len(f.refs) == 1 && !isDir(f.st.Mode) {
		for i, d := range dir.dirs() {
			if d.layer == f.refs[0].layer {
				e.at = uint32(i)
				return e
			}
		}
	}
	e.stack = &stack{refs: f.refs}
	return e
}

// check refuses what is not the entry's top object.
//
// Errors: ESTALE.
func (e *entry) check(fd int) error {
	st, err := statAt(fd, "")
	if err == nil && keyOf(&st) != e.st.key() {
		err = errChanged
	}
	return err
}

var errChanged = fmt.Errorf("another object since: the layer was changed: %w", unix.ESTALE)

// lowerStat is the status of a lower object in less memory than struct stat. Fields are those of unix.Stat_t but for:
//
//	Size    of a device: its number
//	Blocks  of a metacopy file: at least those of the object with the data
type lowerStat struct {
	Dev, Ino                        uint64
	Size, Blocks                    int64
	atime, mtime, ctime             int64 // seconds
	atimeNsec, mtimeNsec, ctimeNsec uint32
	Mode, Uid, Gid, Nlink, Blksize  uint32
}

func newLowerStat(st *unix.Stat_t) lowerStat {
	s := lowerStat{Dev: st.Dev, Ino: st.Ino, Size: st.Size, Blocks: st.Blocks,
		atime: st.Atim.Sec, mtime: st.Mtim.Sec, ctime: st.Ctim.Sec,
		atimeNsec: uint32(st.Atim.Nsec), mtimeNsec: uint32(st.Mtim.Nsec), ctimeNsec: uint32(st.Ctim.Nsec),
		Mode: st.Mode, Uid: st.Uid, Gid: st.Gid, Nlink: uint32(st.Nlink), Blksize: uint32(st.Blksize)}
	if isDevice(st.Mode) {
		s.Size = int64(st.Rdev)
	}
	return s
}

func isDevice(mode uint32) bool {
	return mode&unix.S_IFMT == unix.S_IFCHR || mode&unix.S_IFMT == unix.S_IFBLK
}

func (s *lowerStat) key() objKey { return objKey{s.Dev, s.Ino} }

// stat is the status as the system has it.
func (s *lowerStat) stat() unix.Stat_t {
	st := unix.Stat_t{Dev: s.Dev, Ino: s.Ino, Size: s.Size, Blocks: s.Blocks,
		Atim: unix.Timespec{Sec: s.atime, Nsec: int64(s.atimeNsec)},
		Mtim: unix.Timespec{Sec: s.mtime, Nsec: int64(s.mtimeNsec)},
		Ctim: unix.Timespec{Sec: s.ctime, Nsec: int64(s.ctimeNsec)},
		Mode: s.Mode, Uid: s.Uid, Gid: s.Gid, Nlink: uint64(s.Nlink), Blksize: int64(s.Blksize)}
	if isDevice(s.Mode) {
		st.Rdev, st.Size = uint64(s.Size), 0
	}
	return st
}

// rdev is the number of a device, 0 for what is none.
func (s *lowerStat) rdev() uint64 {
	if isDevice(s.Mode) {
		return uint64(s.Size)
	}
	return 0
}
