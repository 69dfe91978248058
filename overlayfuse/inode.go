package overlayfuse

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/copyup"
)

// objKey is the identity of an overlay object: the real object that it was when it was first seen. A copy-up does not
// change it, the name by which it is reached does not matter.
type objKey struct{ dev, ino uint64 }

func keyOf(st *unix.Stat_t) objKey { return objKey{st.Dev, st.Ino} }

// inode is one object of the mount. It lives while the kernel knows it (nlookup) or an inode below it lives.
//
// A mount has as many as the kernel caches, so that each byte counts (inode_size_test.go): small fields stand together.
type inode struct {
	fs  *FS
	id  atomic.Uint64 // nodeid that lookups give; older ones lead here as well (see split)
	seq uint64        // order of reservations: the first nodeid
	ino uint64        // st_ino: constant while the inode lives, and across copy-up and remount
	key objKey

	// lower is what the name means in the lower layers; nil for an object of the upper alone. Constant.
	// For a directory of the upper it is what merges with it.
	lower *entry

	// Protected by table.mu, with hashed and children.
	nlookup         uint64 // of all nodeids
	nextID, nextKey *inode // of table.byID and byKey

	// copy is the reservation of everything that moves the inode or its data between layers or names: copy-up, link,
	// unlink, rename. It is held across I/O. See doc.go for its order.
	copy sync.Mutex

	// mu is a leaf, held across no system call. It protects what follows, and dead.
	mu    leafLock
	names aliasSet
	above *above // nil: nothing of it

	file atomic.Pointer[copyup.File] // regular files: made by the first open
	io   atomic.Pointer[inodeIO]     // regular files: made by the first open, and by a split

	// absent says which attributes neither the upper object has nor, before there is one, the lower.
	absent   absentXattrs
	elf      atomic.Uint32 // regular files: see isELF
	typ      uint32        // S_IFMT
	children int32         // aliases whose parent this is
	impure   atomic.Bool   // directories: the upper is known to be marked so
	root     bool
	hashed   bool // found by key
	dead     bool // no name is left
}

// leafLock is a sync.RWMutex in a third of the memory: what it protects is read in a few nanoseconds.
type leafLock struct{ sync.Mutex }

// RLock is Lock.
func (l *leafLock) RLock() { l.Lock() }

// RUnlock is Unlock.
func (l *leafLock) RUnlock() { l.Unlock() }

// above is what few of the inodes that a mount has need, those of its upper apart.
type above struct {
	upperObj
	counted *linkCount // see links
	pin     *dirFD     // an O_PATH descriptor that reaches the upper object whatever happens to its names
}

// upperObj is the object of the upper, if there is one.
type upperObj struct {
	key    objKey // which object it must be when it is opened by name
	limit  int64  // metacopy or partial: bytes of the lower data that still show
	exists bool
	data   upperData // regular files
	opaque bool      // directories: what is below does not merge
}

// upperData says how much of a regular file's data its upper has, as its marks say it. Where each block is, copyup.File knows.
type upperData uint8

const (
	dataHere    upperData = iota // all
	dataBelow                    // none: a metacopy file
	dataPartial                  // what is no hole below the lower limit
)

// links are the hard links that the lower layers know of; few inodes have any.
//
// Locks: mu is held, or in is not shared yet.
func (in *inode) links() linkCount {
	if in.above == nil || in.above.counted == nil {
		return linkCount{}
	}
	return *in.above.counted
}

// Locks: mu is held, or in is not shared yet.
func (in *inode) setLinks(l linkCount) {
	if l == (linkCount{}) {
		if in.above != nil {
			in.above.counted = nil
		}
		return
	}
	in.raise().counted = &l
}

// raise is what can be changed of the inode's upper.
//
// Locks: mu is held, or in is not shared yet.
func (in *inode) raise() *above {
	if in.above == nil {
		in.above = &above{}
	}
	return in.above
}

// up is the inode's upper.
//
// Locks: mu is held, or in is not shared yet.
func (in *inode) up() upperObj {
	if in.above == nil {
		return upperObj{}
	}
	return in.above.upperObj
}

// pin is the descriptor that reaches the upper, or nil.
//
// Locks: mu is held.
func (in *inode) pin() *dirFD {
	if in.above == nil {
		return nil
	}
	return in.above.pin
}

// unpin is pin, which the caller gets: the inode has none from then on.
//
// Locks: mu is held.
func (in *inode) unpin() *dirFD {
	pin := in.pin()
	if pin != nil {
		in.above.pin = nil
	}
	return pin
}

func (in *inode) isDir() bool { return isDir(in.typ) }

// mergedDir tells a directory that is not of one layer alone: its link count says nothing.
// Compare: fs/overlayfs/inode.c:ovl_getattr(), OVL_TYPE_MERGE.
func (in *inode) mergedDir() bool {
	return in.isDir() && in.lower != nil && (in.upper().exists || in.lower.depth() > 1)
}

func (in *inode) upper() upperObj {
	in.mu.RLock()
	defer in.mu.RUnlock()
	return in.up()
}

func (in *inode) setUpper(u upperObj) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.raise().upperObj = u
}

func (in *inode) isDead() bool {
	in.mu.RLock()
	defer in.mu.RUnlock()
	return in.dead
}

// firstAlias is a name of the inode, one in the upper if there is any.
func (in *inode) firstAlias() (alias, bool) {
	in.mu.RLock()
	defer in.mu.RUnlock()
	for a := range in.aliases {
		if a.upper {
			return a, true
		}
	}
	a := in.oldest()
	return a, a.parent != nil
}

// path is a path of the inode below the mount, for messages; of one without names, "" at the front.
func (in *inode) path() string {
	if in.root {
		return "/"
	}
	a, ok := in.firstAlias()
	if !ok {
		return "(unlinked)"
	}
	if a.parent.root {
		return "/" + a.name
	}
	return a.parent.path() + "/" + a.name
}

// findAlias is the alias of this name.
func (in *inode) findAlias(parent *inode, name string) (alias, bool) {
	in.mu.RLock()
	defer in.mu.RUnlock()
	for a := range in.aliases {
		if a.parent == parent && a.name == name {
			return a, true
		}
	}
	return alias{}, false
}
