package snapshotter

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// reconcile brings mounts in line with the metadata: mounts of removed and committed snapshots go, those of live snapshots
// stay and are made writable if a commit was cut short, and dead mounts are taken off their mount points.
//
// It gives what could not be done of single mounts.
//
// Errors: errdefs.ErrUnavailable if mounts of the mount server live and it cannot be asked; then nothing changed.
func (s *Snapshotter) reconcile(ctx context.Context) (faults []error, err error) {
	points, err := os.ReadDir(s.root.mounts())
	if err != nil {
		return nil, err
	}
	table, err := readMountTable()
	if err != nil {
		return nil, err
	}
	specs, err := s.cfg.Mounter.Mounted(ctx)
	unavailable := errdefs.IsUnavailable(err)
	if err != nil && (!unavailable || table.hasFUSE(s.root.mounts())) {
		return nil, err
	}
	known, err := s.kindsNow(ctx)
	if err != nil {
		return nil, err
	}
	ids, served := make(map[string]bool), make(map[string]bool)
	for _, p := range points {
		ids[p.Name()] = true // or a name of putAside
	}
	for _, spec := range specs {
		if id, ok := strings.CutPrefix(spec.ID, s.root.mounts()+"/"); ok {
			ids[id], served[id] = true, true
		}
	}
	readOnly := table.readOnlyBelow(s.root.mounts())
	for id := range ids {
		if unavailable && live(known[id]) { // it has no mount, and nobody who would have to be asked again
			continue
		}
		if live(known[id]) && served[id] && (known[id] == snapshots.KindView || !readOnly[id]) {
			continue
		}
		if err := s.reconcileOne(ctx, id, served[id]); err != nil {
			faults = append(faults, fmt.Errorf("mount %s: %w", id, err))
		}
	}
	return faults, nil
}

// live tells the kinds of snapshot that are mounted.
func live(k snapshots.Kind) bool { return k == snapshots.KindActive || k == snapshots.KindView }

func (s *Snapshotter) kindsNow(ctx context.Context) (known map[string]snapshots.Kind, err error) {
	err = s.store.WithTransaction(ctx, false, func(ctx context.Context) error {
		known, err = kinds(ctx)
		return err
	})
	return known, err
}

// reconcileOne brings one mount in line. What was seen of it before may have changed, so it is looked at again.
func (s *Snapshotter) reconcileOne(ctx context.Context, name string, served bool) error {
	id, dead := deadOf(name)
	unlock, err := s.ids.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	known, err := s.kindsNow(ctx)
	if err != nil {
		return err
	}
	point := s.root.mountPoint(name)
	if !live(known[id]) {
		if served {
			if err := s.cfg.Mounter.Unmount(ctx, point); err != nil {
				return err
			}
		}
		return s.dropMountPoint(point)
	}
	if dead {
		return s.reconcileDead(ctx, point, s.root.mountPoint(id))
	}
	now, err := s.serving(ctx, point)
	if err != nil {
		return err
	}
	if now == nil {
		return s.retire(ctx, point)
	}
	mounted, readOnly, err := mountedAt(point)
	if err == nil && mounted && readOnly && known[id] == snapshots.KindActive {
		err = setReadOnly(point, false)
	}
	return err
}
