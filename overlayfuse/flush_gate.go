package overlayfuse

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// flushGate keeps the descriptors of a file system open while a flush uses them: the end of the session, which the last user of the
// mount makes, ends the flush first.
type flushGate struct {
	mu      sync.Mutex // a leaf
	closed  bool       // guarded by mu
	cancels map[*context.CancelCauseFunc]struct{}
	running sync.WaitGroup
}

// enter begins a flush, whose context ends with the file system.
//
// Errors: ESTALE after the end of the file system.
func (g *flushGate) enter(ctx context.Context) (_ context.Context, leave func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, nil, fmt.Errorf("flush: the mount has ended: %w", unix.ESTALE)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	if g.cancels == nil {
		g.cancels = map[*context.CancelCauseFunc]struct{}{}
	}
	g.cancels[&cancel] = struct{}{}
	g.running.Add(1)
	return ctx, func() {
		g.mu.Lock()
		delete(g.cancels, &cancel)
		g.mu.Unlock()
		cancel(nil)
		g.running.Done()
	}, nil
}

// close ends every flush, and waits for it.
func (g *flushGate) close() {
	g.mu.Lock()
	g.closed = true
	for cancel := range g.cancels {
		(*cancel)(fmt.Errorf("the mount has ended: %w", unix.ESTALE))
	}
	g.mu.Unlock()
	g.running.Wait()
}
