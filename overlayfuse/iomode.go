package overlayfuse

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/copyup"
)

// The io mode of an open file, decided here and nowhere else.
//
//	cached       the pages of the FUSE inode are the one view that every reader, writer and mapping shares; the real files are where
//	             they come from and go to. Whatever has data in a lower file and is not shared.
//	passthrough  the kernel reads, writes and maps the real file by itself, whose pages are the one view: no request, nothing held
//	             twice. A regular file that is complete in the upper, and every file of a mount that can't be written.
//	direct       passthrough for mappings; reads and writes come here, and go to the same pages. A writer of a file with set-id bits, so
//	             that they can be taken away: the kernel writes to a passthrough file with the server's rights.
//	shared       a lower file's pages, which all mounts share: passthrough for an exec, which no writer can be beside, and else direct.
//	             What Sharing says: by default programs and libraries.
//
// The kernel has an inode in one mode at a time, and answers EIO where an open's flags do not fit: so every open is as those that
// there are, and passthrough begins when no cached one is left. That of an upper never ends, since a mapping outlives its handle
// unseen; and no upper becomes less than complete. A shared open never can write. Where an open that can meets shared ones, the inode
// is split: it gets a new nodeid, for all opens from then on, and the old one keeps its handles, whose reads come here and
// find what was written; only their mappings show the lower file still.
// Compare: fs/fuse/iomode.c (Linux 6.18).
//
// With IOWriteback, or where IOAuto comes to that, none of this happens: every file is cached, and the kernel opens without asking
// (open_files.go).

// IOPolicy says which io modes a mount uses.
type IOPolicy uint8

const (
	// IOAuto is IOPassthrough where the kernel has it, lets the process use it and takes the upper's files for it; elsewhere
	// IOWriteback.
	IOAuto IOPolicy = iota
	// IOPassthrough fails the mount where there is none.
	IOPassthrough
	// IOCached uses none. What is written reaches the upper before write(2) returns.
	IOCached
	// IOWriteback uses none either. What is written stays in the mount's page cache until it is closed, synced or old, and opening and
	// closing a file that exists is no request. Nothing is shared, whatever Sharing says.
	IOWriteback
)

func (p IOPolicy) String() string {
	switch p {
	case IOAuto:
		return "auto"
	case IOPassthrough:
		return "passthrough"
	case IOCached:
		return "cached"
	case IOWriteback:
		return "writeback"
	}
	return fmt.Sprintf("IOPolicy(%d)", uint8(p))
}

// takesNone says that the kernel was found to take no real files at all: no other mount of the process need try.
var takesNone atomic.Bool

// writeback tells a policy that can't come to passthrough, and wants what is next best.
func (p IOPolicy) writeback() bool {
	return p == IOWriteback || p == IOAuto && (!privileged() || takesNone.Load())
}

// wantsPassthrough says whether passthrough is asked of the kernel.
func (fs *FS) wantsPassthrough() bool { return fs.cfg.IO <= IOPassthrough && !fs.writeback }

// Sharing says which lower files of a mount that can be written use the lower's own pages, and so share them with other mounts.
type Sharing uint8

const (
	// SharingExec shares programs and libraries (ELF executables and shared objects) while they are run or mapped. A mapping of a
	// descriptor that was opened before such a file is written does not show the write, as on the kernel's overlayfs; read(2) does.
	SharingExec Sharing = iota
	// SharingNone shares nothing: a mapping of any file shows every write.
	SharingNone
	// SharingMapped is SharingExec for files of every kind. Each read(2) of a lower file is a request then.
	SharingMapped
	// SharingAll shares every lower file that is opened for reading, read(2) included: a descriptor that was opened before the
	// first write never shows it, nor any later one.
	SharingAll
)

func (s Sharing) String() string {
	switch s {
	case SharingExec:
		return "exec"
	case SharingNone:
		return "none"
	case SharingMapped:
		return "mapped"
	case SharingAll:
		return "all"
	}
	return fmt.Sprintf("Sharing(%d)", uint8(s))
}

// ioMode is that of one open.
type ioMode uint8

const (
	ioCached ioMode = iota
	ioPassthrough
)

// inodeIO is the io mode of one nodeid of an inode.
//
// Locks: mu is held while a backing file is registered; it comes before table.mu and those of copyup.File.
type inodeIO struct {
	id uint64 // nodeid

	mu          sync.Mutex
	cached      int   // opens
	storing     int   // of these, how many a shared mapping can write through
	passthrough int   // opens, direct and shared ones too
	mappable    int   // of these, how many a shared mapping can write through
	backing     int32 // while there are any of them
	shared      bool  // the backing file is the lower's, of a file that can be written
	// split: the nodeid was made for an open that changes the file. The caller looks the name up once, so the open must succeed then.
	split bool
	// mapped: there was a mappable one. Its mapping may live, and nothing tells when it is gone.
	mapped bool
	// never: the kernel refused the backing file.
	never bool
}

// opening is how an open is answered.
type opening struct {
	io      *inodeIO
	mode    ioMode
	flags   uint32 // FOPEN
	backing int32
}

