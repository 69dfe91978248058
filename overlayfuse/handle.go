package overlayfuse

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/copyup"
)

// handle is one open file. Directories have none.
type handle struct {
	in    *inode
	data  *copyup.File
	flags uint32   // of open(2)
	io    *inodeIO // where the open is counted
	mode  ioMode
	seen  uint64 // failed syncs that its user knows of
}

// handleTable is the open handles of one mount. Number 0 is never given out.
//
// Locks: mu is a leaf.
type handleTable struct {
	mu   sync.Mutex
	byID map[uint64]*handle
	last uint64
}

func (t *handleTable) add(h *handle) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last++
	t.byID[t.last] = h
	return t.last
}

// get is an open handle.
//
// Errors: EBADF.
func (t *handleTable) get(id uint64) (*handle, fuse.Status) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.byID[id]
	if h == nil {
		return nil, fuse.Status(unix.EBADF)
	}
	return h, fuse.OK
}

func (t *handleTable) remove(id uint64) *handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.byID[id]
	delete(t.byID, id)
	return h
}
