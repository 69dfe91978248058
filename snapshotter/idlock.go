package snapshotter

import (
	"context"
	"fmt"
	"sync"
)

// idLocks is one lock per snapshot id. It orders mounting, committing and removing one snapshot.
type idLocks struct {
	mu sync.Mutex
	m  map[string]*idLock // +checklocks:mu
}

type idLock struct {
	held  chan struct{} // capacity 1: full while the lock is held
	users int           // holder and waiters; protected by idLocks.mu
}

// lock waits for the id's lock and returns what unlocks it.
//
// Errors: the context's.
func (l *idLocks) lock(ctx context.Context, id string) (unlock func(), err error) {
	l.mu.Lock()
	if l.m == nil {
		l.m = make(map[string]*idLock)
	}
	e := l.m[id]
	if e == nil {
		e = &idLock{held: make(chan struct{}, 1)}
		l.m[id] = e
	}
	e.users++
	l.mu.Unlock()

	select {
	case e.held <- struct{}{}:
		return func() {
			<-e.held
			l.drop(id, e)
		}, nil
	case <-ctx.Done():
		l.drop(id, e)
		return nil, fmt.Errorf("wait for snapshot %s: %w", id, ctx.Err())
	}
}

func (l *idLocks) drop(id string, e *idLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.users--; e.users == 0 {
		delete(l.m, id)
	}
}
