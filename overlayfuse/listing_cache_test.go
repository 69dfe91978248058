package overlayfuse

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
)

// checkCache says which of the cache's invariants does not hold.
func checkCache(t *testing.T, c *listingCache) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	var bytes int64
	below := map[*listing]int{}
	for e := c.clock.Front(); e != nil; e = e.Next() {
		l := listingOf(e)
		cost := l.bytes()
		for i := range l.slots {
			if m := l.slots[i].means.Load(); m != nil {
				cost += m.bytes()
			}
		}
		if cost != l.cost {
			t.Errorf("%q costs %d bytes, and is counted with %d", l.dir.path(), cost, l.cost)
		}
		bytes += l.cost
		if l.place != e {
			t.Errorf("%q is not where it says", l.dir.path())
		}
		if l.dir.stack.listing.Load() != l {
			t.Errorf("%q is kept, and its directory does not know", l.dir.path())
		}
		if l.above != nil {
			below[l.above]++
			if l.above.place == nil {
				t.Errorf("%q stays, and the one above it is gone", l.dir.path())
			}
		}
	}
	for e := c.clock.Front(); e != nil; e = e.Next() {
		if l := listingOf(e); below[l] != l.below {
			t.Errorf("%q: %d below it, and it counts %d", l.dir.path(), below[l], l.below)
		}
	}
	if bytes != c.bytes {
		t.Errorf("%d bytes are kept, and %d counted", bytes, c.bytes)
	}
	if c.bytes > c.budget {
		t.Errorf("%d bytes are kept, of a budget of %d", c.bytes, c.budget)
	}
}

// visit looks at everything below dir, in an order of g's.
func visit(c *chain, g *rand.Rand, dir *entry, see func(e *entry)) error {
	for _, i := range g.Perm(len(layerNames)) {
		e, err := c.child(dir, layerNames[i])
		if e == nil || err != nil {
			continue // errors of bad layers are TestListingsAgreeWithTheLayers's
		}
		see(e)
		if e.isDir() {
			if err := visit(c, g, e, see); err != nil {
				return err
			}
		}
	}
	return nil
}

// TestListingsStayInTheirBudget: several users that walk a chain at once, with room for some of its listings, see the same as one
// with room for all; the cache keeps its bounds and its books, and a closed chain leaves nothing in it.
func TestListingsStayInTheirBudget(t *testing.T) {
	var seed uint64
	defer func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	var fs *FS
	want := map[string]string{}
	for len(want) < 20 { // a smaller tree says nothing
		clear(want)
		seed = rand.Uint64()
		g := rand.New(rand.NewPCG(seed, 0))
		fs = openFS(t, randomLayers(t, g, 4))
		must(t, visit(fs.chain, g, fs.root.lower, func(e *entry) { want[e.path()] = describe(e, nil) }))
	}
	all := allListings.bytes

	for _, budget := range []int64{0, 1 << 10, all / 8, all / 2, all} {
		cache := newListingCache(budget)
		c := *fs.chain
		c.share = &sharedChain{cache: cache}
		root := &entry{st: fs.root.lower.st, stack: &stack{refs: fs.root.lower.stack.refs}}
		var users sync.WaitGroup
		for user := range 4 {
			users.Go(func() {
				g := rand.New(rand.NewPCG(seed, uint64(user)))
				for range 3 {
					seen := 0
					err := visit(&c, g, root, func(e *entry) {
						seen++
						if got := describe(e, nil); got != want[e.path()] {
							t.Errorf("budget %d: got %s\nwant %s", budget, got, want[e.path()])
						}
					})
					if err != nil || seen != len(want) {
						t.Errorf("budget %d: %d names, %v, want %d", budget, seen, err, len(want))
					}
				}
			})
		}
		users.Wait()
		checkCache(t, cache)
		for was := cache.bytes; was > 0; was = cache.bytes {
			if n := cache.halve(); n < was/2 || cache.bytes != was-n || cache.held(&c) != cache.bytes {
				t.Fatalf("budget %d: %d bytes given up of %d, %d are left, %d of them of the chain", budget, n, was, cache.bytes, cache.held(&c))
			}
			checkCache(t, cache)
		}
		cache.drop(&c)
		if cache.bytes != 0 || cache.clock.Len() != 0 {
			t.Errorf("budget %d: a closed chain leaves %d listings of %d bytes", budget, cache.clock.Len(), cache.bytes)
		}
	}
}

// TestUsedListingsStay: what is used again and again is not what is evicted.
func TestUsedListingsStay(t *testing.T) {
	fs := openFS(t, manyDirs(t, 100))
	cache := newListingCache(32 << 10)
	fs.layers.shared.cache = cache
	hot, err := fs.chain.child(fs.root.lower, "d0")
	must(t, err)
	built := map[*listing]bool{}
	for i := range 100 {
		d, err := fs.chain.child(fs.root.lower, fmt.Sprint("d", i))
		must(t, err)
		if _, err := fs.chain.child(d, "f"); err != nil {
			t.Fatal(err)
		}
		if _, err := fs.chain.child(hot, "f"); err != nil {
			t.Fatal(err)
		}
		built[hot.stack.listing.Load()] = true
	}
	checkCache(t, cache)
	if len(built) != 1 {
		t.Errorf("the listing in use was made %d times", len(built))
	}
	if n := cache.clock.Len(); n > 90 {
		t.Errorf("%d of 101 listings are kept: the budget was not used up", n)
	}
}