// stores tells that pages which a mapping dirtied may be in the kernel, of which nobody knows here.
func (o *inodeIO) stores() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.storing > 0
}

// mayMap tells whether a shared mapping of a descriptor with these open(2) flags can write.
func mayMap(flags uint32) bool { return flags&unix.O_ACCMODE == unix.O_RDWR }

// ioState is the current nodeid's.
func (in *inode) ioState() *inodeIO {
	for {
		if o := in.io.Load(); o != nil {
			return o
		}
		in.io.CompareAndSwap(nil, &inodeIO{id: in.id.Load()})
	}
}

// splitFor makes the caller look the name up again if its open can't be of this nodeid: it was split off, or has to be.
//
// Errors: ESTALE. Compare: fs/namei.c:do_filp_open(), which then looks up without trust in what it has.
func (fs *FS) splitFor(in *inode, f *copyup.File, req *openRequest) error {
	o := in.ioState()
	o.mu.Lock()
	defer o.mu.Unlock()
	return fs.splitLocked(in, o, f, req)
}

// splitLocked is splitFor.
//
// Locks: o.mu is held.
func (fs *FS) splitLocked(in *inode, o *inodeIO, f *copyup.File, req *openRequest) error {
	switch {
	case o != in.io.Load() || req.nodeID != o.id:
		return unix.ESTALE
	case o.shared && (req.changes() || f.State() >= copyup.UpperShared):
		in.io.Store(&inodeIO{id: fs.tab.renumber(in), split: true})
		fs.conn.forgetAttr(o.id) // what is changed by the new nodeid does not reach it
		return unix.ESTALE
	}
	return nil
}

// openIO decides the io mode of one more open of a regular file, and counts it.
//
// Errors: ESTALE if the inode has been split; EIO where a mapping may live that no other mode would be coherent with.
func (fs *FS) openIO(in *inode, f *copyup.File, req *openRequest, setID bool) (opening, error) {
	o := in.ioState()
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := fs.splitLocked(in, o, f, req); err != nil {
		return opening{}, err
	}
	if o.passthrough > 0 {
		return o.add(fs, req, setID), nil
	}
	if o.cached == 0 && !o.never {
		err := fs.startPassthrough(in, o, f, req)
		if err == nil {
			return o.add(fs, req, setID), nil
		}
		if o.mapped {
			return opening{}, err
		}
		if !errors.Is(err, errCached) {
			o.never = true
			fs.log.WithError(err).WithField("ino", in.ino).Debug("overlay: no passthrough")
		}
	}
	o.cached++
	if mayMap(req.flags) {
		o.storing++
	}
	return opening{io: o, mode: ioCached, flags: cachedFlags(canWrite(req.flags))}, nil
}

// errCached says that an open is none for passthrough. It is no answer.
var errCached = errors.New("the policy says cached")

// startPassthrough registers the real file of an inode that has no open, if the policy says so.
//
// Errors: errCached; those of opening and registering it.
// Locks: o.mu is held.
func (fs *FS) startPassthrough(in *inode, o *inodeIO, f *copyup.File, req *openRequest) error {
	if !fs.passthrough {
		return errCached
	}
	register := func(real *os.File) (err error) {
		o.backing, err = fs.conn.register(int(real.Fd()))
		return err
	}
	switch {
	case f.State() == copyup.Upper:
		o.shared = false
		return f.WithUpper(register)
	case f.State() == copyup.UpperShared || in.upper().exists && fs.readOnly():
		return errCached
	case !fs.readOnly() && (req.changes() || o.split || !fs.shares(in, f)):
		return errCached
	}
	err := f.WithLower(register)
	if err != nil && o.backing != 0 {
		fs.conn.unregister(o.backing)
		o.backing = 0
	}
	if errors.Is(err, copyup.ErrMovedUp) {
		return errCached
	}
	o.shared = err == nil && !fs.readOnly()
	return err
}

// shares tells whether a lower file's own pages may be used on a mount that can be written.
func (fs *FS) shares(in *inode, f *copyup.File) bool {
	switch fs.cfg.Sharing {
	case SharingExec:
		return isELF(in, f)
	case SharingMapped, SharingAll:
		return true
	case SharingNone:
	}
	return false
}

// isELF tells a program or a shared object, by its first bytes. It is found out once: what is shared is not written.
func isELF(in *inode, f *copyup.File) bool {
	const unknown, no, yes = 0, 1, 2
	if v := in.elf.Load(); v != unknown {
		return v == yes
	}
	var head [18]byte // e_ident and e_type of elf(5)
	n, err := f.ReadAt(head[:], 0)
	if err != nil {
		return false
	}
	v := uint32(no)
	const typeExec, typeShared = 2, 3
	if n == len(head) && string(head[:4]) == "\x7fELF" {
		// e_type has the byte order of e_ident[EI_DATA]; one of its bytes is 0.
		if t := head[16] | head[17]; t == typeExec || t == typeShared {
			v = yes
		}
	}
	in.elf.Store(v)
	return v == yes
}

