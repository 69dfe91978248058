package snapshotter

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
)

// record is what the metadata says of one snapshot.
type record struct {
	key     string
	id      string
	info    snapshots.Info
	usage   snapshots.Usage
	parents []string // ids, the nearest first
}

// read is a read transaction that looks one snapshot up.
//
// Errors: errdefs.ErrNotFound.
func (s *Snapshotter) read(ctx context.Context, key string) (r record, err error) {
	err = s.store.WithTransaction(ctx, false, func(ctx context.Context) error {
		r, err = readRecord(ctx, key)
		return err
	})
	return r, err
}

// readRecord needs a transaction in the context.
func readRecord(ctx context.Context, key string) (record, error) {
	id, info, usage, err := storage.GetInfo(ctx, key)
	if err != nil {
		return record{}, fmt.Errorf("snapshot %s: %w", key, err)
	}
	parents, err := chain(ctx, info.Parent)
	if err != nil {
		return record{}, fmt.Errorf("snapshot %s: %w", key, err)
	}
	return record{key: key, id: id, info: info, usage: usage, parents: parents}, nil
}

// chain is the ids of a committed snapshot and all its parents, that snapshot first. It needs a transaction in the context.
func chain(ctx context.Context, name string) ([]string, error) {
	var ids []string
	for name != "" {
		id, info, _, err := storage.GetInfo(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("parent %s: %w", name, err)
		}
		ids = append(ids, id)
		name = info.Parent
	}
	return ids, nil
}

// lockRecord looks a snapshot up and takes its id's lock; what it returns holds while the lock is held.
//
// Errors: errdefs.ErrNotFound, the context's.
// Locks: takes the id's lock; no transaction is open.
func (s *Snapshotter) lockRecord(ctx context.Context, key string) (record, func(), error) {
	for {
		before, err := s.read(ctx, key)
		if err != nil {
			return record{}, nil, err
		}
		unlock, err := s.ids.lock(ctx, before.id)
		if err != nil {
			return record{}, nil, err
		}
		now, err := s.read(ctx, key)
		if err == nil && now.id == before.id {
			return now, unlock, nil
		}
		unlock()
		if err != nil {
			return record{}, nil, err
		}
	}
}

// kinds is every snapshot's kind by id. It needs a transaction in the context.
func kinds(ctx context.Context) (map[string]snapshots.Kind, error) {
	all := make(map[string]snapshots.Kind)
	err := storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
		id, _, _, err := storage.GetInfo(ctx, info.Name)
		if err != nil {
			return err
		}
		all[id] = info.Kind
		return nil
	})
	return all, err
}

// bucketProbe is a key that no snapshot has.
const bucketProbe = "overlayfuse/probe"

// prepareBuckets makes the buckets of a new store: containerd's storage makes them with the first snapshot only, and reading
// fails until then. The snapshot it makes is removed in the same transaction. A store that has them is only read, and needs no room.
func prepareBuckets(ctx context.Context, store *storage.MetaStore) error {
	err := store.WithTransaction(ctx, false, func(ctx context.Context) error {
		_, err := storage.IDMap(ctx)
		return err
	})
	if !errdefs.IsNotFound(err) {
		return err
	}
	return store.WithTransaction(ctx, true, func(ctx context.Context) error {
		if _, err := storage.CreateSnapshot(ctx, snapshots.KindActive, bucketProbe, ""); err != nil {
			return err
		}
		_, _, err := storage.Remove(ctx, bucketProbe)
		return err
	})
}
