package copyup

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// File is the data of one regular file of an overlay, wherever it is. All methods may be called concurrently, and
// without Open as well: then descriptors are opened for the call.
type File struct {
	target Target   // immutable
	sys    kernel   // immutable
	opts   *Options // immutable, and of all files of a mount
	stats  *Stats

	// loading is held across I/O by who reads the extent map from the upper.
	loading sync.Mutex

	// syncing is held by who asks the kernel whether writeback failed. A span may be held, and none is waited for.
	syncing sync.Mutex

	// telling is held while Options.Lost is called. No span is held then.
	telling sync.Mutex

	// forgotten: Background takes no interest any more.
	forgotten atomic.Bool
	// quiet is held for reading across a write to a partial upper, for writing across Target.Quietly: what that puts back
	// is not from before a write. It comes after a span and before what the Target takes.
	quiet sync.RWMutex

	// mu guards what follows. It is a leaf: no call leaves this package with mu held, neither to the kernel nor to target.
	mu sync.Mutex
	// released is signalled when a span is. Its lock is mu. Nil until somebody waits.
	// +checklocks:mu
	released *sync.Cond
	// +checklocks:mu
	state State
	// +checklocks:mu
	opens int // Open minus Close
	// +checklocks:mu
	writers int // those of opens that can write
	// +checklocks:mu
	users int // operations between begin and end
	// +checklocks:mu
	lower *backing // nil until used, when opens and users are both 0, and in state Upper
	// +checklocks:mu
	upper *backing // nil until used, when opens and users are both 0, and before the copy-up
	// +checklocks:mu
	copying *reservation // the copy-up in flight, if any
	// +checklocks:mu
	ext *extents // state UpperShared; nil until loaded
	// +checklocks:mu
	spans []*span // reserved parts of a partial file
	// +checklocks:mu
	limitDue bool // ext.limit is smaller than the limit that is stored with the upper
	// +checklocks:mu
	named bool // the upper's name and marks are durable: an fsync ended after the copy-up
	// +checklocks:mu
	doubt error // of a failed sync, until the map is read again
	// +checklocks:mu
	failure error // of the last failed sync
	// +checklocks:mu
	failures uint64 // failed syncs
	// +checklocks:mu
	heard uint64 // of these, how many there were when a user was told last
	// +checklocks:mu
	toldLost bool // Options.Lost knows of one that no user was told of
	// +checklocks:mu
	told uint64 // of these, how many Sync knows of
	// +checklocks:mu
	poison error // what every operation answers from now on; wraps EIO
}

// New gives the File of a target whose data is in s: Lower, UpperShared (the upper is marked partial) or Upper. With any
// other state the File answers EIO. opts is kept: many files share it, and nobody may change it.
func New(t Target, s State, opts *Options) *File {
	return newFile(t, s, opts, linux{})
}

func newFile(t Target, s State, opts *Options, sys kernel) *File {
	f := &File{target: t, sys: sys, opts: opts, stats: opts.Stats, state: s}
	if f.stats == nil {
		f.stats = new(Stats)
	}
	switch {
	case s != Lower && s != UpperShared && s != Upper:
		f.Poison(fmt.Errorf("initial state %v", s))
	case s == UpperShared && opts.Unit == 0:
		f.Poison(errors.New("the upper is partial, and its file system does not tell data from holes"))
	}
	return f
}

