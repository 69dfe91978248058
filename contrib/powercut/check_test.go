package powercut_test

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

const blockSize = 4096

// check is what is wrong with a tree that was found after the cut, and which file each name was found to show.
func (w *world) check(found tree) (wrong []string, owner map[string]uint32) {
	owner = map[string]uint32{}
	shown := map[uint32][]string{} // by a name that can show nothing else
	matched := map[uint32]bool{}
	for _, name := range found.sorted() {
		s := found[name]
		may := w.names[name]
		if s.Err != "" {
			wrong = append(wrong, fmt.Sprintf("%s: %s", name, s.Err))
			continue
		}
		var is []uint32
		var whyNot []string
		for id := range may {
			if id == 0 {
				continue
			}
			if w.canBe(w.files[id], s) {
				is = append(is, id)
				matched[id] = true
			}
		}
		slices.Sort(is)
		if len(is) == 0 {
			whyNot = w.whyNot(may, s)
		}
		switch {
		case w.pristine != nil && may[0] && (w.pristine.shows(name, s) || len(is) == 1 && w.pristine.names[name][is[0]]):
			// The second: the overlay knows by overlay.origin that the lower file is the one that was renamed.
			continue
		case len(is) == 0 && w.cameBack(may, s):
			continue
		case len(is) == 0 && len(whyNot) == 0:
			wrong = append(wrong, fmt.Sprintf("%s: a name that nobody gave (mode %o, %d bytes)", name, s.Mode, s.Size))
		case len(is) == 0:
			wrong = append(wrong, name+": "+strings.Join(whyNot, "\n    "))
		case len(is) == 1:
			shown[is[0]] = append(shown[is[0]], name)
		}
		for _, id := range is {
			if !slices.Contains(owned(owner), id) {
				owner[name] = id
				break
			}
		}
	}
	for name, may := range w.names {
		if found[name] == nil && !may[0] {
			wrong = append(wrong, name+": is gone, and nobody took it away")
		}
	}
	for id, f := range w.files {
		if !matched[id] && !f.ended && !f.unborn && len(wrong) == 0 {
			wrong = append(wrong, fmt.Sprintf("file %#x: has none of its names, and nobody removed or replaced it", id))
		}
		if len(shown[id]) > 1 {
			wrong = append(wrong, fmt.Sprintf("file %#x: has several names, and was only renamed: %v", id, shown[id]))
		}
	}
	return wrong, owner
}

// shows says whether s can be the one file that may have this name.
func (w *world) shows(name string, s *seen) bool {
	for id := range w.names[name] {
		return id != 0 && w.canBe(w.files[id], s)
	}
	return false
}

// cameBack says whether s can be an older state of a file that was removed or replaced.
func (w *world) cameBack(may map[uint32]bool, s *seen) bool {
	if w.past == nil {
		return false
	}
	for id := range may {
		if id != 0 && w.files[id].ended && w.canBe(w.past.files[id], s) {
			return true
		}
	}
	return false
}

func owned(owner map[string]uint32) []uint32 {
	var ids []uint32
	for _, id := range owner {
		ids = append(ids, id)
	}
	return ids
}

// canBe reports whether s can be f.
func (w *world) canBe(f *file, s *seen) bool {
	if !f.canHaveSize(s.Size) || !f.modes[s.Mode] {
		return false
	}
	bad, _ := w.wrongBytes(f, s.data, 1)
	return bad == 0
}

func (f *file) canHaveSize(size int64) bool {
	return slices.ContainsFunc(f.sizes, func(e extent) bool { return e.lo <= size && size <= e.hi })
}

// leastSize is the smallest one that it can have.
func (f *file) leastSize() int64 {
	return slices.MinFunc(f.sizes, func(a, b extent) int { return cmp.Compare(a.lo, b.lo) }).lo
}

// whyNot says of each file that may have a name why it is not s.
func (w *world) whyNot(may map[uint32]bool, s *seen) (all []string) {
	for _, id := range keys(may) {
		if id == 0 {
			continue
		}
		f := w.files[id]
		var why []string
		if !f.canHaveSize(s.Size) {
			why = append(why, fmt.Sprintf("size %d, not any of %v", s.Size, f.sizes))
		}
		if !f.modes[s.Mode] {
			why = append(why, fmt.Sprintf("mode %o, not any of %o", s.Mode, keys(f.modes)))
		}
		if bad, first := w.wrongBytes(f, s.data, forever); bad > 0 {
			why = append(why, fmt.Sprintf("%d bytes wrong, the first at offset %d: got %x, which is %s; allowed: %s", bad, first,
				s.data[first:min(first+16, int64(len(s.data)))], w.identify(s.data, first), sources(f.disk.within(first, first+1))))
		}
		all = append(all, fmt.Sprintf("not file %#x: %s", id, strings.Join(why, "; ")))
	}
	return all
}

