package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// reconcile brings mounts in line with the metadata: mounts of removed and committed snapshots go, those of live snapshots
// stay and are made writable if a commit was cut short, and dead mounts are taken off their mount points.
//
// Errors: errdefs.ErrUnavailable if mounts of the mount server live and it cannot be asked; then nothing changed.
func (s *Snapshotter) reconcile(ctx context.Context) error {
	points, err := os.ReadDir(s.root.mounts())
	if err != nil {
		return err
	}
	served := make(map[string]bool)
	specs, err := s.cfg.Mounter.Mounted(ctx)
	if errdefs.IsUnavailable(err) {
		table, terr := readMountTable()
		if terr != nil || table.hasFUSE(s.root.mounts()) {
			return errors.Join(err, terr)
		}
	} else if err != nil {
		return err
	}
	ids := make(map[string]bool)
	for _, p := range points {
		ids[p.Name()] = true
	}
	for _, spec := range specs {
		if rest, ok := strings.CutPrefix(spec.ID, s.root.mounts()+"/"); ok {
			served[rest], ids[rest] = true, true
		}
	}
	var faults []error
	for id := range ids {
		if err := s.reconcileOne(ctx, id, served[id]); err != nil {
			faults = append(faults, fmt.Errorf("mount %s: %w", id, err))
		}
	}
	return errors.Join(faults...)
}

// reconcileOne brings one mount in line.
func (s *Snapshotter) reconcileOne(ctx context.Context, id string, served bool) error {
	unlock, err := s.ids.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	var known map[string]snapshots.Kind
	if err := s.store.WithTransaction(ctx, false, func(ctx context.Context) error {
		known, err = kinds(ctx)
		return err
	}); err != nil {
		return err
	}
	kind, point := known[id], s.root.mountPoint(id)
	switch {
	case kind != snapshots.KindActive && kind != snapshots.KindView:
		if served {
			if err := s.cfg.Mounter.Unmount(ctx, point); err != nil {
				return err
			}
		}
		return s.dropMountPoint(point)
	case !served:
		// Another call may have mounted it since; ask again under the lock.
		if live, err := s.serving(ctx, point); live != nil || err != nil {
			if errdefs.IsUnavailable(err) {
				err = detach(point)
			}
			return err
		}
		return detach(point)
	}
	mounted, readOnly, err := mountedAt(point)
	if err == nil && mounted && readOnly && kind == snapshots.KindActive {
		err = setReadOnly(point, false)
	}
	return err
}