// State gives the state of this moment. It can only be relied upon while the caller keeps faults away.
func (f *File) State() State {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

// Opens gives the number of opens that were not closed, and how many of them can write.
func (f *File) Opens() (all, writers int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.opens, f.writers
}

// Open counts an open of the file and opens the upper, so that later operations need no name. The lower, whose name stays, is opened
// when something is read from it: what the caller has in its cache costs nothing. It copies nothing.
// Errors: EIO if poisoned; those of Target.OpenUpper. Then nothing is counted.
func (f *File) Open(write bool) error { return f.OpenWith(nil, write) }

// OpenWith is Open of a file that is complete in the upper and already open: upper is what Target.OpenUpper would return. File
// takes it over, also if there is an error. Nil: it is opened.
func (f *File) OpenWith(upper *os.File, write bool) error {
	if err := f.begin(); err != nil {
		if upper != nil {
			err = errors.Join(err, upper.Close())
		}
		return err
	}
	defer f.end()
	b, err := f.adopt(upper)
	if b == nil && err == nil && f.moved() {
		b, err = f.acquireCurrent()
	}
	if err != nil {
		return err
	}
	if b != nil {
		defer f.release(b)
	}
	return f.countOpen(write)
}

// adopt puts an open upper into the cache. Nil, nil: there is none, or it is not wanted.
func (f *File) adopt(upper *os.File) (*backing, error) {
	if upper == nil {
		return nil, nil
	}
	b, err := f.newBacking(upper, false)
	if err != nil || f.offer(b) {
		return b, err
	}
	f.closeBacking(b)
	return nil, nil
}

func (f *File) countOpen(write bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	e := openRead
	if write {
		e = openWrite
	}
	if err := f.moveLocked(e); err != nil {
		return err
	}
	f.opens++
	if write {
		f.writers++
		if f.state.onLower() {
			f.stats.Deferred.Add(1)
		}
	}
	return nil
}

// Close takes back one Open of the same kind. The last one drops the backing descriptors once the operations that use
// them are done, and takes LowerShared back to Lower.
// Errors: EBADF if no such open is left. A poisoned File can be closed.
func (f *File) Close(write bool) error {
	unused, err := f.countClose(write)
	f.closeAll(unused)
	return err
}

// countClose gives the backings to close, if any.
func (f *File) countClose(write bool) ([]*backing, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.opens == 0 || write && f.writers == 0 || !write && f.writers == f.opens {
		return nil, fmt.Errorf("copyup: close without open: %w", unix.EBADF)
	}
	f.opens--
	if write {
		f.writers--
	}
	if f.opens > 0 {
		return nil, nil
	}
	if f.state == LowerShared && f.copying == nil {
		f.stats.Avoided.Add(1)
	}
	err := f.moveLocked(lastClose)
	return f.dropLocked(), err
}

// begin starts an operation: until end, the backing descriptors stay cached.
// Errors: EIO if poisoned.
func (f *File) begin() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.poison != nil {
		return f.poison
	}
	f.users++
	return nil
}

// end ends an operation.
func (f *File) end() { f.closeAll(f.countEnd()) }

func (f *File) countEnd() []*backing {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.users--
	return f.dropLocked()
}

// dropLocked empties the cache if nobody needs it, and gives the backings to close after unlocking, if any.
// +checklocks:f.mu
func (f *File) dropLocked() []*backing {
	if f.opens > 0 || f.users > 0 {
		return nil
	}
	var unused []*backing
	for _, slot := range []**backing{&f.lower, &f.upper} {
		b := *slot
		*slot = nil
		if b.unrefLocked() {
			unused = append(unused, b)
		}
	}
	return unused
}

// moveLocked takes one step of the transition table.
// +checklocks:f.mu
func (f *File) moveLocked(e event) error {
	s, err := f.state.next(e)
	if err != nil {
		return err
	}
	f.state = s
	return nil
}

// Poison makes every later operation answer EIO, because nobody knows any longer what the file holds. The first cause is
// logged and kept. Operations in flight may still end as they would have.
func (f *File) Poison(cause error) {
	if f.setPoison(cause) {
		f.stats.Poisoned.Add(1)
		f.logf("copyup: file answers EIO from now on: %v", cause)
	}
}

func (f *File) setPoison(cause error) (first bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.wakeLocked()
	if f.poison != nil {
		return false
	}
	f.poison = fmt.Errorf("copyup: poisoned (%v): %w", cause, unix.EIO) // only EIO is in its chain
	return true
}

// Err gives nil, or why the File answers EIO.
func (f *File) Err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.poison
}

func (f *File) logf(format string, args ...any) {
	if f.opts.Log != nil {
		f.opts.Log(f.target, format, args...)
	}
}
