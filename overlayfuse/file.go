package overlayfuse

import (
	"errors"
	"fmt"
	"os"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/copyup"
)

// Open opens a regular file. It copies nothing, whatever the flags, unless they truncate: the first write does.
//
// Errors: ENOSYS where the kernel is to open without asking.
func (fs *FS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if fs.opensUnasked() {
		return fuse.ENOSYS
	}
	n, s := fs.node(in.NodeId)
	if !s.Ok() {
		return s
	}
	o := openRequest{nodeID: in.NodeId, flags: in.Flags, caller: in.Caller, killSetID: in.Mode&fuse.OPEN_KILL_SUIDGID != 0}
	return fs.fail("open", n, fs.open(n, o, out))
}

// canWrite tells what open(2) flags ask for.
func canWrite(flags uint32) bool { return flags&unix.O_ACCMODE != unix.O_RDONLY }

// openRequest is what the kernel asks for.
type openRequest struct {
	nodeID    uint64
	flags     uint32 // of open(2)
	caller    fuse.Caller
	killSetID bool     // with O_TRUNC, by a caller without CAP_FSETID
	file      *os.File // the upper of a file that was just made; nil: it is to be opened
	setID     bool     // that file has set-id bits
}

// changes tells an open that can write, or truncates, which O_RDONLY does too.
func (o *openRequest) changes() bool { return canWrite(o.flags) || o.flags&unix.O_TRUNC != 0 }

// open opens a regular file and fills the answer.
func (fs *FS) open(in *inode, o openRequest, out *fuse.OpenOut) error {
	if in.typ != unix.S_IFREG {
		return fmt.Errorf("open of a %s: %w", fileType(in.typ), unix.EINVAL)
	}
	write := canWrite(o.flags)
	if fs.readOnly() && o.changes() {
		return unix.EROFS
	}
	f := fs.data(in)
	if err := f.OpenWith(o.file, write); err != nil {
		return err
	}
	a, err := fs.prepareOpen(in, f, o)
	if err != nil {
		return errors.Join(err, f.Close(write))
	}
	if a.mode == ioCached && !write && fs.atimeDue(in) {
		a.flags &^= fuse.FOPEN_KEEP_CACHE
	}
	out.Fh = fs.handles.add(&handle{in: in, data: f, flags: o.flags, io: a.io, mode: a.mode, seen: f.Failures()})
	out.OpenFlags, out.BackingID = a.flags, a.backing
	return nil
}

// prepareOpen is what is done between counting an open and answering it: whatever can fail.
func (fs *FS) prepareOpen(in *inode, f *copyup.File, o openRequest) (a opening, err error) {
	setID := o.setID
	if o.changes() && o.file == nil {
		if setID, err = fs.mayWrite(in, f, o.flags&unix.O_APPEND != 0); err != nil {
			return a, err
		}
	}
	if err := fs.splitFor(in, f, &o); err != nil {
		return a, err
	}
	if o.flags&unix.O_TRUNC != 0 {
		if err := f.Truncate(0); err != nil {
			return a, err
		}
		if o.killSetID {
			if err := fs.dropSetID(in, o.caller); err != nil {
				return a, err
			}
		}
	}
	return fs.openIO(in, f, &o, setID)
}

// mayWrite refuses what is found out only by opening the real file for writing. setID: it is in the upper and has set-id bits.
func (fs *FS) mayWrite(in *inode, f *copyup.File, appending bool) (setID bool, err error) {
	if !in.upper().exists {
		return false, fs.mayCopyUp(in)
	}
	var sx unix.Statx_t
	stat := func(fd int) error {
		if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_TYPE|unix.STATX_MODE, &sx); err != nil {
			return fmt.Errorf("statx upper: %w", err)
		}
		return nil
	}
	if f.State() >= copyup.UpperShared { // it is open
		err = f.WithUpper(func(real *os.File) error { return stat(int(real.Fd())) })
	} else {
		var fd int
		if fd, err = fs.openUpperPath(in); err != nil {
			return false, err
		}
		defer closeFD(fd)
		err = stat(fd)
	}
	if err == nil && (sx.Attributes&unix.STATX_ATTR_IMMUTABLE != 0 || sx.Attributes&unix.STATX_ATTR_APPEND != 0 && !appending) {
		err = unix.EPERM
	}
	return sx.Mode&(unix.S_ISUID|unix.S_ISGID) != 0, err
}

// daySeconds is how old an access time may get under relatime (mount(8)).
const daySeconds = 24 * 60 * 60

