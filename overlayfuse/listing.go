package overlayfuse

import (
	"hash/maphash"
	"strings"
	"sync/atomic"
)

// listing is all names of one merged lower directory, read once: a name that is not there costs no system call, and one that is
// there costs those of its own layers, the first time. The layers never change.
//
// Locks: none. All is constant once it is built, but for what names mean, which is found when it is asked for, and kept.
type listing struct {
	dir   *entry
	names string              // all, one after the other
	slots []slot              // in the order of readdir
	table []uint32            // open addressing: place in slots and 1, or 0
	also  map[uint32][]uint16 // by slot: the other directories that hold the name
	devs  []uint64            // st_dev of each directory
	large bool                // too many names to keep: there are none here
	cacheSlot
}

// slot is one name.
type slot struct {
	off   uint32 // in listing.names
	size  uint8  // NAME_MAX is 255
	typ   uint8  // S_IFMT >> 12; 0: a whiteout
	first uint16 // the topmost directory that holds it
	ino   uint64 // of the object there
	means atomic.Pointer[entry]
}

// absent is what a whiteout means.
var absent = &entry{}

// The bytes of memory that a listing costs, and each name and entry with it. They are those of Go's allocator.
const (
	listingBytes = 384
	slotBytes    = 24 + 8 // with its share of the table
	alsoBytes    = 64
	entryBytes   = 128 + 16
	stackBytes   = 64
	refBytes     = 24
)

var nameSeed = maphash.MakeSeed()

// hashName is of this process alone, so that no layer can be made of names that collide.
func hashName(name string) uint64 { return maphash.String(nameSeed, name) }

// name is the name of slot i.
func (l *listing) name(i int) string {
	s := &l.slots[i]
	return l.names[s.off : s.off+uint32(s.size)]
}

// keptText is the length of names, in bytes, up to which an entry that outlives the listing may keep all of them.
const keptText = 4 << 10

// nameToKeep is name for an entry.
func (l *listing) nameToKeep(i int) string {
	if len(l.names) > keptText {
		return strings.Clone(l.name(i))
	}
	return l.name(i)
}

// find is the slot of a name, -1 if there is none.
func (l *listing) find(name string) int {
	if len(l.table) == 0 {
		return -1
	}
	mask := uint64(len(l.table) - 1)
	for h := hashName(name) & mask; l.table[h] != 0; h = (h + 1) & mask {
		if i := int(l.table[h] - 1); l.name(i) == name {
			return i
		}
	}
	return -1
}

// skip leaves out the directories at the front of dir that don't hold name.
//
// Preconditions: dir is the end of the listed directories.
func (l *listing) skip(dir []ref, name string) []ref {
	i := l.find(name)
	if i < 0 {
		return nil
	}
	all := l.dir.dirs()
	from := len(all) - len(dir)
	if first := int(l.slots[i].first); first >= from {
		return all[first:]
	}
	for _, at := range l.also[uint32(i)] {
		if int(at) >= from {
			return all[at:]
		}
	}
	return nil
}

// bytes is what the listing costs without entries.
func (l *listing) bytes() int64 {
	n := listingBytes + len(l.names) + len(l.slots)*slotBytes + len(l.devs)*8
	for _, a := range l.also {
		n += alsoBytes + 2*len(a)
	}
	return int64(n)
}

// bytes is what an entry costs.
func (e *entry) bytes() int64 {
	if e == absent {
		return 0
	}
	n := entryBytes
	if e.stack != nil {
		n += stackBytes
		for i, r := range e.stack.refs {
			n += refBytes
			if i == 0 || r.path != e.stack.refs[i-1].path {
				n += len(r.path)
			}
		}
	}
	return int64(n)
}

// list is the listing of a merged directory.
//
// Errors: those of reading one of its directories; the next call tries again.
// Locks: takes dir.stack.build.
func (c *chain) list(dir *entry) (*listing, error) {
	if l := dir.stack.listing.Load(); l != nil {
		l.touch()
		return l, nil
	}
	dir.stack.build.Lock()
	defer dir.stack.build.Unlock()
	if l := dir.stack.listing.Load(); l != nil {
		return l, nil
	}
	l, err := c.readListing(dir)
	if err != nil {
		return nil, err
	}
	dir.stack.listing.Store(l)
	c.share.cache.add(c, l)
	return l, nil
}

// child is what name in the merged directory dir means. Nil, nil: there is no such name.
//
// Errors: those of lookup.
// Locks: may take dir.stack.build.
func (c *chain) child(dir *entry, name string) (*entry, error) {
	if c.share == nil {
		return c.lookup(dir, name)
	}
	l, err := c.list(dir)
	if err != nil || l.large {
		return c.lookup(dir, name) // which may not need the directory that can't be read
	}
	i := l.find(name)
	if i < 0 {
		return nil, nil
	}
	e := l.slots[i].means.Load()
	if e == nil {
		if e, err = c.resolve(l, i, name); err != nil {
			return nil, err
		}
	}
	if e == absent {
		return nil, nil
	}
	return e, nil
}

// resolve finds what a listed name means, and keeps it.
func (c *chain) resolve(l *listing, i int, name string) (*entry, error) {
	e := absent
	if l.slots[i].typ != 0 {
		f, err := c.find(&search{dir: l.dir.dirs(), name: name, names: l})
		if err != nil {
			return nil, err
		}
		if f != nil {
			e = newEntry(l.dir, l.nameToKeep(i), f)
		}
	}
	if !l.slots[i].means.CompareAndSwap(nil, e) {
		return l.slots[i].means.Load(), nil // another mount was quicker
	}
	c.share.cache.grow(l, e.bytes())
	return e, nil
}
