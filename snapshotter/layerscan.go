package snapshotter

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// overlayXattr is the prefix of overlayfs's own attributes.
const overlayXattr = "trusted.overlay."

// diskBlock is the unit of st_blocks in bytes (stat(2)).
const diskBlock = 512

// layerScan walks one layer. Each directory is opened relative to its parent and no symlink is followed, so that a tree that
// changes meanwhile cannot lead out of the layer.
type layerScan struct {
	wantMarks     bool
	refuseWriters bool

	usage    snapshots.Usage
	marks    layerMarks
	metacopy string // the first file with trusted.overlay.metacopy, relative to the layer
	partial  string // the first one of them that the kernel's overlayfs cannot follow

	seen map[inodeKey]struct{}
	buf  []byte
}

type inodeKey struct{ dev, ino uint64 }

// scanLayer counts what containerd's fs.DiskUsage counts: every inode once, in 512-byte blocks.
// With wantMarks it also reads each file's attributes for the layer's marks.
func scanLayer(ctx context.Context, dir string, wantMarks bool) (*layerScan, error) {
	w := &layerScan{wantMarks: wantMarks, seen: make(map[inodeKey]struct{}), buf: make([]byte, 4096)}
	return w, w.run(ctx, dir)
}

// checkNoWriters refuses a layer of which a file is open for writing, by whomever.
//
// Errors: errdefs.ErrFailedPrecondition with EBUSY, with the file.
func checkNoWriters(ctx context.Context, dir string) error {
	return (&layerScan{refuseWriters: true, seen: make(map[inodeKey]struct{})}).run(ctx, dir)
}

// openUnseen are flags that open what a layer holds without a trace in it.
const openUnseen = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NOATIME | unix.O_CLOEXEC

func (w *layerScan) run(ctx context.Context, dir string) error {
	fd, err := unix.Open(dir, openUnseen|unix.O_DIRECTORY, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	root := os.NewFile(uintptr(fd), dir)
	defer func() { _ = root.Close() }() // only read
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	if err := w.inode(&st, "/proc/self/fd/"+strconv.Itoa(fd)+"/.", "."); err != nil {
		return fmt.Errorf("scan %s: %w", dir, err)
	}
	if err := w.directory(ctx, root, ""); err != nil {
		return fmt.Errorf("scan %s: %w", dir, err)
	}
	w.usage.Inodes = int64(len(w.seen))
	return nil
}

// directory scans the entries of d, whose path within the layer is rel. What vanishes meanwhile is left out.
func (w *layerScan) directory(ctx context.Context, d *os.File, rel string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	fd := int(d.Fd())
	for _, name := range names {
		path := filepath.Join(rel, name)
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			return &os.PathError{Op: "stat", Path: path, Err: err}
		}
		if err := w.inode(&st, fmt.Sprintf("/proc/self/fd/%d/%s", fd, name), path); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		sub, err := unix.Openat(fd, name, openUnseen|unix.O_DIRECTORY, 0)
		if err != nil {
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
				continue
			}
			return &os.PathError{Op: "open", Path: path, Err: err}
		}
		child := os.NewFile(uintptr(sub), path)
		err = w.directory(ctx, child, path)
		_ = child.Close() // only read
		if err != nil {
			return err
		}
	}
	return nil
}

// inode counts one file and takes its marks. proc leads to it without following a symlink of the layer.
func (w *layerScan) inode(st *unix.Stat_t, proc, rel string) error {
	key := inodeKey{st.Dev, st.Ino}
	if _, ok := w.seen[key]; !ok {
		w.seen[key] = struct{}{}
		w.usage.Size += st.Blocks * diskBlock
	}
	if w.refuseWriters && st.Mode&unix.S_IFMT == unix.S_IFREG {
		return refuseWriter(proc, rel)
	}
	if !w.wantMarks {
		return nil
	}
	if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
		w.marks.Whiteouts = true
	}
	names, err := w.xattrs(proc)
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return &os.PathError{Op: "list attributes", Path: rel, Err: err}
	}
	for name := range bytes.SplitSeq(names, []byte{0}) {
		mark, ok := strings.CutPrefix(string(name), overlayXattr)
		if !ok {
			continue
		}
		w.marks.Attributes = true
		switch mark {
		case "redirect":
			w.marks.Redirects = true
		case "metacopy":
			w.marks.Metacopy = true
			w.metacopy = cmp.Or(w.metacopy, rel)
			partial, err := isPartial(proc)
			if err != nil {
				return &os.PathError{Op: "read attribute of", Path: rel, Err: err}
			}
			if partial {
				w.partial = cmp.Or(w.partial, rel)
			}
		}
	}
	return nil
}

// refuseWriter asks for a read lease, which there is none of while a file is open for writing (fcntl(2)). Where there are no leases, it is
// not to be known.
func refuseWriter(proc, rel string) error {
	fd, err := unix.Open(proc, openUnseen|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: rel, Err: err}
	}
	defer func() { _ = unix.Close(fd) }() // the lease goes with it
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK); errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("%s is open for writing: %w: %w", rel, unix.EBUSY, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// isPartial tells a file some of whose data is its own and some below: its overlay.metacopy is not the kernel's, which is empty
// or has four bytes and more.
// Compare: fs/overlayfs/util.c:ovl_check_metacopy_xattr() (Linux 6.18); overlayfuse/marks.go.
func isPartial(proc string) (bool, error) {
	n, err := unix.Lgetxattr(proc, overlayXattr+"metacopy", nil)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOENT) { // taken away meanwhile
		return false, nil
	}
	return 0 < n && n < 4, err
}

// xattrs lists the names of a file's attributes; the result is good until the next call.
func (w *layerScan) xattrs(proc string) ([]byte, error) {
	for {
		n, err := unix.Llistxattr(proc, w.buf)
		switch {
		case err == nil:
			return w.buf[:n], nil
		case errors.Is(err, unix.ERANGE) && len(w.buf) < 1<<16: // XATTR_LIST_MAX (limits.h)
			w.buf = make([]byte, 1<<16)
		case errors.Is(err, unix.ENOTSUP):
			return nil, nil
		default:
			return nil, err
		}
	}
}