func keys(m map[uint32]bool) (k []uint32) {
	for v := range m {
		k = append(k, v)
	}
	slices.Sort(k)
	return k
}

// wrongBytes counts the bytes that none of f's spans can be, and stops at enough. Blocks are only a way to go through a file:
// each byte may be explained by itself, because a page can reach the disk while it is being changed.
func (w *world) wrongBytes(f *file, data []byte, enough int64) (bad, first int64) {
	var want [blockSize]byte
	const window = 64 * blockSize
	for base := int64(0); base < int64(len(data)); base += window {
		near := f.disk.within(base, base+window)
		for lo := base; lo < min(base+window, int64(len(data))); lo += blockSize {
			hi := min(lo+blockSize, int64(len(data)))
			n, at := w.unexplained(near.within(lo, hi), lo, data[lo:hi], want[:])
			if n > 0 && bad == 0 {
				first = at
			}
			if bad += n; bad >= enough {
				return bad, first
			}
		}
	}
	return bad, first
}

// unexplained counts the bytes of one block that nothing in here explains.
func (w *world) unexplained(here spans, lo int64, got, want []byte) (n, first int64) {
	var known [blockSize]bool
	for _, p := range here {
		piece := want[:p.hi-p.lo]
		fill(w.seed, p.src, p.lo, piece)
		have := got[p.lo-lo : p.hi-lo]
		if bytes.Equal(piece, have) {
			if len(piece) == len(got) {
				return 0, 0
			}
			for i := range piece {
				known[p.lo-lo+int64(i)] = true
			}
			continue
		}
		for i := range piece {
			if piece[i] == have[i] {
				known[p.lo-lo+int64(i)] = true
			}
		}
	}
	for i := range got {
		if !known[i] {
			if n == 0 {
				first = lo + int64(i)
			}
			n++
		}
	}
	return n, first
}

// narrowed is s without those that data, which begins at 0, does not come from; where it is of several in one block, all stay.
func (w *world) narrowed(s spans, data []byte) spans {
	size := int64(len(data))
	cuts := []int64{0, size}
	for _, p := range s {
		cuts = append(cuts, min(p.lo, size), min(p.hi, size))
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	out, want := s.without(0, size), make([]byte, blockSize)
	for i, lo := range cuts[:len(cuts)-1] {
		here := s.within(lo, cuts[i+1])
		if len(here) == 1 {
			out = append(out, here...)
			continue
		}
		for end := cuts[i+1]; lo < end; {
			hi := min(end, (lo/blockSize+1)*blockSize)
			block := here.within(lo, hi)
			from := slices.DeleteFunc(slices.Clone(block), func(p span) bool {
				fill(w.seed, p.src, lo, want[:hi-lo])
				return !bytes.Equal(want[:hi-lo], data[lo:hi])
			})
			if len(from) == 0 {
				from = block
			}
			out, lo = append(out, from...), hi
		}
	}
	return out
}

// identify says whose the bytes at an offset are.
func (w *world) identify(data []byte, at int64) string {
	end := min(at+8, int64(len(data)))
	if end-at < 4 {
		return "too few to tell"
	}
	got, want := data[at:end], make([]byte, end-at)
	for _, src := range append([]source{{}}, w.tags...) {
		if fill(w.seed, src, at, want); bytes.Equal(got, want) {
			return src.String()
		}
		if len(got) == 8 && binary.LittleEndian.Uint32(got) == binary.LittleEndian.Uint32(want) {
			return "in part " + src.String()
		}
	}
	return "nobody's at this offset"
}

func sources(s spans) string {
	var text []string
	for _, p := range s {
		if t := p.src.String(); !slices.Contains(text, t) {
			text = append(text, t)
		}
	}
	return strings.Join(text, ", ")
}

// checkLower is what is wrong with the lower directory itself.
func checkLower(seed uint64, lower []lowerFile, found tree) []string {
	wrong, _ := newWorld(seed, keepsAll, lower).check(found)
	for i := range wrong {
		wrong[i] = "LOWER changed: " + wrong[i]
	}
	return wrong
}
