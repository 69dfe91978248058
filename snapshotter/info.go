package snapshotter

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"

	"github.com/overlayfuse/overlayfuse-snapshotter/config"
)

// sharingLabel says for one snapshot what the configuration says for all: see config.Sharing. It descends from the image to its
// containers' snapshots.
const sharingLabel = "containerd.io/snapshot/overlayfuse.sharing"

// sharing is the mount option that a snapshot's labels ask for, or none.
//
// Errors: errdefs.ErrInvalidArgument.
func sharing(labels map[string]string) ([]string, error) {
	v, ok := labels[sharingLabel]
	if !ok {
		return nil, nil
	}
	var s config.Sharing
	if err := s.UnmarshalText([]byte(v)); err != nil {
		return nil, fmt.Errorf("label %s: %w: %w", sharingLabel, err, errdefs.ErrInvalidArgument)
	}
	return []string{"sharing=" + v}, nil
}

// upperdirLabel is the label that shows where a snapshot's own changes are.
// Compare: containerd plugins/snapshots/overlay/overlay.go:upperdirKey (2.4.2).
const upperdirLabel = "containerd.io/snapshot/overlay.upperdir"

// Stat returns what is known of a snapshot.
//
// Errors: errdefs.ErrNotFound.
func (s *Snapshotter) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	r, err := s.read(ctx, key)
	if err != nil {
		return snapshots.Info{}, err
	}
	return s.labelled(r.id, r.info), nil
}

// Update changes labels.
//
// Errors: errdefs.ErrNotFound; errdefs.ErrInvalidArgument for a field that is not a label, and a value that means nothing.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (snapshots.Info, error) {
	var id string
	err := s.store.WithTransaction(ctx, true, func(ctx context.Context) (err error) {
		if info, err = storage.UpdateInfo(ctx, info, fieldpaths...); err != nil {
			return err
		}
		if _, err = sharing(info.Labels); err != nil {
			return err
		}
		id, _, _, err = storage.GetInfo(ctx, info.Name)
		return err
	})
	if err != nil {
		return snapshots.Info{}, err
	}
	return s.labelled(id, info), nil
}

// Walk calls fn for every snapshot that the filters match, in the state of one moment. No transaction is open meanwhile, so fn
// may call the snapshotter and take its time.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	var all []snapshots.Info
	if err := s.store.WithTransaction(ctx, false, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
			id, _, _, err := storage.GetInfo(ctx, info.Name)
			if err != nil {
				return err
			}
			all = append(all, s.labelled(id, info))
			return nil
		}, filters...)
	}); err != nil {
		return err
	}
	for _, info := range all {
		if err := fn(ctx, info); err != nil {
			return err
		}
	}
	return nil
}

// labelled adds the upper directory's label, if it is wanted.
func (s *Snapshotter) labelled(id string, info snapshots.Info) snapshots.Info {
	if !s.cfg.UpperdirLabel {
		return info
	}
	if info.Labels == nil {
		info.Labels = make(map[string]string)
	}
	info.Labels[upperdirLabel] = s.root.layer(id)
	return info
}
