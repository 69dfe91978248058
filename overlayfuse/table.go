package overlayfuse

import "sync"

// table is the inodes of one mount.
//
// Locks: mu is held across no system call; inode.mu may be taken under it.
type table struct {
	mu    sync.Mutex
	byID  inodeMap[uint64] // by the first nodeid
	byKey inodeMap[objKey]
	// byUpper is the inodes of files by their upper object. Its marks may stop saying which object a file was (an origin that can't be
	// read or written): the live inode stays the one.
	byUpper map[objKey]*inode
	// later is the inodes by further nodeids, which few have, and laterIDs what these are.
	later    map[uint64]*inode
	laterIDs map[*inode][]uint64
	last     uint64
}

func newTable() *table {
	return &table{
		byID: inodeMap[uint64]{
			key:  func(in *inode) uint64 { return in.seq },
			next: func(in *inode) **inode { return &in.nextID },
		},
		byKey: inodeMap[objKey]{
			key:  func(in *inode) objKey { return in.key },
			next: func(in *inode) **inode { return &in.nextKey },
		},
		byUpper:  map[objKey]*inode{},
		later:    map[uint64]*inode{},
		laterIDs: map[*inode][]uint64{},
	}
}

// get is the inode of a nodeid that the kernel holds.
func (t *table) get(id uint64) *inode {
	t.mu.Lock()
	defer t.mu.Unlock()
	if in := t.byID.get(id); in != nil {
		return in
	}
	return t.later[id]
}

// intern is the live inode of the same object as n, or n itself, entered. It counts one lookup and adds the alias.
// Two objects with one identity (a copy of a copied-up file with its xattrs) are told apart by their upper: the second one
// gets the upper's own identity.
func (t *table) intern(n *inode, a alias) *inode {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.byKey.get(n.key)
	if n.up().exists && !n.isDir() {
		if live := t.byUpper[n.up().key]; live != nil && live.same(n, a.upper) {
			old = live
		}
	}
	if old != nil && !old.same(n, a.upper) {
		n.key = n.up().key
		n.ino = n.fs.inos.number(n.key)
		if old = t.byKey.get(n.key); old != nil && !old.same(n, a.upper) {
			t.byKey.remove(old)
			old.hashed = false
			old = nil
		}
	}
	in := old
	if in == nil {
		in = n
		t.last++
		in.seq = t.last
		in.id.Store(t.last)
		in.hashed = true
		t.byID.put(in)
		t.byKey.put(in)
		if in.up().exists && !in.isDir() {
			t.byUpper[in.up().key] = in
		}
	}
	in.nlookup++
	t.addAlias(in, a)
	return in
}

// same tells whether two inodes of one identity are one object: they are unless their uppers differ. named: the upper holds the
// name that n was found by.
//
// Locks: n is not shared yet.
func (in *inode) same(n *inode, named bool) bool {
	if in.typ != n.typ {
		return false
	}
	in.mu.RLock()
	defer in.mu.RUnlock()
	switch {
	case in.dead:
		return false
	case in.up().exists && n.up().exists:
		return in.up().key == n.up().key
	case in.isDir() && in.up().exists != n.up().exists:
		// A directory is found with its upper, or both without; a copy-up may just have happened.
		return in.lower != nil
	case named && n.up().exists && !in.isDir():
		// Nobody copies up while a name is looked up, but by another one, which the index knows: the name of in is one whose whiteout is
		// lost.
		return false
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
	if in.name(a) {
		in.dead = false
		a.parent.children++
	}
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
	if in.unname(parent, name) {
		parent.children--
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
	if in.hashed {
		t.byKey.remove(in)
	}
	in.hashed = false
	if u := in.upper(); t.byUpper[u.key] == in {
		delete(t.byUpper, u.key)
	}
}

// raised notes the upper that a file of the table has got.
func (t *table) raised(in *inode, k objKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byID.get(in.seq) == in && !in.isDir() {
		t.byUpper[k] = in
	}
}

// renumber gives an inode a new nodeid, which lookups answer from now on. Requests for the older ones find it still: their lookups are
// counted together.
func (t *table) renumber(in *inode) (id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last++
	t.laterIDs[in] = append(t.laterIDs[in], t.last)
	in.id.Store(t.last)
	t.later[t.last] = in
	return t.last
}

// ref counts one more lookup of an inode that the caller knows to live.
func (t *table) ref(in *inode) {
	t.mu.Lock()
	defer t.mu.Unlock()
	in.nlookup++
}

// refLive is ref for an inode that may have been dropped; false then.
func (t *table) refLive(in *inode) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byID.get(in.seq) != in {
		return false
	}
	in.nlookup++
	return true
}

// named is the live inode that is known to have this object of the upper, and this name of it there: the marks say nothing new. Nil if
// there is none.
func (t *table) named(k objKey, p *inode, name string) *inode {
	t.mu.Lock()
	defer t.mu.Unlock()
	in := t.byUpper[k]
	if in == nil { // a directory that merges with nothing
		in = t.byKey.get(k)
	}
	if in == nil {
		return nil
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if u := in.up(); in.dead || !u.exists || u.key != k {
		return nil
	}
	for a := range in.aliases {
		if a.upper && a.parent == p && a.name == name {
			return in
		}
	}
	return nil
}

// hasUpper tells whether a live inode has this file of the upper.
func (t *table) hasUpper(k objKey) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byUpper[k] != nil
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
		if t.byID.get(in.seq) != in {
			return
		}
		t.byID.remove(in)
		for _, id := range t.laterIDs[in] {
			delete(t.later, id)
		}
		delete(t.laterIDs, in)
		t.unhashLocked(in)
		in.mu.Lock()
		names, pin := in.names, in.unpin()
		in.names = aliasSet{}
		in.mu.Unlock()
		if pin != nil {
			pin.release()
		}
		if in.isDir() {
			in.fs.dirs.drop(dirKey{in: in})
			in.fs.orders.drop(in)
		}
		in.fs.dropFile(in)
		var up *inode
		for parent := range names.parents {
			parent.children--
			if up == nil {
				up = parent
				continue
			}
			t.reap(parent)
		}
		in = up
	}
}

// all are the live inodes.
func (t *table) all() []*inode {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID.all()
}
