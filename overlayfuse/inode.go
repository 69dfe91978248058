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

// alias is one name of an inode.
type alias struct {
	parent *inode
	name   string
	upper  bool // the upper holds this name; else a lower layer does
}

// inode is one object of the mount. It lives while the kernel knows it (nlookup) or an inode below it lives.
type inode struct {
	fs   *FS
	id   uint64 // nodeid
	ino  uint64 // st_ino: constant while the inode lives, and across copy-up and remount
	typ  uint32 // S_IFMT
	key  objKey
	root bool

	// lower is what the name means in the lower layers; nil for an object of the upper alone. Constant.
	// For a directory of the upper it is what merges with it.
	lower *entry

	// Protected by table.mu.
	nlookup  uint64
	children int  // aliases whose parent this is
	hashed   bool // found by key

	// copy is the reservation of everything that moves the inode or its data between layers or names: copy-up, link,
	// unlink, rename. It is held across I/O. See doc.go for its order.
	copy sync.Mutex

	// mu is a leaf, held across no system call.
	mu      sync.RWMutex
	aliases []alias
	up      upperObj
	link    linkCount // hard links that the lower layers know of
	dead    bool      // no name is left
	pin     *dirFD    // an O_PATH descriptor that reaches the upper object whatever happens to its names

	impure atomic.Bool // directories: the upper is known to be marked so

	file atomic.Pointer[copyup.File] // regular files: made by the first open
}

// upperObj is the object of the upper, if there is one.
type upperObj struct {
	exists   bool
	key      objKey // which object it must be when it is opened by name
	metacopy bool   // it holds no data: that is in the lower
	opaque   bool   // directories: what is below does not merge
	limit    int64  // metacopy: bytes of the lower data that still show
}

func (in *inode) isDir() bool { return isDir(in.typ) }

// mergedDir tells a directory that is not of one layer alone: its link count says nothing.
// Compare: fs/overlayfs/inode.c:ovl_getattr(), OVL_TYPE_MERGE.
func (in *inode) mergedDir() bool {
	return in.isDir() && in.lower != nil && (in.upper().exists || len(in.lower.refs) > 1)
}

// lowerDirs are the real directories of the lower layers that merge here.
func (in *inode) lowerDirs() []ref {
	if in.lower == nil {
		return nil
	}
	return in.lower.refs
}

func (in *inode) upper() upperObj {
	in.mu.RLock()
	defer in.mu.RUnlock()
	return in.up
}

func (in *inode) setUpper(u upperObj) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.up = u
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
	for _, a := range in.aliases {
		if a.upper {
			return a, true
		}
	}
	if len(in.aliases) > 0 {
		return in.aliases[0], true
	}
	return alias{}, false
}

// findAlias is the alias of this name.
func (in *inode) findAlias(parent *inode, name string) (alias, bool) {
	in.mu.RLock()
	defer in.mu.RUnlock()
	for _, a := range in.aliases {
		if a.parent == parent && a.name == name {
			return a, true
		}
	}
	return alias{}, false
}

// table is the inodes of one mount.
//
// Locks: mu is held across no system call; inode.mu may be taken under it.
type table struct {
	mu    sync.Mutex
	byID  map[uint64]*inode
	byKey map[objKey]*inode
	last  uint64
}

func newTable() *table {
	return &table{byID: map[uint64]*inode{}, byKey: map[objKey]*inode{}}
}

// get is the inode of a nodeid that the kernel holds.
func (t *table) get(id uint64) *inode {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id]
}

// intern is the live inode of the same object as n, or n itself, entered. It counts one lookup and adds the alias.
// Two objects with one identity (a copy of a copied-up file with its xattrs) are told apart by their upper: the second one
// gets the upper's own identity.
func (t *table) intern(n *inode, a alias) *inode {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.byKey[n.key]
	if old != nil && !old.same(n) {
		n.key = n.up.key
		n.ino = n.fs.inos.number(n.key)
		if old = t.byKey[n.key]; old != nil && !old.same(n) {
			delete(t.byKey, n.key)
			old.hashed = false
			old = nil
		}
	}
	in := old
	if in == nil {
		in = n
		t.last++
		in.id = t.last
		in.hashed = true
		t.byID[in.id] = in
		t.byKey[in.key] = in
	}
	in.nlookup++
	t.addAlias(in, a)
	return in
}

