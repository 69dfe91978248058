package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Commit makes an active snapshot a layer: complete (see doc.go, "Metacopy"), durable (but for an extraction, whose durability is
// containerd's choice) and never changing again.
//
// What takes long is the flush: the mount server logs its progress, and "overlayfuse inspect" shows it. It ends with ctx, and the
// next Commit goes on where it ended.
//
// A mount that is still bound somewhere is made read-only first, for every bind of it, and stays so. If a file in it is open
// for writing, Commit fails: what is written later could only be lost or change a committed layer.
//
// Errors: errdefs.ErrNotFound, ErrAlreadyExists, ErrFailedPrecondition (not active, or in use as said), or what made the flush
// fail, with its errno. After an error the snapshot is active, mounted, writable and intact.
// Crash: active, perhaps read-only, until the transaction; committed, perhaps still mounted, after it. reconcile ends both.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	r, unlock, err := s.lockRecord(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	c := commit{s: s, r: r, name: name, opts: opts}
	if err := c.check(ctx); err != nil {
		return fmt.Errorf("commit snapshot %s: %w", key, err)
	}
	if c.way == wayFUSE {
		err = c.frozen(ctx, c.finish)
	} else {
		err = c.finish(ctx)
	}
	if err != nil {
		return fmt.Errorf("commit snapshot %s: %w", key, err)
	}
	s.unmount(ctx, r.id)
	if _, err := s.dropWork(r.id); err != nil {
		s.log.WithError(err).Warn("a work directory is left for Cleanup")
	}
	s.usage.forget(r.id)
	return nil
}

// commit is one call of Commit. The id's lock is held for all of it.
type commit struct {
	s    *Snapshotter
	r    record // with the parents it will have
	way  way    // with the parents it had
	name string
	opts []snapshots.Opt

	spec    MountSpec // what is to be flushed
	rebased bool      // the parent comes with the commit
}

// check finds what would make the transaction fail, before anything is flushed.
func (c *commit) check(ctx context.Context) (err error) {
	if c.r.info.Kind != snapshots.KindActive {
		return fmt.Errorf("it is not active: %w", errdefs.ErrFailedPrecondition)
	}
	if c.way, err = c.s.wayOf(ctx, c.r); err != nil {
		return err
	}
	var base snapshots.Info
	for _, opt := range c.opts {
		if err := opt(&base); err != nil {
			return err
		}
	}
	if err := c.s.store.WithTransaction(ctx, false, func(ctx context.Context) error {
		_, _, _, err := storage.GetInfo(ctx, c.name)
		switch {
		case err == nil:
			return fmt.Errorf("snapshot %s: %w", c.name, errdefs.ErrAlreadyExists)
		case !errdefs.IsNotFound(err):
			return err
		}
		if c.r.info.Parent == "" && base.Parent != "" {
			c.rebased = true
			if c.r.parents, err = chain(ctx, base.Parent); err != nil {
				return err
			}
			if len(c.r.parents) > MaxLayers {
				return fmt.Errorf("%d layers, at most %d are possible: %w", len(c.r.parents), MaxLayers, errdefs.ErrInvalidArgument)
			}
		}
		return nil
	}); err != nil {
		return err
	}
	c.spec = c.s.spec(c.r)
	return nil
}

// frozen runs f while the mount is read-only, and makes it writable again if f fails.
func (c *commit) frozen(ctx context.Context, f func(context.Context) error) error {
	live, err := c.s.serving(ctx, c.spec.ID)
	if err != nil {
		return err
	}
	if live != nil {
		c.spec = *live // the options may have been others when it was mounted
		mounted, _, err := mountedAt(c.spec.MountPoint)
		switch {
		case err != nil:
			return err
		case !mounted:
			return fmt.Errorf("%s was unmounted by somebody else while it is still in use: %w", c.spec.MountPoint, errdefs.ErrFailedPrecondition)
		}
	}
	if err := endWriting(ctx, c.spec.MountPoint, c.s.root.layer(c.r.id), live != nil); err != nil {
		return err
	}
	if live == nil {
		return f(ctx)
	}
	if err := setReadOnly(c.spec.MountPoint, true); err != nil {
		return err
	}
	if err := f(ctx); err != nil {
		if rerr := setReadOnly(c.spec.MountPoint, false); rerr != nil {
			return fmt.Errorf("%w (and it stays read-only until its next use: %w)", err, rerr)
		}
		return err
	}
	return nil
}

