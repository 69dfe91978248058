package overlayfuse

import (
	"errors"
	"fmt"
	"math/bits"

	"golang.org/x/sys/unix"
)

// listingBuilder reads the directories of a listing.
type listingBuilder struct {
	chain *chain
	at    map[string]uint32 // place in names
	names []dirent          // mode 0: a whiteout
	first []uint16          // by name: see slot
	also  map[uint32][]uint16
	devs  []uint64
	text  int // bytes of all names
}

// readListing reads the directories that merge in dir.
//
// Errors: those of opening and reading them; one of a name that can't be told from a whiteout.
// Compare: fs/overlayfs/readdir.c:ovl_dir_read_merged().
func (c *chain) readListing(dir *entry) (*listing, error) {
	b := listingBuilder{chain: c, at: map[string]uint32{}}
	for i, r := range dir.dirs() {
		if err := b.read(i, r); err != nil {
			return nil, err
		}
		if int64(len(b.names)*slotBytes+b.text) > c.share.cache.largest() {
			return &listing{dir: dir, large: true}, nil
		}
	}
	return b.listing(dir), nil
}

// read adds the names of one more directory.
func (b *listingBuilder) read(at int, r ref) error {
	d, err := b.chain.lowerDir(r.layer, r.path)
	if err != nil {
		return fmt.Errorf("open directory %s: %w", b.chain.where(r), err)
	}
	defer d.release()
	if err := b.readDir(at, d); err != nil {
		return fmt.Errorf("read directory %s: %w", b.chain.where(r), err)
	}
	return nil
}

func (b *listingBuilder) readDir(at int, d *dirFD) error {
	st, err := statAt(d.fd, "")
	if err != nil {
		return err
	}
	b.devs = append(b.devs, st.Dev)
	return b.chain.readVisible(d, b.chain.xwhiteouts(d.fd), func(e dirent, _ uint64, white bool) error {
		if i, ok := b.at[e.name]; ok {
			if b.also == nil {
				b.also = map[uint32][]uint16{}
			}
			b.also[i] = append(b.also[i], uint16(at))
			return nil
		}
		if white {
			e.mode = 0
		}
		b.at[e.name] = uint32(len(b.names))
		b.names = append(b.names, e)
		b.first = append(b.first, uint16(at))
		b.text += len(e.name)
		return nil
	})
}

// listing is the result.
func (b *listingBuilder) listing(dir *entry) *listing {
	l := &listing{dir: dir, slots: make([]slot, len(b.names)), also: b.also, devs: b.devs}
	text := make([]byte, 0, b.text)
	for i, e := range b.names {
		s := &l.slots[i]
		s.off, s.size, s.typ, s.first, s.ino = uint32(len(text)), uint8(len(e.name)), uint8(e.mode>>12), b.first[i], e.ino
		text = append(text, e.name...)
	}
	l.names = string(text)
	l.index()
	return l
}

// index makes the table of the names, at most three quarters full.
func (l *listing) index() {
	if len(l.slots) == 0 {
		return
	}
	l.table = make([]uint32, 1<<bits.Len(uint(len(l.slots)*4/3)))
	mask := uint64(len(l.table) - 1)
	for i := range l.slots {
		h := hashName(l.name(i)) & mask
		for l.table[h] != 0 {
			h = (h + 1) & mask
		}
		l.table[h] = uint32(i + 1)
	}
}

// isWhiteoutEntry tells a whiteout among the entries of a directory, looking closer at what may be one; e gets the type that
// was seen. xwhiteouts: the directory says that empty files may be some.
func (c *chain) isWhiteoutEntry(dir int, e *dirent, xwhiteouts bool) (bool, error) {
	if e.mode != unix.S_IFCHR && e.mode != 0 && (e.mode != unix.S_IFREG || !xwhiteouts) {
		return false, nil
	}
	st, err := statAt(dir, e.name)
	if errors.Is(err, unix.ENOENT) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	e.mode = st.Mode & unix.S_IFMT
	if !xwhiteouts {
		return isWhiteout(&st), nil
	}
	return c.isWhiteoutAt(dir, e.name, &st)
}
