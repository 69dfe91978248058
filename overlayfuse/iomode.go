package overlayfuse

import (
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/copyup"
)

// The io mode of an open file, decided here and nowhere else.
//
//	cached       the pages of the FUSE inode are the one view that every reader, writer and mapping shares; the real files are where
//	             they come from and go to. Whatever has data in a lower file.
//	passthrough  the kernel reads, writes and maps the real file by itself, whose pages are the one view: no request, nothing held
//	             twice. A regular file that is complete in the upper, and every file of a mount that can't be written.
//	direct       passthrough for mappings; reads and writes come here, and go to the same pages. A writer of a file with set-id bits, so
//	             that they can be taken away: the kernel writes to a passthrough file with the server's rights.
//
// The kernel has an inode in one mode at a time, and answers EIO where an open's flags do not fit: so every open is as those that
// there are, and passthrough begins when no cached one is left. It never ends, since a mapping outlives its handle unseen; and no
// upper becomes less than complete. A lower file that could be written has no passthrough ever.
// Compare: fs/fuse/iomode.c (Linux 6.18).

// IOPolicy says which io modes a mount uses.
type IOPolicy uint8

const (
	// IOAuto uses passthrough where the kernel has it and lets the process use it.
	IOAuto IOPolicy = iota
	// IOPassthrough fails the mount where there is none.
	IOPassthrough
	// IOCached uses none.
	IOCached
)

func (p IOPolicy) String() string {
	switch p {
	case IOAuto:
		return "auto"
	case IOPassthrough:
		return "passthrough"
	case IOCached:
		return "cached"
	}
	return fmt.Sprintf("IOPolicy(%d)", uint8(p))
}

// wants says whether passthrough is asked of the kernel.
func (p IOPolicy) wants() bool { return p == IOPassthrough || p == IOAuto && privileged() }

// ioMode is that of one open.
type ioMode uint8

const (
	ioCached ioMode = iota
	ioPassthrough
)

// inodeIO is the io mode of an inode.
//
// Locks: mu is held while a backing file is registered; it comes before connection.mu and those of copyup.File.
type inodeIO struct {
	mu          sync.Mutex
	cached      int   // opens
	passthrough int   // opens, direct ones too
	mappable    int   // of these, how many a shared mapping can write through
	backing     int32 // while there are any of them
	// mapped: there was a mappable one. Its mapping may live, and nothing tells when it is gone.
	mapped bool
	// never: the kernel refused the backing file.
	never bool
}

// opening is how an open is answered.
type opening struct {
	mode    ioMode
	flags   uint32 // FOPEN
	backing int32
}

// mayMap tells whether a shared mapping of a descriptor with these open(2) flags can write.
func mayMap(flags uint32) bool { return flags&unix.O_ACCMODE == unix.O_RDWR }

// openIO decides the io mode of one more open of a regular file, and counts it.
//
// Errors: EIO where a mapping may live that no other mode would be coherent with.
func (fs *FS) openIO(in *inode, f *copyup.File, flags uint32, setID bool) (opening, error) {
	o := &in.io
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.passthrough > 0 || o.cached == 0 && !o.never && fs.canPassthrough(in, f) {
		err := fs.startPassthrough(o, f)
		if err == nil {
			return o.add(fs, in, flags, setID), nil
		}
		if o.mapped {
			return opening{}, err
		}
		o.never = true
		fs.log.WithError(err).WithField("ino", in.ino).Debug("overlay: no passthrough")
	}
	o.cached++
	return opening{mode: ioCached, flags: cachedFlags(canWrite(flags))}, nil
}

// canPassthrough tells a file whose data is all in one real file that may be written, or need not be.
func (fs *FS) canPassthrough(in *inode, f *copyup.File) bool {
	if !fs.passthrough {
		return false
	}
	switch f.State() {
	case copyup.Upper:
		return true
	case copyup.Lower, copyup.LowerShared:
		return fs.readOnly() && !in.upper().exists
	case copyup.UpperShared:
	}
	return false
}

// startPassthrough registers the real file, unless it is.
//
// Locks: o.mu is held.
func (fs *FS) startPassthrough(o *inodeIO, f *copyup.File) error {
	if o.backing != 0 {
		return nil
	}
	return f.WithCurrent(func(real *os.File) (err error) {
		o.backing, err = fs.conn.register(int(real.Fd()))
		return err
	})
}

