package overlayfuse

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/copyup"
)

// nameMax is the length of a name in bytes (NAME_MAX of limits.h).
const nameMax = 255

// maxWrite is the largest READ and WRITE. With splice off no pipe limits it.
const maxWrite = 1 << 20

// FS is one overlay. It implements go-fuse's RawFileSystem; a Session serves it.
type FS struct {
	fuse.RawFileSystem

	cfg    Config
	layers *layers
	prefix string   // of the overlay's xattrs: "trusted.overlay." or "user.overlay."
	chain  *chain   // shared: owned by layers
	origin *origins // of the chain
	index  *index   // nil without an upper
	dirs   *dirCache
	inos   *inoMap
	tab    *table
	root   *inode
	log    *logrus.Entry
	copies copyup.Stats
	engine copyup.Options // of every file; constant once the file system is open

	// generation is that of all inodes: another one in each mount, since nodeids come again, and a file handle of an earlier mount
	// (name_to_handle_at(2)) must not open another file.
	generation uint64

	euid, egid  int // of the process, and so of what it makes
	conn        connection
	passthrough bool // the kernel takes real files; set before the mount is used, as is writeback
	writeback   bool // the kernel writes back and opens without asking

	// ns is held for reading while the path of an upper directory is turned into a descriptor, for writing while a directory is renamed.
	ns sync.RWMutex

	// mending is held while an upper that lost its size gets it back (lookup.go). A leaf, but for table.mu.
	mending sync.Mutex

	lost    *lostWrites // nil without an upper that can be written
	ahead   lookAhead
	flushes flushGate
	handles handleTable
	orders  *dirOrders
	files   openFiles
	times   timeLocks
	temps   tempNames
}

var _ fuse.RawFileSystem = (*FS)(nil)

// New opens the layers of cfg and checks them. Nothing is mounted; see Mount.
//
// Errors: of the configuration and the layers, each with the path at fault.
func New(cfg Config) (*FS, error) {
	l, err := openLayers(cfg)
	if err != nil {
		return nil, err
	}
	fs := &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		cfg:           cfg,
		layers:        l,
		prefix:        l.namespace.Prefix(),
		dirs:          newDirCache(),
		inos:          newInoMap(),
		tab:           newTable(),
		log:           cfg.Log,
		euid:          os.Geteuid(),
		egid:          os.Getegid(),
		writeback:     cfg.IO.writeback(),
		generation:    uint64(rand.Uint32() | 1), // of 32 bits in a handle
	}
	if fs.log == nil {
		fs.log = logrus.NewEntry(logrus.StandardLogger())
	}
	if err := fs.openEngine(); err != nil {
		_ = l.close() // the cause is the error that is returned
		return nil, err
	}
	fs.handles.byID = map[uint64]*handle{}
	fs.orders = newDirOrders()
	fs.chain, fs.origin = l.shared.chain, l.shared.origin
	if err := fs.openRoot(); err != nil {
		_ = fs.Close() // the cause is the error that is returned
		return nil, err
	}
	return fs, nil
}

// openEngine finds out how the upper's file system can copy up.
func (fs *FS) openEngine() error {
	// Of a mount that can't be written nothing is to be synced, or to become plain.
	fs.engine = copyup.Options{Volatile: fs.cfg.Volatile || fs.readOnly(), PartialAbove: fs.cfg.partialAbove(), Stats: &fs.copies, Log: fs.logData}
	if !fs.layers.hasUpper() || fs.cfg.ReadOnly {
		fs.engine.Unit = 4096 // what an upper that is only read was written with, on most; alignment is checked
	}
	if !fs.layers.hasUpper() {
		return nil
	}
	unit, err := fs.probeUnit()
	if err != nil {
		if fs.cfg.ReadOnly {
			return nil
		}
		return fmt.Errorf("upperdir %s: %w", fs.layers.upper.path, err)
	}
	fs.engine.Unit = unit
	if unit == 0 {
		fs.log.WithField("path", fs.layers.upper.path).Warn("the upper's file system does not tell data from holes: files are copied up whole")
	}
	fs.engine.LooseNames, fs.engine.StaleTails = !fs.keepsOrder(), fs.layers.upper.fsType == unix.BTRFS_SUPER_MAGIC
	if !fs.readOnly() {
		fs.lost, fs.engine.Lost = openLost(fs.layers.work), fs.noteLost
		fs.engine.Background = copyup.NewBackground(fs.cfg.background())
	}
	return fs.settleNames()
}

// probeUnit tries how the upper's file system tells data from holes (copyup.Options.Unit). Where there is no room to try, it is known of most.
func (fs *FS) probeUnit() (unit int64, err error) {
	fd, err := fs.tmpfile(0o600)
	if err == nil {
		f := os.NewFile(uintptr(fd), "probe")
		unit, err = copyup.ProbeUnit(f)
		_ = f.Close() // it has no name, and nothing that matters
	}
	if !copyup.NoRoom(err) {
		return unit, err
	}
	switch fs.layers.upper.fsType {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC:
		var sfs unix.Statfs_t
		if err := unix.Fstatfs(fs.layers.upper.fd, &sfs); err != nil {
			return 0, fmt.Errorf("statfs: %w", err)
		}
		fs.log.WithError(err).WithField("path", fs.layers.upper.path).Warn("the upper's file system has no room, and is not tried")
		return sfs.Bsize, nil
	}
	return 0, err
}

