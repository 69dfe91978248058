package snapshotter

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
)

// usageShare bounds the time spent on measuring one snapshot: a measurement is answered again for at least this many times as
// long as it took. CRI asks for every snapshot's usage every few seconds.
const usageShare = 20

// usageCache remembers measurements of active snapshots.
type usageCache struct {
	ttl time.Duration

	mu sync.Mutex
	m  map[string]*measurement // by id; +checklocks:mu
}

// measurement is the last one of a snapshot. Its lock is held while the snapshot is measured, so that it is measured once.
type measurement struct {
	mu    sync.Mutex
	usage snapshots.Usage // +checklocks:mu
	until time.Time       // +checklocks:mu
}

func (c *usageCache) of(id string) *measurement {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		c.m = make(map[string]*measurement)
	}
	if c.m[id] == nil {
		c.m[id] = &measurement{}
	}
	return c.m[id]
}

func (c *usageCache) forget(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.m, id)
}

// Usage is the disk space and inodes of a snapshot itself, without its parents: as measured at commit or, of an active
// snapshot, measured now or lately.
//
// Errors: errdefs.ErrNotFound.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	r, err := s.read(ctx, key)
	if err != nil {
		return snapshots.Usage{}, err
	}
	if r.info.Kind != snapshots.KindActive {
		return r.usage, nil
	}
	m := s.usage.of(r.id)
	m.mu.Lock()
	defer m.mu.Unlock()
	start := time.Now()
	if start.Before(m.until) {
		return m.usage, nil
	}
	scan, err := scanLayer(ctx, s.root.layer(r.id), false)
	if err != nil {
		return snapshots.Usage{}, err
	}
	m.usage = scan.usage
	m.until = time.Now().Add(max(s.usage.ttl, usageShare*time.Since(start)))
	return m.usage, nil
}