// add counts a passthrough open.
//
// Locks: o.mu is held.
func (o *inodeIO) add(fs *FS, in *inode, flags uint32, setID bool) opening {
	a := opening{mode: ioPassthrough, flags: fuse.FOPEN_PASSTHROUGH | fuse.FOPEN_NOFLUSH, backing: o.backing}
	if setID && canWrite(flags) {
		a.flags |= fuse.FOPEN_DIRECT_IO
	}
	o.passthrough++
	if mayMap(flags) && !fs.readOnly() {
		o.mappable++
		if !o.mapped || o.mappable == 1 {
			o.mapped = true
			fs.conn.forgetAttr(in.id) // what the kernel has was to last
		}
	}
	return a
}

// closeIO takes an open back.
func (fs *FS) closeIO(in *inode, mode ioMode, flags uint32) {
	o := &in.io
	o.mu.Lock()
	defer o.mu.Unlock()
	if mode == ioCached {
		o.cached--
		return
	}
	o.passthrough--
	if mayMap(flags) && !fs.readOnly() {
		o.mappable--
	}
	if o.passthrough == 0 {
		fs.conn.unregister(o.backing)
		o.backing = 0
	}
}

// cachedFlags are the FOPEN flags of a cached open.
func cachedFlags(write bool) uint32 {
	flags := uint32(fuse.FOPEN_KEEP_CACHE)
	if !write {
		// Closing has nothing to say: it works, and costs nothing, also while no server lives.
		flags |= fuse.FOPEN_NOFLUSH
	}
	return flags
}

// openDirFlags are the FOPEN flags for a directory.
func openDirFlags() uint32 { return 0 }

// The kernel may believe an attribute or a name for a day: we are the only writer, and what a request changes the kernel
// invalidates itself.
const (
	cacheTime = 24 * time.Hour
	// afterMapping is how long it may believe attributes of a file that was open for shared mappings under passthrough: a store through
	// one that is left changes times, and nobody is told.
	afterMapping = time.Second
)

// attrTime is how long the kernel may believe the attributes of in.
func (in *inode) attrTime() time.Duration {
	in.io.mu.Lock()
	defer in.io.mu.Unlock()
	switch {
	case in.io.mappable > 0:
		return 0
	case in.io.mapped:
		return afterMapping
	}
	return cacheTime
}

// probePassthrough finds out whether the kernel takes real files on the mounted connection: at all, and of the upper.
//
// Errors: why not, if passthrough is a must.
func (fs *FS) probePassthrough() error {
	if !fs.cfg.IO.wants() {
		return nil
	}
	err := fs.tryPassthrough()
	if fs.passthrough = err == nil; err != nil && fs.cfg.IO == IOPassthrough {
		return fmt.Errorf("io=passthrough: %w", err)
	}
	if err != nil {
		fs.log.WithError(err).Info("overlay: no passthrough, all files are cached")
	}
	return nil
}

func (fs *FS) tryPassthrough() error {
	fd, err := unix.MemfdCreate("overlayfuse-probe", unix.MFD_CLOEXEC)
	if err == nil {
		err = fs.tryBacking(fd)
	}
	if err != nil {
		return fmt.Errorf("the kernel (6.9 or later, with CAP_SYS_ADMIN in the initial user namespace) takes no real files: %w", err)
	}
	if fs.readOnly() {
		return nil
	}
	if fd, err = fs.tmpfile(); err == nil {
		err = fs.tryBacking(fd)
	}
	if err != nil {
		return fmt.Errorf("upperdir %s: %w", fs.layers.upper.path, err)
	}
	return nil
}

// tryBacking registers a file and closes it.
func (fs *FS) tryBacking(fd int) error {
	defer closeFD(fd)
	id, err := fs.conn.register(fd)
	if err == nil {
		fs.conn.unregister(id)
	}
	return err
}

// stackDepth is how many file systems are below this one in the kernel's eyes. One that is 2 can't be a lower layer of the kernel's overlayfs.
func (fs *FS) stackDepth() int {
	r := fs.layers.lower[0]
	if fs.layers.hasUpper() {
		r = fs.layers.upper
	}
	if r.fsType == unix.OVERLAYFS_SUPER_MAGIC {
		return 2
	}
	return 1
}
