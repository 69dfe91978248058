package overlayfuse

import "hash/maphash"

// inodeMap finds inodes by a key that they hold themselves: each costs 8 bytes in itself and 4 to 16 in the heads, where one in a
// map of Go's would cost 40 to 90.
//
// Locks: the owner's; see table.
type inodeMap[K comparable] struct {
	heads []*inode // a power of two, at least as many as inodes
	n     int
	key   func(*inode) K       // constant while the inode is here
	next  func(*inode) **inode // its link
}

var inodeSeed = maphash.MakeSeed()

const fewestHeads = 16

func (m *inodeMap[K]) head(k K) **inode {
	return &m.heads[maphash.Comparable(inodeSeed, k)&uint64(len(m.heads)-1)]
}

// get is the inode of a key, or nil.
func (m *inodeMap[K]) get(k K) *inode {
	if m.n == 0 {
		return nil
	}
	in := *m.head(k)
	for in != nil && m.key(in) != k {
		in = *m.next(in)
	}
	return in
}

// put enters in under its key.
//
// Preconditions: the key is free.
func (m *inodeMap[K]) put(in *inode) {
	if m.n == len(m.heads) {
		m.resize(max(2*m.n, fewestHeads))
	}
	m.n++
	m.push(in)
}

func (m *inodeMap[K]) push(in *inode) {
	h := m.head(m.key(in))
	*m.next(in), *h = *h, in
}

// remove takes in out, if it is here.
func (m *inodeMap[K]) remove(in *inode) {
	if m.n == 0 {
		return
	}
	for at := m.head(m.key(in)); *at != nil; at = m.next(*at) {
		if *at != in {
			continue
		}
		*at, *m.next(in) = *m.next(in), nil
		m.n--
		if m.n < len(m.heads)/8 && len(m.heads) > fewestHeads {
			m.resize(len(m.heads) / 4)
		}
		return
	}
}

func (m *inodeMap[K]) resize(heads int) {
	all := m.all()
	m.heads = make([]*inode, heads)
	for _, in := range all {
		m.push(in)
	}
}

// all are the inodes.
func (m *inodeMap[K]) all() []*inode {
	ins := make([]*inode, 0, m.n)
	for _, in := range m.heads {
		for ; in != nil; in = *m.next(in) {
			ins = append(ins, in)
		}
	}
	return ins
}