// modeExec is in the flags of an open for execve(2). Source: include/linux/fs.h:__FMODE_EXEC (Linux 6.18).
const modeExec = 0x20

// add counts a passthrough open.
//
// Locks: o.mu is held.
func (o *inodeIO) add(fs *FS, req *openRequest, setID bool) opening {
	a := opening{io: o, mode: ioPassthrough, flags: fuse.FOPEN_PASSTHROUGH | fuse.FOPEN_NOFLUSH, backing: o.backing}
	if setID && canWrite(req.flags) || o.shared && req.flags&modeExec == 0 && fs.cfg.Sharing != SharingAll {
		// The kernel lets writes side by side only where no cached open is (fs/fuse/file.c:fuse_dio_wr_exclusive_lock()); under
		// passthrough it is the real file's file system that decides.
		a.flags |= fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES
	}
	o.passthrough++
	if mayMap(req.flags) && !fs.readOnly() {
		o.mappable++
		if o.mappable == 1 {
			o.mapped = true
			fs.conn.forgetAttr(o.id) // what the kernel has was to last
		}
	}
	return a
}

// close takes an open back.
func (o *inodeIO) close(fs *FS, mode ioMode, flags uint32) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if mode == ioCached {
		o.cached--
		if mayMap(flags) {
			o.storing--
		}
		return
	}
	o.passthrough--
	if mayMap(flags) && !fs.readOnly() {
		o.mappable--
	}
	if o.passthrough == 0 {
		fs.conn.unregister(o.backing)
		o.backing, o.shared = 0, false
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

// The kernel may believe an attribute or a name for a day: we are the only writer, and what a request changes the kernel
// invalidates itself.
const (
	cacheTime = 24 * time.Hour
	// afterMapping is how long it may believe attributes of a file that was open for shared mappings under passthrough: a store through
	// one that is left changes times, and nobody is told.
	afterMapping = time.Second
)

// attrTime is how long the kernel may believe the attributes of in under a nodeid.
func (in *inode) attrTime(id uint64) time.Duration {
	if id != in.id.Load() {
		return 0
	}
	o := in.io.Load()
	if o == nil {
		return cacheTime
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.mappable > 0:
		return 0
	case o.mapped:
		return afterMapping
	}
	return cacheTime
}

// changed makes the kernel ask again for attributes that it may have changed through an older nodeid: it knows no better of the newest one.
func (fs *FS) changed(in *inode) {
	if o := in.io.Load(); o != nil && o.split {
		fs.conn.forgetAttr(o.id)
	}
}

// freshen makes the kernel write back what was stored in mappings of the newest nodeid, before a handle of an older one reads n bytes at off.
func (fs *FS) freshen(h *handle, off, n int64) {
	if h.io != nil && h.io != h.in.io.Load() {
		fs.writeBackStores(h.in, off, n)
	}
}

// writeBackStores makes the kernel write back what was stored in mappings of n bytes at off; 0: of all behind it.
//
// Locks: none that a write takes.
func (fs *FS) writeBackStores(in *inode, off, n int64) {
	if o := in.io.Load(); o != nil && o.stores() {
		fs.conn.writeBack(o.id, off, n)
	}
}

// errNoPassthrough says that the connection has to be made anew, with the kernel's writeback cache: the kernel has one or the other.
var errNoPassthrough = errors.New("no passthrough")

// probePassthrough finds out whether the kernel takes real files on the mounted connection: at all, and of the upper.
//
// Errors: why not, if passthrough is a must; errNoPassthrough if it is not, and fs is then one that can be mounted without.
func (fs *FS) probePassthrough() error {
	if !fs.wantsPassthrough() {
		return nil
	}
	err := fs.tryPassthrough()
	fs.passthrough = err == nil
	switch {
	case err == nil:
		return nil
	case fs.cfg.IO == IOPassthrough:
		return fmt.Errorf("io=passthrough: %w", err)
	}
	fs.log.WithError(err).Info("overlay: no passthrough, the kernel writes back (io=writeback)")
	fs.writeback = true
	return errNoPassthrough
}

func (fs *FS) tryPassthrough() error {
	fd, err := unix.MemfdCreate("overlayfuse-probe", unix.MFD_CLOEXEC)
	if err == nil {
		err = fs.tryBacking(fd)
		// Before Linux 6.9; without CONFIG_FUSE_PASSTHROUGH. Anything else is of this mount alone.
		if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) {
			takesNone.Store(true)
		}
	}
	if err != nil {
		return fmt.Errorf("the kernel (6.9 or later, with CAP_SYS_ADMIN in the initial user namespace) takes no real files: %w", err)
	}
	if fs.readOnly() {
		return nil
	}
	if fd, err = fs.tmpfile(0o600); err == nil {
		err = fs.tryBacking(fd)
	} else if copyup.NoRoom(err) && fs.layers.upper.fsType != unix.OVERLAYFS_SUPER_MAGIC { // of the others the kernel takes files
		return nil
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
