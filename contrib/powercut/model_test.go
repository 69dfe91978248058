package powercut_test

import (
	"maps"
	"slices"
)

// extent is a range of sizes that a file may have, both ends included.
type extent struct{ lo, hi int64 }

// file is what is known of one file: what a caller sees now, and what may be found after the cut.
type file struct {
	id    uint32
	cur   spans // complete up to forever: zeros are behind the end
	size  int64
	mode  uint32
	disk  spans
	sizes []extent
	modes map[uint32]bool

	unborn bool // its creation may not be on the disk
	ended  bool // it was removed or replaced, which may be on the disk
}

// keeps says what a cut leaves of what was done and not synced.
type keeps int

const (
	keepsNothing  keeps = iota // the power is cut
	keepsRequests              // the server is, with io=writeback: all that is asked of it when it is done, which is all but data
	keepsAll                   // the server is, otherwise
)

// world is what may be found after a cut.
type world struct {
	seed  uint64
	keeps keeps
	steps bool // the file system may record a truncation on its way: see truncatesInSteps
	files map[uint32]*file
	names map[string]map[uint32]bool // which files may have a name; 0: none
	// pristine is the lower directory, if a name that was taken away may show it again; nil: it may not.
	pristine *world
	// past is as if nothing had ever been synced, if a file that was replaced or removed may show an older state under the name that it
	// had; nil: it may not.
	past *world
	tags []source // everything that was ever written, to say what a wrong byte is
}

func newWorld(seed uint64, keeps keeps, lower []lowerFile) *world {
	w := &world{seed: seed, keeps: keeps, files: map[uint32]*file{}, names: map[string]map[uint32]bool{}}
	for _, l := range lower {
		f := &file{id: l.id, size: l.size, mode: lowerMode}
		f.cur = spans{{0, forever, source{}}}
		for _, d := range l.data {
			f.cur = f.cur.only(d.lo, d.hi, d.src)
		}
		f.settle()
		w.files[l.id] = f
		w.names[l.name] = map[uint32]bool{l.id: true}
		w.tags = append(w.tags, source{file: l.id})
	}
	return w
}

// forgetful makes w what may be found on a file system of forgetsWhiteouts.
func (w *world) forgetful(lower []lowerFile) {
	w.pristine, w.past = newWorld(w.seed, keepsNothing, lower), newWorld(w.seed, keepsNothing, lower)
	w.past.steps = w.steps
}

// settle makes what a caller sees the only thing that may be found.
func (f *file) settle() {
	f.settleData()
	f.modes = map[uint32]bool{f.mode: true}
}

func (f *file) settleData() {
	f.disk = slices.Clone(f.cur)
	f.sizes = []extent{{f.size, f.size}}
}

func (f *file) write(lo, hi int64, src source) {
	f.disk = f.disk.with(lo, hi, src)
	f.cur = f.cur.only(lo, hi, src)
	if hi > f.size {
		// The zeros between the old end and the new one are known already. A file system may record the new size, or one
		// on the way to it, before the data.
		f.sizes = append(f.sizes, extent{f.size, hi})
		f.size = hi
	}
}

func (f *file) truncate(size int64, steps bool) {
	if steps && size < f.size {
		f.sizes = append(f.sizes, extent{size, f.size})
	}
	f.disk = f.disk.with(size, forever, source{})
	f.cur = f.cur.only(size, forever, source{})
	// One that grows may be recorded on the way, as with a write: xfs does so with the block of the old end (xfs_setfilesize()).
	f.sizes = append(f.sizes, extent{min(f.size, size), size})
	f.size = size
}

// apply adds an operation. Not done: it may have happened, wholly or in part, and its worker did nothing after it.
func (w *world) apply(o op, done bool) {
	if w.past != nil {
		w.past.apply(o, false)
	}
	kept := done && (w.keeps == keepsAll || w.keeps == keepsRequests && !o.Kind.givesData())
	f := w.files[o.File]
	if o.Kind == opCreate {
		f = &file{id: o.File, mode: lowerMode, cur: spans{{0, forever, source{}}}, unborn: !kept}
		f.settle()
		w.files[o.File] = f
	}
	src := source{o.File, o.N}
	old := f.size
	lo, hi := o.Off, o.Off+o.Len // what the operation decides
	switch o.Kind {
	case opWrite, opStore:
		f.write(lo, hi, src)
		lo = min(lo, old)
	case opTruncate:
		f.truncate(o.Len, w.steps)
		lo, hi = min(old, o.Len), forever
	case opRewrite:
		f.truncate(0, w.steps)
		if done && w.keeps != keepsNothing {
			f.settleData()
		}
		f.write(0, o.Len, src)
		lo, hi = 0, forever
	case opPunch:
		f.disk = f.disk.with(lo, hi, source{})
		f.cur = f.cur.only(lo, hi, source{})
	case opChmod:
		f.mode = o.Mode
		f.modes[o.Mode] = true
	case opFsync, opFdatasync:
		if done {
			f.settleData()
		}
		if done && o.Kind == opFsync {
			f.settle()
		}
	case opRename, opUnlink, opCreate:
		w.name(o, kept)
	}
	if o.Kind.givesData() {
		w.tags = append(w.tags, src)
	}
	switch {
	case o.Kind == opStore:
		// Its size is as it was. msync promises its own range only.
		if done && o.Sync {
			f.disk = f.disk.settled(f.cur, lo, hi)
		}
	case o.Kind == opWrite && done && o.Sync && !kept:
		// It promises its own range, and a size that has all of it.
		f.disk = f.disk.settled(f.cur, o.Off, hi)
		f.sizes = slices.DeleteFunc(f.sizes, func(e extent) bool { return e.hi < hi })
		for i := range f.sizes {
			f.sizes[i].lo = max(f.sizes[i].lo, hi)
		}
	case kept:
		f.disk = f.disk.settled(f.cur, lo, hi)
		f.modes = map[uint32]bool{f.mode: true}
		if w.keeps == keepsAll || o.Kind == opTruncate {
			f.sizes = []extent{{f.size, f.size}}
		}
	}
}

// name adds what an operation does to names.
func (w *world) name(o op, kept bool) {
	may := func(name string, id uint32) {
		if kept {
			w.names[name] = map[uint32]bool{}
		} else if w.names[name] == nil {
			w.names[name] = map[uint32]bool{0: true}
		}
		w.names[name][id] = true
	}
	switch o.Kind {
	case opCreate:
		may(o.Name, o.File)
	case opUnlink:
		may(o.Name, 0)
		w.files[o.File].ended = true
	case opRename:
		may(o.Name, 0)
		may(o.To, o.File)
		if o.Over != 0 {
			w.files[o.Over].ended = true
		}
	default: // the rest change no name
	}
}

// resolve makes what was found, and its explanation, the state from which a caller goes on.
func (w *world) resolve(found tree, owner map[string]uint32) {
	for name := range w.names {
		w.names[name] = map[uint32]bool{owner[name]: true}
	}
	ids := map[uint32]bool{}
	for name, id := range owner {
		f := w.files[id]
		f.cur = w.narrowed(f.disk, found[name].data)
		f.size, f.mode = found[name].Size, found[name].Mode
		f.sizes, f.modes = []extent{{f.size, f.size}}, map[uint32]bool{f.mode: true}
		f.unborn, f.ended = false, false
		// Behind the end is nothing, whatever an operation that may not have happened put there.
		f.cur = f.cur.only(f.size, forever, source{})
		f.disk = slices.Clone(f.cur)
		ids[id] = true
	}
	maps.DeleteFunc(w.files, func(id uint32, _ *file) bool { return !ids[id] })
}