func (fs *FS) openRoot() error {
	lower := fs.layers.shared.root
	root := &inode{fs: fs, seq: fuse.FUSE_ROOT_ID, typ: unix.S_IFDIR, lower: lower, root: true, nlookup: 1, hashed: true}
	if fs.layers.hasUpper() {
		st, err := statAt(fs.layers.upper.fd, "")
		if err != nil {
			return fmt.Errorf("upper %s: %w", fs.layers.upper.path, err)
		}
		fs.inos.number(keyOf(&st)) // the upper's file system comes first
		root.raise().upperObj = upperObj{exists: true, key: keyOf(&st)}
		d := &dirFD{fd: fs.layers.index.fd}
		d.refs.Store(1)
		fs.index, err = openIndex(fs.layers.index, d)
		if err != nil {
			return err
		}
	}
	root.key = lower.st.key()
	root.ino = fs.inos.number(root.key)
	root.id.Store(root.seq)
	fs.tab.byID.put(root)
	fs.tab.byKey.put(root)
	fs.tab.last = root.seq
	fs.root = root
	return nil
}

// Close gives up every descriptor. No request may be running.
func (fs *FS) Close() error {
	fs.flushes.close()
	fs.engine.Background.Close()
	fs.closeFiles()
	fs.orders.close()
	for _, in := range fs.tab.all() {
		fs.dropFile(in)
		in.mu.Lock()
		pin := in.unpin()
		in.mu.Unlock()
		if pin != nil {
			pin.release()
		}
	}
	fs.dirs.close()
	return fs.layers.close()
}

func (fs *FS) String() string { return "overlayfuse" }

// readOnly tells that nothing may change.
func (fs *FS) readOnly() bool { return fs.cfg.ReadOnly || !fs.layers.hasUpper() }

// mountOptions are the options for go-fuse that the file system needs.
func (fs *FS) mountOptions() *fuse.MountOptions {
	caps := uint64(fuse.CAP_DONT_MASK | fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_SETXATTR_EXT | fuse.CAP_IOCTL_DIR |
		fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_ASYNC_DIO | fuse.CAP_CACHE_SYMLINKS | fuse.CAP_DIRECT_IO_ALLOW_MMAP | fuse.CAP_ABORT_ERROR)
	without := uint64(fuse.CAP_AUTO_INVAL_DATA)
	if !fs.wantsPassthrough() {
		without |= fuse.CAP_PASSTHROUGH
	}
	if fs.opensUnasked() {
		caps |= fuse.CAP_WRITEBACK_CACHE
	} else {
		caps |= fuse.CAP_ATOMIC_O_TRUNC // an OPEN that is never sent could truncate nothing
		without |= fuse.CAP_NO_OPEN_SUPPORT
	}
	return &fuse.MountOptions{
		AllowOther:               true,
		EnableAcl:                !fs.cfg.NoACL,
		ExplicitDataCacheControl: true,
		MaxWrite:                 maxWrite,
		MaxReadAhead:             maxWrite,
		DisableSplice:            true,
		MaxBackground:            64,
		ExtraCapabilities:        caps,
		DisabledCapabilities:     without,
		MaxStackDepth:            fs.stackDepth(),
	}
}

// fail turns an error into the request's answer. One without an errno is EIO and is logged, as is every EIO.
func (fs *FS) fail(op string, in *inode, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	var errno unix.Errno
	if !errors.As(err, &errno) {
		errno = unix.EIO
	}
	switch errno {
	case unix.EIO, unix.EUCLEAN, unix.ESTALE, unix.EBADF:
		l := fs.log.WithField("op", op)
		if in != nil {
			l = l.WithField("ino", in.ino)
		}
		l.WithError(err).Error("overlay: request failed")
	case unix.EINVAL, unix.ENOSPC, unix.EDQUOT:
		fs.log.WithField("op", op).WithError(err).Debug("overlay: request failed")
	default: // the caller's own business
	}
	return fuse.Status(errno)
}

// node is the inode of a request.
//
// Errors: ESTALE for a nodeid that was never given out, or taken back.
func (fs *FS) node(id uint64) (*inode, fuse.Status) {
	in := fs.tab.get(id)
	if in == nil {
		return nil, fuse.Status(unix.ESTALE)
	}
	return in, fuse.OK
}

// Forget takes lookups back.
func (fs *FS) Forget(id, n uint64) {
	if in := fs.tab.get(id); in != nil {
		fs.tab.forget(in, n)
		fs.closeDropped()
	}
}

// StatFs is the upper's file system, or that of the first lower layer of a mount without an upper.
// Compare: fs/overlayfs/super.c:ovl_statfs().
func (fs *FS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	root := fs.layers.lower[0]
	if fs.layers.hasUpper() {
		root = fs.layers.upper
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(root.fd, &st); err != nil {
		return fs.fail("statfs", nil, fmt.Errorf("statfs %s: %w", root.path, err))
	}
	*out = fuse.StatfsOut{Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
		Bsize: uint32(st.Bsize), Frsize: uint32(st.Frsize), NameLen: nameMax}
	return fuse.OK
}