// atimeDue tells that the next read must reach the upper file, for its file system to set the access time.
// Compare: fs/inode.c:relatime_need_update().
func (fs *FS) atimeDue(in *inode) bool {
	if !in.upper().exists || fs.cfg.Atime == AtimeNone || fs.readOnly() {
		return false
	}
	if fs.cfg.Atime == AtimeStrict {
		return true
	}
	st, err := fs.stat(in)
	if err != nil {
		return false
	}
	after := func(a, b unix.Timespec) bool { return a.Sec > b.Sec || a.Sec == b.Sec && a.Nsec > b.Nsec }
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
		return false
	}
	return !after(st.Atim, st.Mtim) || !after(st.Atim, st.Ctim) || now.Sec-st.Atim.Sec >= daySeconds
}

// Read fills buf.
func (fs *FS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h, s := fs.opened(in.NodeId, in.Fh)
	if !s.Ok() {
		return nil, s
	}
	fs.freshen(h, int64(in.Offset), int64(in.Size))
	n, err := h.data.ReadAt(buf[:min(len(buf), int(in.Size))], int64(in.Offset))
	if err != nil {
		// Whatever was read before the error: the kernel takes a short answer for the end of the file.
		return nil, fs.fail("read", h.in, err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Write is write(2), or the kernel's writeback of a mapped page.
func (fs *FS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h, s := fs.opened(in.NodeId, in.Fh)
	if !s.Ok() {
		return 0, s
	}
	write := fs.write
	if fs.opensUnasked() {
		write = fs.writeUnasked
	}
	n, err := write(h, in, data)
	if in.WriteFlags&fuse.WRITE_CACHE != 0 && n < len(data) && err == nil {
		err = fmt.Errorf("wrote %d of %d bytes: %w", n, len(data), unix.EIO)
	}
	// A caller can go on after a short write; writeback takes any answer but an error for the whole.
	if err != nil && in.WriteFlags&fuse.WRITE_CACHE != 0 {
		fs.noteLostPage(h.in, err)
		return 0, fs.fail("write", h.in, err)
	}
	if err != nil && n == 0 {
		return 0, fs.fail("write", h.in, err)
	}
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		if err := fs.dropSetID(h.in, in.Caller); err != nil {
			return 0, fs.fail("write", h.in, err)
		}
	}
	return uint32(n), fuse.OK
}

// write writes to the upper. A store into a mapped page is no write(2): it leaves the file's capability, which writing to the
// upper takes away. (Of a write(2), the kernel has removed it before.)
func (fs *FS) write(h *handle, in *fuse.WriteIn, data []byte) (int, error) {
	if in.WriteFlags&fuse.WRITE_CACHE == 0 {
		return h.data.WriteAt(data, int64(in.Offset), syncMode(in))
	}
	caps, err := fs.getXattr(h.in, capabilityXattr)
	if err != nil && !noXattr(err) {
		return 0, err
	}
	n, werr := h.data.WriteAt(data, int64(in.Offset), syncMode(in))
	if caps == nil {
		return n, werr
	}
	err = fs.onUpper(h.in, func(fd int) error { return setXattrFD(fd, capabilityXattr, caps, 0) })
	return n, errors.Join(werr, err)
}

func syncMode(in *fuse.WriteIn) copyup.SyncMode {
	switch {
	case in.WriteFlags&fuse.WRITE_CACHE != 0:
		return copyup.SyncNone
	case in.Flags&unix.O_SYNC == unix.O_SYNC:
		return copyup.SyncAll
	case in.Flags&unix.O_DSYNC != 0:
		return copyup.SyncData
	}
	return copyup.SyncNone
}

// dropSetID takes set-id bits away from a file of the upper that the caller changed.
func (fs *FS) dropSetID(in *inode, caller fuse.Caller) error {
	return fs.onUpper(in, func(fd int) error { return fs.killSetID(fd, caller) })
}

// truncate sets the size of a regular file.
func (fs *FS) truncate(in *inode, size int64) error {
	if in.typ != unix.S_IFREG {
		return unix.EINVAL
	}
	f := fs.data(in)
	err := fs.untimed(in, f, func() error { return f.Truncate(size) })
	if err == nil && size == 0 {
		fs.toldLostPage(in)
	}
	return err
}

// Release closes a file.
func (fs *FS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	h := fs.handles.remove(in.Fh)
	if h == nil {
		return
	}
	if h.io != nil {
		h.io.close(fs, h.mode, h.flags)
	}
	if err := h.data.Close(canWrite(h.flags)); err != nil {
		fs.log.WithError(err).WithField("ino", h.in.ino).Error("overlay: close")
	}
}

// Flush has nothing to do: writes have reached the upper when they return. The kernel writes dirty mapped pages back
// before it asks, and after this answer it asks no more.
func (fs *FS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// Fsync makes a file's data durable.
func (fs *FS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h, s := fs.opened(in.NodeId, in.Fh)
	if !s.Ok() {
		return s
	}
	const dataOnly = 1  // FUSE_FSYNC_FDATASYNC
	sync := h.data.Sync // where the kernel opens without asking, it tells each descriptor itself
	if !fs.opensUnasked() {
		sync = func(dataOnly bool) error { return h.data.SyncFor(dataOnly, &h.seen) }
	}
	if err := sync(in.FsyncFlags&dataOnly != 0); err != nil {
		return fs.fail("fsync", h.in, err)
	}
	if fs.lost != nil {
		fs.toldLostPage(h.in)
	}
	return fs.fail("fsync", h.in, fs.syncMetacopy(h))
}

// syncMetacopy makes the attributes of an upper without data durable.
func (fs *FS) syncMetacopy(h *handle) error {
	if h.data.State() >= copyup.UpperShared || !h.in.upper().exists || fs.cfg.Volatile {
		return nil
	}
	return fs.syncUpper(h.in)
}

// syncUpper is fsync(2) of the upper object itself, a file or a directory.
func (fs *FS) syncUpper(in *inode) error {
	fd, err := fs.openUpperPath(in)
	if err != nil {
		return err
	}
	defer closeFD(fd)
	f, err := openReal(fd, unix.O_RDONLY)
	if err != nil {
		return err
	}
	return syncClose(f, "upper")
}

// Fallocate is fallocate(2) in every mode that the upper's file system has.
func (fs *FS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	h, s := fs.opened(in.NodeId, in.Fh)
	if !s.Ok() {
		return s
	}
	err := fs.untimed(h.in, h.data, func() error { return h.data.Allocate(in.Mode, int64(in.Offset), int64(in.Length)) })
	if err != nil {
		return fs.fail("fallocate", h.in, err)
	}
	if in.Uid != 0 { // root keeps set-id bits, as with CAP_FSETID; the request does not tell capabilities
		return fs.fail("fallocate", h.in, fs.dropSetID(h.in, in.Caller))
	}
	return fuse.OK
}

// Lseek is SEEK_DATA and SEEK_HOLE. What was stored in a mapping is data too, as soon as it was: the kernel, which does not write it back
// before it asks, is made to.
//
// Errors: ENOSYS with io=writeback, where this is so of every write, and to drop a file's cache at each call would cost more: then
// everything is data.
// Compare: fs/fuse/file.c:fuse_lseek() (Linux 6.18).
func (fs *FS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if fs.opensUnasked() {
		return fuse.ENOSYS
	}
	h, s := fs.opened(in.NodeId, in.Fh)
	if !s.Ok() {
		return s
	}
	if h.data == nil {
		return fuse.EINVAL
	}
	fs.writeBackStores(h.in, 0, 0)
	off, err := h.data.Seek(int64(in.Offset), int(in.Whence))
	out.Offset = uint64(off)
	return fs.fail("lseek", h.in, err)
}

// CopyFileRange copies inside the server, on the real files.
func (fs *FS) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	src, s := fs.opened(in.NodeId, in.FhIn)
	if !s.Ok() {
		return 0, s
	}
	dst, s := fs.opened(in.NodeIdOut, in.FhOut)
	if !s.Ok() {
		return 0, s
	}
	const most = 1 << 30 // the answer has 32 bits
	fs.freshen(src, int64(in.OffIn), int64(min(in.Len, most)))
	var n int64
	err := fs.untimed(dst.in, dst.data, func() (err error) {
		n, err = src.data.CopyRange(dst.data, int64(in.OffIn), int64(in.OffOut), int64(min(in.Len, most)))
		return err
	})
	if n == 0 && err != nil {
		return 0, fs.fail("copy_file_range", dst.in, err)
	}
	if n > 0 && in.Uid != 0 { // as in Fallocate
		if err := fs.dropSetID(dst.in, in.Caller); err != nil {
			return 0, fs.fail("copy_file_range", dst.in, err)
		}
	}
	return uint32(n), fuse.OK
}
