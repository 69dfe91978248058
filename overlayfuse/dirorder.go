package overlayfuse

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// Positions in a directory (d_off of getdents(2)). They belong to the directory and not to an open descriptor, of which the server does
// not hear (FUSE_NO_OPENDIR_SUPPORT): whoever goes on from one, however late, gets every name once that was there all the time.
//
//	1, 2         "." and ".."
//	3 + i        the i-th name of the merged lower directory, hidden or not: it never changes
//	3 + n + k    the k-th name that the upper alone has had, of n in the lower
const (
	dotEntries = 2
	firstName  = dotEntries + 1
)

// upperOrder is the names that the upper alone has had in one directory, by the order in which they were first listed, as hashes: a name
// that is gone keeps its place, and gets it again if it comes back.
//
// Locks: mu is a leaf.
type upperOrder struct {
	mu     sync.Mutex
	hashes []uint64
	behind time.Duration // when somebody last read on from a position, since the mount was made
}

// An order is made anew when it has many more places than names, and nobody has been in the middle of it for long.
const (
	orderSlack  = 4
	orderLeast  = 256
	orderUnread = 10 * time.Minute
)

// sort gives names of the upper alone their positions, which begin with base, and sorts them.
func (o *upperOrder) sort(names []dirent, base uint64, now time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.hashes) > max(orderSlack*len(names), orderLeast) && now-o.behind > orderUnread {
		o.hashes = nil
	}
	place := make(map[uint64]int, len(names))
	for k, h := range o.hashes {
		place[h] = k
	}
	for i := range names {
		h := hashName(names[i].name)
		k, ok := place[h]
		if ok {
			delete(place, h) // of two names with one hash, the other is as one that has just come
		} else {
			k = len(o.hashes)
			o.hashes = append(o.hashes, h)
		}
		names[i].pos = base + uint64(k)
	}
	slices.SortFunc(names, func(a, b dirent) int { return cmp.Compare(a.pos, b.pos) })
}

// read notes that somebody reads on.
func (o *upperOrder) read(now time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.behind = now
}

// dirOrders is the orders of a mount's directories, which live as long as their inodes, and pictures of directories that are being read.
//
// Locks: mu is a leaf, but for upperOrder.mu.
type dirOrders struct {
	began    time.Time
	mu       sync.Mutex
	byDir    map[*inode]*upperOrder
	pictures []picture // the one that was used last is at the end
}

// picture is the entries of a directory as they were at its first read, for those that follow.
type picture struct {
	in      *inode
	entries []dirent
	ahead   bool // lookups come with them; see lookAhead
}

// picturesKept bounds them. Without one, the directory is listed anew for each 128 KiB of names.
const picturesKept = 16

func newDirOrders() *dirOrders {
	return &dirOrders{began: time.Now(), byDir: map[*inode]*upperOrder{}}
}

func (d *dirOrders) now() time.Duration { return time.Since(d.began) }

// of is the order of a directory.
func (d *dirOrders) of(in *inode) *upperOrder {
	d.mu.Lock()
	defer d.mu.Unlock()
	o := d.byDir[in]
	if o == nil {
		o = &upperOrder{}
		d.byDir[in] = o
	}
	return o
}

// drop forgets a directory that nobody holds.
func (d *dirOrders) drop(in *inode) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.byDir, in)
	d.removeLocked(in)
}

// removeLocked takes the picture of a directory out; an empty one if there is none.
//
// Locks: mu is held.
func (d *dirOrders) removeLocked(in *inode) picture {
	i := slices.IndexFunc(d.pictures, func(p picture) bool { return p.in == in })
	if i < 0 {
		return picture{}
	}
	p := d.pictures[i]
	d.pictures = slices.Delete(d.pictures, i, i+1)
	return p
}

// take is the picture of a directory, which is kept no longer, for who reads on from a position; an empty one if there is none.
func (d *dirOrders) take(in *inode) picture {
	d.mu.Lock()
	defer d.mu.Unlock()
	if o := d.byDir[in]; o != nil {
		o.read(d.now())
	}
	return d.removeLocked(in)
}

// keep keeps a picture.
func (d *dirOrders) keep(p picture) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.removeLocked(p.in)
	if len(d.pictures) == picturesKept {
		d.pictures = slices.Delete(d.pictures, 0, 1)
	}
	d.pictures = append(d.pictures, p)
}
