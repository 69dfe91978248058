package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
)

// Remove forgets a snapshot and has it unmounted; the key is free at once. Its files are deleted by Cleanup: containerd calls
// Remove inside its own locks, so it does nothing that takes longer with more files.
//
// Errors: errdefs.ErrNotFound; errdefs.ErrFailedPrecondition if the snapshot has children.
// Crash: after the transaction, a directory without an id and perhaps a mount without a snapshot.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	r, unlock, err := s.lockRecord(ctx, key)
	if err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	if err := s.store.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, _, err := storage.Remove(ctx, key)
		return err
	}); err != nil {
		unlock()
		return fmt.Errorf("remove snapshot %s: %w", key, err)
	}
	s.marks.forget(r.id)
	s.usage.forget(r.id)
	// A mount server gives a mount that is still in use some time to end. Whoever needs the outcome waits for the id's lock.
	s.background.Go(func() {
		defer unlock()
		s.unmount(ctx, r.id)
	})
	return nil
}

// unmount takes a snapshot's mount away, if it has one. Nobody can be told of an error any more; reconcile tries again.
//
// Locks: the id's lock is held.
func (s *Snapshotter) unmount(ctx context.Context, id string) {
	point := s.root.mountPoint(id)
	if err := s.dropDead(id); err != nil {
		s.log.WithError(err).Warn("a dead mount is left for Cleanup")
	}
	if _, err := os.Lstat(point); errors.Is(err, os.ErrNotExist) {
		return
	}
	// the snapshot is gone whatever becomes of the caller
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	err := s.cfg.Mounter.Unmount(ctx, point)
	if err == nil {
		err = s.dropMountPoint(point)
	}
	if err != nil {
		s.log.WithError(err).WithField("mountpoint", point).Warn("a mount is left for Cleanup")
	}
}

// dropMountPoint removes an unused mount point, and what is still mounted on it.
func (s *Snapshotter) dropMountPoint(point string) error {
	if err := detach(point); err != nil {
		return err
	}
	if err := os.Remove(point); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
