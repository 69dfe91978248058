package overlayfuse

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Positions in a directory (d_off of getdents(2)). They belong to the directory and not to an open descriptor, of which the server does
// not hear (FUSE_NO_OPENDIR_SUPPORT), and each means one name for as long as the inode lives: whoever goes on from one gets every
// name once that was there all the time. (Who does so after orderUnread in which nobody read on may get names twice.)
//
//	1, 2         "." and ".."
//	3 + i        the i-th name of the merged lower directory, hidden or not: it never changes
//	3 + n + k    the k-th name that the upper alone has had, of n in the lower
const firstName = 3

// upperOrder is the names that the upper alone has had in one directory, by the order in which they were first listed, as hashes: a name
// that is gone keeps its place, and gets it again if it comes back.
type upperOrder struct {
	behind atomic.Int64 // when somebody was last in the middle of the directory, on the clock of dirOrders.now

	mu     sync.Mutex // a leaf
	first  uint64     // place of the first hash: those before were given up
	hashes []uint64
}

// An order is made anew when it has many more places than names, and nobody has been in the middle of it for long.
const (
	orderSlack  = 4
	orderLeast  = 256
	orderUnread = 10 * time.Minute
)

// sort gives names of the upper alone their positions, which begin with base, and sorts them. anew: a listing begins, so that an order
// may be made anew; the kernel, too, has kept nothing of the last one then.
func (o *upperOrder) sort(names []dirent, base uint64, anew bool, now time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if anew && len(o.hashes) > max(orderSlack*len(names), orderLeast) && now-time.Duration(o.behind.Load()) > orderUnread {
		o.first += uint64(len(o.hashes))
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
		names[i].pos = base + o.first + uint64(k)
	}
	slices.SortFunc(names, func(a, b dirent) int { return cmp.Compare(a.pos, b.pos) })
}

// dirOrders is the orders of a mount's directories, 8 bytes a name, which live as long as their inodes, and pictures of directories that
// are being read.
//
// Locks: mu is a leaf.
type dirOrders struct {
	began    time.Time
	mu       sync.Mutex
	byDir    map[*inode]*upperOrder
	pictures []*picture // the newest is at the end
	listed   uint64     // how many pictures were made
	timer    *time.Timer
}

// picture is the entries of a directory as they were when they were listed, for the reads that follow. But for used and ahead it is
// constant.
type picture struct {
	in      *inode
	number  uint64
	entries []dirent
	ahead   atomic.Bool // lookups come with them; see lookAhead
	used    time.Duration
}

// What is kept of pictures by one mount: so many, with so many entries beside the newest, for so long after their last use. Without
// one, the directory is listed anew for each answer.
const (
	picturesKept = 16
	entriesKept  = 1 << 16
	pictureFor   = 5 * time.Second
)

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

// begin gives the number of a picture, which is about to be made: a later one shows all that an earlier one can.
func (d *dirOrders) begin() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.listed++
	return d.listed
}

// find is the picture of a directory; nil if there is none.
func (d *dirOrders) find(in *inode) *picture {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := d.indexLocked(in)
	if i < 0 {
		return nil
	}
	d.pictures[i].used = d.now()
	return d.pictures[i]
}

// Locks: mu is held.
func (d *dirOrders) indexLocked(in *inode) int {
	return slices.IndexFunc(d.pictures, func(p *picture) bool { return p.in == in })
}

// keep keeps a picture for who is in the middle of its directory, unless there is a newer one.
func (d *dirOrders) keep(p *picture) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p.used = d.now()
	if o := d.byDir[p.in]; o != nil {
		o.behind.Store(int64(p.used))
	}
	if i := d.indexLocked(p.in); i >= 0 {
		if d.pictures[i].number >= p.number {
			return
		}
		d.pictures = slices.Delete(d.pictures, i, i+1)
	}
	d.pictures = append(d.pictures, p)
	n := 0
	for i := len(d.pictures) - 2; i >= 0; i-- {
		if n += len(d.pictures[i].entries); n > entriesKept || len(d.pictures)-i > picturesKept {
			d.pictures = slices.Delete(d.pictures, 0, i+1)
			break
		}
	}
	if d.timer == nil {
		d.timer = time.AfterFunc(pictureFor, d.sweep)
	} else if len(d.pictures) == 1 {
		d.timer.Reset(pictureFor)
	}
}

// sweep drops what was not used for a while.
func (d *dirOrders) sweep() {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	d.pictures = slices.DeleteFunc(d.pictures, func(p *picture) bool { return now-p.used >= pictureFor })
	if len(d.pictures) > 0 {
		d.timer.Reset(pictureFor)
	}
}

// done drops a picture that was read to the end.
func (d *dirOrders) done(p *picture) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := d.indexLocked(p.in); i >= 0 && d.pictures[i].number <= p.number {
		d.pictures = slices.Delete(d.pictures, i, i+1)
	}
}

// drop forgets a directory that nobody holds.
func (d *dirOrders) drop(in *inode) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.byDir, in)
	if i := d.indexLocked(in); i >= 0 {
		d.pictures = slices.Delete(d.pictures, i, i+1)
	}
}

// close ends what runs by itself.
func (d *dirOrders) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pictures = nil
	if d.timer != nil {
		d.timer.Stop()
	}
}
