package overlayfuse

import (
	"cmp"
	"slices"

	"github.com/overlayfuse/overlayfuse-snapshotter/copyup"
)

// maxPoisoned is the most files that an Inspection names; Counters.Poisoned counts all of them.
const maxPoisoned = 1000

// Inspection is what one file system is about at one moment.
type Inspection struct {
	// IO is how files are read and written: "passthrough" (where the policy has it), "cached" or "writeback".
	IO string `json:"io"`
	// Inodes is how many the kernel, or an inode below them, keeps alive.
	Inodes int `json:"inodes"`
	// Handles is how many files are open; with io=writeback 0, the kernel does not say.
	Handles int `json:"handles"`
	// Kept is how many files are kept open for a while after the last request for them, with io=writeback.
	Kept int `json:"kept"`
	// Partial and Metacopy are how many of the live inodes have some or all of their data in a lower layer alone.
	Partial  int `json:"partial"`
	Metacopy int `json:"metacopy"`
	// Passthrough is how many open files the kernel reads, writes or maps by itself; Shared, how many of them are a lower file's own pages.
	Passthrough int `json:"passthrough"`
	Shared      int `json:"shared"`
	// Split is how many live inodes got a new nodeid because a write met a shared file.
	Split int `json:"split"`
	// ListingBytes is what the listings of merged lower directories take, in bytes. Mounts of the same lower layers share them.
	ListingBytes int64 `json:"listing_bytes"`
	// Counters are the copy-up engine's, since the mount.
	Counters copyup.Counters `json:"counters"`
	// Poisoned are live files that answer EIO until the kernel has forgotten them.
	Poisoned []PoisonedFile `json:"poisoned,omitempty"`
}

// PoisonedFile is a file of which nobody knows any longer what it holds: upper and memory could not be reconciled.
type PoisonedFile struct {
	Path  string `json:"path"` // below the mount
	Ino   uint64 `json:"ino"`  // st_ino
	Cause string `json:"cause"`
}

// Inspect looks at the file system as it runs. It touches no layer and waits for no request.
func (fs *FS) Inspect() Inspection {
	ins := fs.tab.all()
	r := Inspection{IO: fs.ioName(), Inodes: len(ins), Handles: fs.handles.count(), Kept: fs.files.count(), Counters: fs.copies.Read(),
		ListingBytes: allListings.held(fs.chain)}
	for _, in := range ins {
		switch in.upper().data {
		case dataPartial:
			r.Partial++
		case dataBelow:
			r.Metacopy++
		case dataHere:
		}
		r.addIO(in)
		f := in.file.Load()
		if f == nil || len(r.Poisoned) == maxPoisoned {
			continue
		}
		if err := f.Err(); err != nil {
			r.Poisoned = append(r.Poisoned, PoisonedFile{Path: in.path(), Ino: in.ino, Cause: err.Error()})
		}
	}
	slices.SortFunc(r.Poisoned, func(a, b PoisonedFile) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Ino, b.Ino))
	})
	return r
}

// ioName says what the policy came to.
func (fs *FS) ioName() string {
	switch {
	case fs.passthrough:
		return IOPassthrough.String()
	case fs.opensUnasked():
		return IOWriteback.String()
	}
	return IOCached.String()
}

// addIO counts the opens of an inode. Those of nodeids that it had before are not known any more.
func (r *Inspection) addIO(in *inode) {
	o := in.io.Load()
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	r.Passthrough += o.passthrough
	if o.shared {
		r.Shared += o.passthrough
	}
	if o.split {
		r.Split++
	}
}

// count is how many handles are open.
func (t *handleTable) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byID)
}
