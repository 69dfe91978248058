package overlayfuse

import (
	"container/list"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/copyup"
)

// Files of a mount whose kernel opens without asking (io=writeback). The first OPEN is answered ENOSYS, and the kernel then sends neither
// OPEN nor FLUSH nor RELEASE: nobody here knows what is open. Whatever comes for a file comes with its nodeid and handle 0, also long
// after close(2) and unlink(2); the kernel has the inode then, so it has its place here. The descriptors of the real files are opened by
// the first request that needs them, and kept for the next one.
// Compare: fs/fuse/file.c:fuse_file_open() (Linux 6.18), no_open.

// opensUnasked tells that the kernel opens files without asking.
func (fs *FS) opensUnasked() bool { return fs.writeback }

// How many files are kept open beyond those in use: by one mount, by all mounts of the process together, and by one mount where all
// together have too many; and for how long after their last use. A file has two descriptors at most.
const (
	filesKept      = 512
	filesKeptAll   = 4096
	filesKeptFloor = 16
	keepFor        = 100 * time.Millisecond
)

// filesOpen counts those that are kept by this process: the limit is the process's, whatever mounts it serves.
var filesOpen atomic.Int64

// keptFile is a file that one Open of copyup.File keeps open.
type keptFile struct {
	file *copyup.File
	used time.Time
}

// openFiles keeps the files that were used last open. The zero value is empty.
//
// Locks: mu is a leaf and held across no system call.
type openFiles struct {
	mu      sync.Mutex
	order   list.List // of *keptFile, the most recently used first
	byFile  map[*copyup.File]*list.Element
	dropped []*copyup.File // open still, and to be closed
	timer   *time.Timer    // runs while there is anything
	closed  bool
}

// opened is the open file that a request is about.
//
// Errors: EBADF; where the kernel opens without asking, ESTALE and those of opening the real file.
func (fs *FS) opened(nodeID, fh uint64) (*handle, fuse.Status) {
	if !fs.opensUnasked() {
		return fs.handles.get(fh)
	}
	in, s := fs.node(nodeID)
	if !s.Ok() {
		return nil, s
	}
	if in.typ != unix.S_IFREG {
		return nil, fuse.EINVAL
	}
	f := fs.data(in)
	if fs.files.use(f) {
		return &handle{in: in, data: f}, fuse.OK
	}
	if err := fs.keep(f, nil); err != nil {
		return nil, fs.fail("open", in, err)
	}
	return &handle{in: in, data: f}, fuse.OK
}

// keepNew answers for a file that was just made. It takes file over, the upper file if it is open: the data comes soon.
func (fs *FS) keepNew(in *inode, file *os.File, out *fuse.CreateOut) fuse.Status {
	if file != nil {
		if err := fs.keep(fs.data(in), file); err != nil {
			fs.tab.forget(in, 1)
			return fs.fail("open", in, err)
		}
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fs.answer("create", in, &out.EntryOut)
}

// keep opens a file, of which upper may be the upper, and keeps it open.
func (fs *FS) keep(f *copyup.File, upper *os.File) error {
	err := f.OpenWith(upper, false)
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) { // no caller's fault, who may not even hear of it
		fs.closeKept(fs.files.idle(time.Now())...)
		err = f.OpenWith(nil, false)
	}
	if err != nil {
		return err
	}
	fs.closeKept(fs.files.add(f, fs.sweepFiles)...)
	return nil
}

// sweepFiles closes what was not used for a while.
func (fs *FS) sweepFiles() { fs.closeKept(fs.files.idle(time.Now().Add(-keepFor))...) }

// closeDropped closes the files of inodes that are gone.
func (fs *FS) closeDropped() { fs.closeKept(fs.files.takeDropped()...) }

// closeFiles closes all. No request may be running.
func (fs *FS) closeFiles() { fs.closeKept(fs.files.close()...) }

func (fs *FS) closeKept(files ...*copyup.File) {
	for _, f := range files {
		if err := f.Close(false); err != nil {
			fs.log.WithError(err).Error("overlay: close")
		}
	}
}

// use tells whether a file is kept open, and notes the use.
func (o *openFiles) use(f *copyup.File) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	e := o.byFile[f]
	if e == nil {
		return false
	}
	keptOf(e).used = time.Now()
	o.order.MoveToFront(e)
	return true
}

// add keeps a file that was opened, and gives what is to be closed instead. sweep is called some time after.
func (o *openFiles) add(f *copyup.File, sweep func()) (unwanted []*copyup.File) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || o.byFile[f] != nil {
		return []*copyup.File{f}
	}
	if o.byFile == nil {
		o.byFile = map[*copyup.File]*list.Element{}
	}
	o.byFile[f] = o.order.PushFront(&keptFile{f, time.Now()})
	filesOpen.Add(1)
	for n := o.order.Len(); n > filesKept || n > filesKeptFloor && filesOpen.Load() > filesKeptAll; n-- {
		unwanted = append(unwanted, o.remove(o.order.Back()))
	}
	switch {
	case o.timer == nil:
		o.timer = time.AfterFunc(keepFor, sweep)
	case o.order.Len() == 1:
		o.timer.Reset(keepFor)
	}
	return unwanted
}

// idle gives the files that were not used since then, to be closed, and those that were dropped.
func (o *openFiles) idle(since time.Time) []*copyup.File {
	o.mu.Lock()
	defer o.mu.Unlock()
	unwanted := o.dropped
	o.dropped = nil
	for e := o.order.Back(); e != nil && keptOf(e).used.Before(since); e = o.order.Back() {
		unwanted = append(unwanted, o.remove(e))
	}
	if o.order.Len() > 0 && !o.closed {
		o.timer.Reset(keepFor)
	}
	return unwanted
}

// drop forgets a file, which takeDropped gives then. Nil is no file.
func (o *openFiles) drop(f *copyup.File) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if e := o.byFile[f]; e != nil {
		o.dropped = append(o.dropped, o.remove(e))
		o.timer.Reset(keepFor)
	}
}

// takeDropped gives the files that were dropped, to be closed.
func (o *openFiles) takeDropped() []*copyup.File {
	o.mu.Lock()
	defer o.mu.Unlock()
	d := o.dropped
	o.dropped = nil
	return d
}

// close gives all files, to be closed, and keeps no more.
func (o *openFiles) close() []*copyup.File {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	all := o.dropped
	for e := o.order.Back(); e != nil; e = o.order.Back() {
		all = append(all, o.remove(e))
	}
	if o.timer != nil {
		o.timer.Stop()
	}
	return all
}

// count is how many files are kept open.
func (o *openFiles) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.order.Len() + len(o.dropped)
}

// Locks: mu is held.
func (o *openFiles) remove(e *list.Element) *copyup.File {
	f := keptOf(e).file
	o.order.Remove(e)
	delete(o.byFile, f)
	filesOpen.Add(-1)
	return f
}

func keptOf(e *list.Element) *keptFile {
	k, _ := e.Value.(*keptFile) // nothing else is in the list
	return k
}
