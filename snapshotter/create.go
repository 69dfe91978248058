package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// tempPrefix names a snapshot directory that is being made; garbagePrefix one that is to be deleted. Neither can be an id.
const (
	tempPrefix    = "new-"
	garbagePrefix = "garbage-"
)

// undoTimeout bounds what is undone after the caller's context may have ended.
const undoTimeout = 10 * time.Second

// Prepare makes an active snapshot and returns its mounts; a container's is mounted when Prepare returns.
//
// Crash: see doc.go, "Crashes".
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindActive, key, parent, opts)
}

// View makes a read-only snapshot and returns its mounts.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindView, key, parent, opts)
}

func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) ([]mount.Mount, error) {
	if err := checkLabels(opts); err != nil {
		return nil, err
	}
	if err := s.store.WithTransaction(ctx, true, func(ctx context.Context) error {
		return s.createLocked(ctx, kind, key, parent, opts)
	}); err != nil {
		return nil, err
	}
	mounts, err := s.Mounts(ctx, key)
	if err == nil {
		return mounts, nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if rerr := s.Remove(undo, key); rerr != nil && !errdefs.IsNotFound(rerr) {
		err = errors.Join(err, fmt.Errorf("undo: %w", rerr))
	}
	return nil, err
}

// createLocked makes directory and metadata of a snapshot.
//
// Preconditions: a write transaction is in the context.
// Crash: a directory new-* or, after the rename, one without an id in the metadata.
func (s *Snapshotter) createLocked(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) (err error) {
	temp, err := os.MkdirTemp(s.root.snapshots(), tempPrefix)
	if err != nil {
		return fmt.Errorf("create snapshot %s: %w", key, err)
	}
	defer func() {
		if err != nil && temp != "" {
			if rerr := os.RemoveAll(temp); rerr != nil {
				s.log.WithError(rerr).Warn("a directory is left for Cleanup")
			}
		}
	}()
	sn, err := storage.CreateSnapshot(ctx, kind, key, parent, opts...)
	if err != nil {
		return fmt.Errorf("create snapshot: %w", err)
	}
	if len(sn.ParentIDs) > MaxLayers {
		return fmt.Errorf("create snapshot %s: %d layers, at most %d are possible: %w", key, len(sn.ParentIDs), MaxLayers, errdefs.ErrInvalidArgument)
	}
	if err := s.fillDirectory(temp, sn); err != nil {
		return fmt.Errorf("create snapshot %s: %w", key, err)
	}
	dir := s.root.snapshot(sn.ID)
	// A crash between the rename and the end of the transaction left a directory, and gave its id back.
	if err := os.Rename(dir, s.root.snapshot(garbageName(sn.ID))); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("create snapshot %s: %w", key, err)
	}
	if err := os.Rename(temp, dir); err != nil {
		return fmt.Errorf("create snapshot %s: %w", key, err)
	}
	temp = "" // if the transaction fails now, Cleanup finds the directory: it alone knows whether the id came to be
	return syncDirectory(s.root.snapshots())
}

// fillDirectory makes fs and, for an active snapshot, work. The layer's root looks like its parent's.
func (s *Snapshotter) fillDirectory(temp string, sn storage.Snapshot) error {
	fs := filepath.Join(temp, "fs")
	if err := os.Mkdir(fs, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(fs, 0o755); err != nil { // whatever the umask
		return err
	}
	if sn.Kind == snapshots.KindActive {
		if err := os.Mkdir(filepath.Join(temp, "work"), 0o711); err != nil {
			return err
		}
	}
	if len(sn.ParentIDs) > 0 {
		return copyRootAttributes(s.root.layer(sn.ParentIDs[0]), fs)
	}
	return nil
}

// copyRootAttributes gives a layer's root directory owner, mode, times and attributes of another's, but overlayfs's own.
func copyRootAttributes(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return &os.PathError{Op: "stat", Path: from, Err: err}
	}
	if err := unix.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return &os.PathError{Op: "chown", Path: to, Err: err}
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: to, Err: err}
	}
	if err := copyRootXattrs(from, to); err != nil {
		return err
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "set times of", Path: to, Err: err}
	}
	return nil
}

func copyRootXattrs(from, to string) error {
	names := make([]byte, 1<<16) // XATTR_LIST_MAX, XATTR_SIZE_MAX (limits.h)
	n, err := unix.Llistxattr(from, names)
	if err != nil {
		return &os.PathError{Op: "list attributes of", Path: from, Err: err}
	}
	value := make([]byte, 1<<16)
	for _, name := range strings.Split(string(names[:n]), "\x00") {
		if name == "" || strings.HasPrefix(name, overlayXattr) {
			continue
		}
		v, err := unix.Lgetxattr(from, name, value)
		if err != nil {
			return fmt.Errorf("read attribute %s of %s: %w", name, from, err)
		}
		if err := unix.Lsetxattr(to, name, value[:v], 0); err != nil {
			return fmt.Errorf("write attribute %s of %s: %w", name, to, err)
		}
	}
	return nil
}

// syncDirectory makes the names in a directory durable.
func syncDirectory(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	defer func() { _ = d.Close() }() // only read
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return nil
}

// checkLabels refuses what would silently give a container the wrong owners, and what means nothing.
func checkLabels(opts []snapshots.Opt) error {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return err
		}
	}
	for _, label := range []string{snapshots.LabelSnapshotUIDMapping, snapshots.LabelSnapshotGIDMapping} {
		if v, ok := info.Labels[label]; ok {
			return fmt.Errorf("label %s=%s: id-mapped snapshots are not supported, take remap-ids out of the plugin's capabilities: %w",
				label, v, errdefs.ErrNotImplemented)
		}
	}
	_, err := sharing(info.Labels)
	return err
}
