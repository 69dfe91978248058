package overlayfuse

import (
	"slices"
	"sync"
	"sync/atomic"
)

// Whether a listing comes with a lookup of each name. Such a lookup saves a request if it is wanted. If not, it costs an inode here and
// one with a name in the kernel, together 2 KB for as long as the kernel likes. Who looks at everything that a directory has (ls -l,
// tar, a walk) does so in the next one too; who wants to know what there is (an interpreter that imports modules) looks at little of
// it. So a directory is listed without lookups, and watched, until directories were looked at altogether: many are then listed with
// them, and one without, to see whether it is still so.
const (
	aheadWatched = 16   // names of a directory, at most: its first ones
	aheadNames   = 16   // names, all those watched in some directories, that must have been looked up
	aheadFew     = 4    // a directory with fewer names tells nothing and costs nothing
	aheadDirs    = 64   // directories that are then listed with lookups; twice as many each time
	aheadMost    = 1024 // but no more than these
)

// lookAhead decides it for a mount.
type lookAhead struct {
	dir atomic.Pointer[inode] // the one that is watched

	mu    sync.Mutex // only inode.mu is taken under it
	names []string   // the watched ones that were not looked up
	seen  int        // names that were looked up, of directories of which all were, and in dir
	left  int        // directories to list with lookups
	next  int        // how many the next time
}

// list tells whether a listing of dir, which begins, comes with lookups.
func (a *lookAhead) list(dir *inode, entries []dirent) bool {
	if len(entries) < aheadFew {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.left > 0 {
		a.left--
		return true
	}
	if was := a.dir.Load(); len(a.names) > 0 && !dir.isIn(was) {
		a.seen, a.next = 0, aheadDirs
	}
	a.names = make([]string, 0, aheadWatched)
	for _, e := range entries[:min(len(entries), aheadWatched)] {
		a.names = append(a.names, e.name)
	}
	a.dir.Store(dir)
	return false
}

// goesOn tells whether the rest of a listing that began without lookups comes with them.
func (a *lookAhead) goesOn() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.left > 0
}

// looked is called for each lookup that found something.
func (a *lookAhead) looked(dir *inode, name string) {
	if a.dir.Load() != dir {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	i := slices.Index(a.names, name)
	if i < 0 || a.dir.Load() != dir {
		return
	}
	a.seen++
	if a.names = slices.Delete(a.names, i, i+1); len(a.names) > 0 {
		return
	}
	a.names = nil
	a.dir.Store(nil)
	if a.seen >= aheadNames {
		a.left = max(a.next, aheadDirs)
		a.seen, a.next = 0, min(2*a.left, aheadMost)
	}
}

// isIn tells whether dir has a name in another directory.
func (in *inode) isIn(dir *inode) bool {
	a, ok := in.firstAlias()
	return ok && a.parent == dir
}
