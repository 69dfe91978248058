package overlayfuse

import "sync"

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
