package overlayfuse

import (
	"container/list"
	"path"
	"strings"
	"sync"
	"sync/atomic"
)

// How many directory descriptors are kept open beyond those in use: by one mount, by all mounts of the process together, and
// by one mount where all together have too many. RLIMIT_NOFILE is 20,000 on small machines.
const (
	dirFDs      = 256
	dirFDsAll   = 4096
	dirFDsFloor = 16
)

// dirFDsOpen counts those that the caches of this process hold: the limit is the process's, whatever mounts it serves.
var dirFDsOpen atomic.Int64

// dirFD is an open directory of a layer (O_PATH). It stays valid while the directory is renamed.
type dirFD struct {
	fd   int
	refs atomic.Int32 // the cache's own and the users'
}

func (d *dirFD) release() {
	if d.refs.Add(-1) == 0 {
		closeFD(d.fd)
	}
}

// dirKey names a directory: one of a lower layer by its path, one of the upper by its inode.
type dirKey struct {
	layer int
	path  string
	in    *inode
}

type dirSlot struct {
	key dirKey
	dir *dirFD
}

// dirCache keeps the most recently used directories open.
//
// Locks: mu is a leaf and held across no system call but close(2).
type dirCache struct {
	mu    sync.Mutex
	order *list.List // of *dirSlot, the most recent first
	byKey map[dirKey]*list.Element
}

func newDirCache() *dirCache {
	return &dirCache{order: list.New(), byKey: map[dirKey]*list.Element{}}
}

// get is the open directory of key, or nil. The caller releases it.
func (c *dirCache) get(key dirKey) *dirFD {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byKey[key]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	d := slotOf(e).dir
	d.refs.Add(1)
	return d
}

// put takes fd over and gives it back as a reference of the caller's; if key is open already, that one.
func (c *dirCache) put(key dirKey, fd int) *dirFD {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.byKey[key]; e != nil {
		closeFD(fd)
		d := slotOf(e).dir
		d.refs.Add(1)
		return d
	}
	d := &dirFD{fd: fd}
	d.refs.Store(2)
	c.byKey[key] = c.order.PushFront(&dirSlot{key, d})
	dirFDsOpen.Add(1)
	for n := c.order.Len(); n > dirFDs || n > dirFDsFloor && dirFDsOpen.Load() > dirFDsAll; n-- {
		c.remove(c.order.Back())
	}
	return d
}

// drop forgets key: the directory under it is another one now, or gone.
func (c *dirCache) drop(key dirKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.byKey[key]; e != nil {
		c.remove(e)
	}
}

func (c *dirCache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.order.Len() > 0 {
		c.remove(c.order.Back())
	}
}

// Locks: mu is held.
func (c *dirCache) remove(e *list.Element) {
	s := slotOf(e)
	c.order.Remove(e)
	delete(c.byKey, s.key)
	dirFDsOpen.Add(-1)
	s.dir.release()
}

func slotOf(e *list.Element) *dirSlot {
	s, ok := e.Value.(*dirSlot)
	if !ok {
		return nil // unreachable: only *dirSlot is ever pushed
	}
	return s
}

// lowerDir opens the directory p ("" is the root) of lower layer i. Each component is opened from the one above it,
// so that neither depth nor symlinks matter.
func (c *chain) lowerDir(i int, p string) (*dirFD, error) {
	if p == "" {
		d := &dirFD{fd: c.roots[i].fd} // the chain's own: one reference is never given up
		d.refs.Store(2)
		return d, nil
	}
	key := dirKey{layer: i, path: p}
	if d := c.dirs.get(key); d != nil {
		return d, nil
	}
	parent, err := c.lowerDir(i, dirOf(p))
	if err != nil {
		return nil, err
	}
	defer parent.release()
	fd, err := openIn(parent.fd, path.Base(p), oPathDir, 0)
	if err != nil {
		return nil, err
	}
	return c.dirs.put(key, fd), nil
}

// dirOf is the parent of a path inside a layer: "" for one component.
func dirOf(p string) string {
	i := strings.LastIndexByte(p, '/')
	if i < 0 {
		return ""
	}
	return p[:i]
}

// joinPath is name below the directory p of a layer.
func joinPath(p, name string) string {
	if p == "" {
		return name
	}
	return p + "/" + name
}