// finish flushes, measures and commits.
func (c *commit) finish(ctx context.Context) error {
	if err := c.flush(ctx); err != nil {
		return err
	}
	scan, err := c.scanComplete(ctx)
	if err != nil {
		return err
	}
	if c.rebased && c.way == wayExtract {
		if err := copyRootAttributes(c.s.root.layer(c.r.parents[0]), c.s.root.layer(c.r.id)); err != nil {
			return err
		}
	}
	if err := c.s.writeMarks(c.r.id, scan.marks); err != nil {
		return err
	}
	if err := c.s.store.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, err := storage.CommitActive(ctx, c.r.key, c.name, scan.usage, c.opts...)
		return err
	}); err != nil {
		return err
	}
	c.s.marks.put(c.r.id, scan.marks)
	return nil
}

// flush makes the layer durable.
func (c *commit) flush(ctx context.Context) error {
	switch c.way {
	case wayFUSE:
		if err := c.s.cfg.Mounter.Flush(ctx, c.spec, FlushOptions{KeepMetacopy: c.s.cfg.KeepMetacopy}); err != nil {
			return fmt.Errorf("flush: %w", err)
		}
	case wayBind:
		return syncFileSystem(c.s.root.layer(c.r.id))
	case wayExtract, wayViewBind, wayViewOverlay, wayViewFUSE:
	}
	return nil
}

// scanComplete scans the layer, which afterwards holds no partial file, and metacopy files only if a container may leave them.
// containerd's applier makes neither (it refuses trusted attributes in archives), but whoever mounts an extraction or a bind as
// root can.
//
// Errors: errdefs.ErrFailedPrecondition, with the file that stayed incomplete.
func (c *commit) scanComplete(ctx context.Context) (*layerScan, error) {
	scan, err := scanLayer(ctx, c.s.root.layer(c.r.id), true)
	if err != nil || c.incomplete(scan) == "" {
		return scan, err
	}
	if c.way != wayFUSE {
		if err := c.s.cfg.Mounter.Flush(ctx, c.spec, FlushOptions{}); err != nil {
			return nil, fmt.Errorf("complete %s: %w", c.incomplete(scan), err)
		}
		if scan, err = scanLayer(ctx, c.s.root.layer(c.r.id), true); err != nil {
			return nil, err
		}
	}
	if file := c.incomplete(scan); file != "" {
		return nil, fmt.Errorf("%s has not all of its data after the flush: %w", file, errdefs.ErrFailedPrecondition)
	}
	return scan, nil
}

// incomplete is a file that must not be committed as it is; empty if there is none.
func (c *commit) incomplete(scan *layerScan) string {
	if c.way == wayFUSE && c.s.cfg.KeepMetacopy {
		return scan.partial
	}
	return scan.metacopy
}

// dropWork takes the work directory of a committed snapshot away. If it is not empty, it gets a garbage name, which is returned.
func (s *Snapshotter) dropWork(id string) (garbage string, err error) {
	work := s.root.work(id)
	if err := os.Remove(work); err == nil || errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	garbage = garbageName(id)
	return garbage, os.Rename(work, s.root.snapshot(garbage))
}

// syncFileSystem writes the directory's file system back. Its errors include those of earlier writebacks that nobody saw.
func syncFileSystem(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer func() { _ = unix.Close(fd) }() // only read
	if err := unix.Syncfs(fd); err != nil {
		return &os.PathError{Op: "syncfs", Path: dir, Err: err}
	}
	return nil
}