// same tells whether two inodes of one identity are one object: they are unless their uppers differ.
//
// Locks: n is not shared yet.
func (in *inode) same(n *inode) bool {
	if in.typ != n.typ {
		return false
	}
	in.mu.RLock()
	defer in.mu.RUnlock()
	switch {
	case in.dead:
		return false
	case in.up.exists && n.up.exists:
		return in.up.key == n.up.key
	case in.isDir() && in.up.exists != n.up.exists:
		// A directory is found with its upper, or both without; a copy-up may just have happened.
		return in.lower != nil
	}
	return true
}

// addAlias enters a name, once.
//
// Locks: mu is held.
func (t *table) addAlias(in *inode, a alias) {
	if a.parent == nil {
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	for i := range in.aliases {
		if in.aliases[i].parent == a.parent && in.aliases[i].name == a.name {
			in.aliases[i].upper = in.aliases[i].upper || a.upper
			return
		}
	}
	in.aliases = append(in.aliases, a)
	in.dead = false
	a.parent.children++
}

// link adds a name to a live inode.
func (t *table) link(in *inode, a alias) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.addAlias(in, a)
}

// unlink takes a name away.
func (t *table) unlink(in *inode, parent *inode, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	in.mu.Lock()
	for i, a := range in.aliases {
		if a.parent == parent && a.name == name {
			in.aliases = append(in.aliases[:i:i], in.aliases[i+1:]...)
			parent.children--
			break
		}
	}
	in.mu.Unlock()
	t.reap(parent)
}

// unhash makes a dead object's identity free for another one.
func (t *table) unhash(in *inode) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unhashLocked(in)
}

func (t *table) unhashLocked(in *inode) {
	if in.hashed && t.byKey[in.key] == in {
		delete(t.byKey, in.key)
	}
	in.hashed = false
}

// ref counts one more lookup of an inode that the caller knows to live.
func (t *table) ref(in *inode) {
	t.mu.Lock()
	defer t.mu.Unlock()
	in.nlookup++
}

// forget takes n lookups back.
func (t *table) forget(in *inode, n uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	in.nlookup -= min(n, in.nlookup)
	t.reap(in)
}

// reap drops an inode that nobody holds, and those above it that only it held.
//
// Locks: mu is held.
func (t *table) reap(in *inode) {
	for in != nil && in.nlookup == 0 && in.children == 0 && !in.root {
		if t.byID[in.id] != in {
			return
		}
		delete(t.byID, in.id)
		t.unhashLocked(in)
		in.mu.Lock()
		aliases, pin := in.aliases, in.pin
		in.aliases, in.pin = nil, nil
		in.mu.Unlock()
		if pin != nil {
			pin.release()
		}
		if in.isDir() {
			in.fs.dirs.drop(dirKey{in: in})
		}
		in.fs.dropFile(in)
		var up *inode
		for _, a := range aliases {
			a.parent.children--
			if up == nil {
				up = a.parent
				continue
			}
			t.reap(a.parent)
		}
		in = up
	}
}

// all are the live inodes.
func (t *table) all() []*inode {
	t.mu.Lock()
	defer t.mu.Unlock()
	ins := make([]*inode, 0, len(t.byID))
	for _, in := range t.byID {
		ins = append(ins, in)
	}
	return ins
}

// inoMap makes inode numbers of real ones. Those of the first file system (the upper's) stay as they are; others get the
// file system's place in the upper bits. Compare: fs/overlayfs/inode.c:ovl_map_dev_ino(), xino.
//
// Locks: mu is a leaf.
type inoMap struct {
	mu    sync.Mutex
	devs  map[uint64]uint64
	extra map[objKey]uint64 // real numbers too long for that
}

const (
	inoBits  = 48
	inoExtra = uint64(1) << 63
)

func newInoMap() *inoMap {
	return &inoMap{devs: map[uint64]uint64{}, extra: map[objKey]uint64{}}
}

// number is the st_ino for a real object.
func (m *inoMap) number(k objKey) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	d, ok := m.devs[k.dev]
	if !ok {
		d = uint64(len(m.devs))
		m.devs[k.dev] = d
	}
	if d == 0 && k.ino < inoExtra>>1 || k.ino>>inoBits == 0 && d < 1<<14 {
		return d<<inoBits | k.ino
	}
	n, ok := m.extra[k]
	if !ok {
		n = inoExtra | uint64(len(m.extra)+1)
		m.extra[k] = n
	}
	return n
}
