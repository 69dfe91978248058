package snapshotter

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// openRoot makes the directories, takes the lock and checks that the file system can hold layers.
func openRoot(path string) (_ rootDir, err error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return rootDir{}, fmt.Errorf("root %q is not an absolute, clean path: %w", path, errdefs.ErrInvalidArgument)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return rootDir{}, fmt.Errorf("root: %w", err)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil { // mountinfo knows only the real path
		return rootDir{}, fmt.Errorf("root: %w", err)
	}
	if strings.ContainsAny(path, ":,\\\n") {
		return rootDir{}, fmt.Errorf("root %q holds a colon, comma, backslash or newline, which mount options cannot carry: %w", path, errdefs.ErrInvalidArgument)
	}
	r := rootDir{path: path}
	if err := os.Chmod(path, 0o700); err != nil {
		return rootDir{}, fmt.Errorf("root: %w", err)
	}
	if r.lock, err = lockRoot(filepath.Join(path, "lock")); err != nil {
		return rootDir{}, err
	}
	defer func() {
		if err != nil {
			_ = r.close() // the first error is the one to report
		}
	}()
	for _, dir := range []string{r.empty(), r.snapshots(), r.mounts()} {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return rootDir{}, fmt.Errorf("root: %w", err)
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			return rootDir{}, fmt.Errorf("root: %w", err)
		}
	}
	if err := checkFileSystem(path); err != nil && !noRoom(err) { // a full disk keeps nobody from what is on it
		return rootDir{}, err
	}
	return r, r.checkMetadata()
}

// close gives the lock back. Closing twice is fine.
func (r *rootDir) close() error {
	if err := r.lock.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("unlock root: %w", err)
	}
	return nil
}

// lockRoot holds the lock for as long as the file is open: a killed process leaves no lock.
func lockRoot(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock root: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		owner, rerr := io.ReadAll(io.LimitReader(f, 32))
		_ = f.Close() // only read
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if pid := strings.TrimSpace(string(owner)); rerr == nil && pid != "" {
			return nil, fmt.Errorf("root %s is in use by process %s: %w", filepath.Dir(path), pid, errdefs.ErrFailedPrecondition)
		}
		return nil, fmt.Errorf("root %s is in use by another process: %w", filepath.Dir(path), errdefs.ErrFailedPrecondition)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	if err != nil && !noRoom(err) { // the lock holds without the pid
		_ = f.Close() // the write error is the one to report
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// checkMetadata refuses to take every snapshot for garbage because the metadata is not there (a wrong or half-restored volume).
func (r rootDir) checkMetadata() error {
	if _, err := os.Lstat(r.metadata()); err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	entries, err := os.ReadDir(r.snapshots())
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s is missing, but %s holds %d snapshots: restore it, or move the snapshots away: %w",
			r.metadata(), r.snapshots(), len(entries), errdefs.ErrFailedPrecondition)
	}
	return nil
}

// noRoom tells the errors of a file system that is full, or of a quota.
func noRoom(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// checkFileSystem tries what layers need, in a directory of its own.
//
// Errors: errdefs.ErrNotImplemented, with the errno; noRoom if there is no room to try it.
func checkFileSystem(root string) (err error) {
	unusable := func(what string, err error) error {
		if err != nil {
			return fmt.Errorf("root %s: its file system %s (%w): %w", root, what, err, errdefs.ErrNotImplemented)
		}
		return fmt.Errorf("root %s: its file system %s: %w", root, what, errdefs.ErrNotImplemented)
	}
	dir, err := os.MkdirTemp(root, "probe-")
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	defer func() {
		if rerr := os.RemoveAll(dir); err == nil {
			err = rerr
		}
	}()
	if err := unix.Setxattr(dir, "trusted.overlay.probe", []byte("y"), 0); err != nil {
		return unusable("has no trusted extended attributes", err)
	}
	if err := unix.Mknod(filepath.Join(dir, "whiteout"), unix.S_IFCHR, 0); err != nil {
		return unusable("cannot hold whiteouts, character devices 0/0", err)
	}
	tmp, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return unusable("has no unnamed files, O_TMPFILE", err)
	}
	_ = unix.Close(tmp) // nothing was written
	dtype, err := fs.SupportsDType(dir)
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	if !dtype {
		return unusable("gives no file types with directory entries, d_type (xfs: format it with ftype=1)", nil)
	}
	return nil
}

// probeKernelOverlay makes an overlay of the two directories and drops it; it is never mounted anywhere.
//
// Compare: Documentation/filesystems/overlayfs.rst, "redirect_dir=follow".
func probeKernelOverlay(upper, lower string) error {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen overlay: %w", err)
	}
	defer func() { _ = unix.Close(fd) }() // drops the superblock
	if err := unix.FsconfigSetString(fd, "lowerdir", upper+":"+lower); err != nil {
		return fmt.Errorf("overlay lowerdir: %w", err)
	}
	if err := unix.FsconfigSetString(fd, "redirect_dir", "follow"); err != nil {
		return fmt.Errorf("overlay redirect_dir=follow: %w", err)
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return fmt.Errorf("overlay: %w", err)
	}
	return nil
}
