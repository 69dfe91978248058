package overlayfuse

import (
	"container/list"
	"sync"
	"sync/atomic"
)

// listingBudget bounds the bytes of all listings of the process, whatever mounts it serves. One of a directory with 1,000
// names of which all were looked up has about 200,000.
const listingBudget = 16 << 20

// listingCache keeps the listings that were used last. An entry that an evicted listing found stays valid for those who hold it.
//
// The listings are a forest: one whose directory was found by another one that is kept here is never evicted after it, so
// that a directory has one listing, whoever looks for it.
//
// Locks: mu is a leaf.
type listingCache struct {
	mu     sync.Mutex
	budget int64
	bytes  int64
	clock  *list.List // of *listing; the next one to look at is at the back
}

// cacheSlot is what the cache knows of a listing.
type cacheSlot struct {
	used atomic.Bool // since the clock came by

	// Protected by listingCache.mu.
	chain *chain
	place *list.Element // nil: not kept
	cost  int64
	above *listing // the one that found its directory
	below int      // listings whose above this is
}

func newListingCache(budget int64) *listingCache {
	return &listingCache{budget: budget, clock: list.New()}
}

// allListings is the cache of the process: the budget is the process's, and mounts of one image share what it holds.
var allListings = newListingCache(listingBudget)

// touch notes a use.
func (s *cacheSlot) touch() {
	if !s.used.Load() {
		s.used.Store(true)
	}
}

// largest is the size of a listing, in bytes, above which it is not worth its room.
func (c *listingCache) largest() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.budget / 2
}

// add takes a listing in. Until it is used again it is the first to go: a walk of a large tree evicts little but itself.
func (c *listingCache) add(ch *chain, l *listing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l.chain, l.cost = ch, l.cost+l.bytes()
	l.place = c.clock.PushFront(l)
	c.bytes += l.cost
	if up := l.dir.up; up != nil {
		if above := up.stack.listing.Load(); above != nil && above.place != nil && above.holds(l.dir) {
			l.above = above
			above.below++
		}
	}
	c.shrink(c.budget)
}

// grow notes that a listing has found an entry of this size.
func (c *listingCache) grow(l *listing, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l.cost += bytes
	if l.place == nil { // it is to be added still, or was evicted
		return
	}
	c.bytes += bytes
	c.shrink(c.budget)
}

// drop forgets the listings of a chain that is closed.
func (c *listingCache) drop(ch *chain) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := c.clock.Front(); e != nil; {
		next := e.Next()
		if l := listingOf(e); l.chain == ch {
			c.evict(l)
		}
		e = next
	}
}

// shrink evicts what was not used since the clock came by, until the rest is within limit, in bytes.
//
// Locks: mu is held.
func (c *listingCache) shrink(limit int64) {
	// Twice round takes every mark away, and what stands on others needs a round for each level above it.
	for n := c.clock.Len() * maxRounds; n > 0 && c.bytes > limit && c.clock.Len() > 0; n-- {
		l := listingOf(c.clock.Back())
		if l.used.Swap(false) || l.below > 0 {
			c.clock.MoveToFront(l.place)
			continue
		}
		c.evict(l)
	}
}

// halve evicts half of what there is, and gives the bytes that this was.
func (c *listingCache) halve() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.bytes
	c.shrink(was / 2)
	return was - c.bytes
}

// held is the bytes of the listings of a chain.
func (c *listingCache) held(ch *chain) (n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := c.clock.Front(); e != nil; e = e.Next() {
		if l := listingOf(e); l.chain == ch {
			n += l.cost
		}
	}
	return n
}

// YieldMemory gives up half of what the mounts of the process keep only to be quick, and gives the bytes that this was. What is
// needed again is made again.
func YieldMemory() int64 { return allListings.halve() }

// maxRounds bounds the work of one shrink. What it leaves, the next one takes.
const maxRounds = 8

// Locks: mu is held.
func (c *listingCache) evict(l *listing) {
	c.clock.Remove(l.place)
	l.place = nil
	c.bytes -= l.cost
	if l.above != nil {
		l.above.below--
		l.above = nil
	}
	l.dir.stack.listing.CompareAndSwap(l, nil)
}

// holds tells whether an entry is the one that is kept here.
func (l *listing) holds(e *entry) bool {
	i := l.find(e.name)
	return i >= 0 && l.slots[i].means.Load() == e
}

func listingOf(e *list.Element) *listing {
	l, ok := e.Value.(*listing)
	if !ok {
		return &listing{} // unreachable: only *listing is ever pushed
	}
	return l
}
