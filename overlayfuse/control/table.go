package control

import (
	"context"
	"fmt"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse"
)

// acquire waits for the turn on an ID. The caller gives it back with release.
//
// Errors: the context's.
func (s *Server) acquire(ctx context.Context, id string) (*entry, error) {
	s.mu.Lock()
	e := s.entries[id]
	if e == nil {
		e = &entry{turn: make(chan struct{}, 1)}
		e.turn <- struct{}{}
		s.entries[id] = e
	}
	e.refs++
	s.mu.Unlock()
	select {
	case <-e.turn:
		return e, nil
	case <-ctx.Done():
		s.unref(id, e)
		return nil, fmt.Errorf("mount %s: waiting for another request: %w", id, ctx.Err())
	}
}

func (s *Server) release(id string, e *entry) {
	e.turn <- struct{}{}
	s.unref(id, e)
}

func (s *Server) unref(id string, e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.refs--
	s.drop(id, e)
}

// drop forgets an entry that nothing holds.
//
// Locks: Server.mu.
func (s *Server) drop(id string, e *entry) {
	if e.refs == 0 && e.session == nil {
		delete(s.entries, id)
		s.endIfIdle()
	}
}

// endIfIdle ends Serve when it was asked to stop and nothing is left.
//
// Locks: Server.mu.
func (s *Server) endIfIdle() {
	if !s.closing || len(s.entries) > 0 {
		return
	}
	select {
	case <-s.idle: // closed before
	default:
		close(s.idle)
	}
}

// current is the mount of an entry, nil if there is none.
func (s *Server) current(e *entry) (Spec, *overlayfuse.Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.session == nil || over(e.session) {
		return Spec{}, nil
	}
	return e.spec, e.session
}

// over tells a session that has ended: its entry goes a moment later.
func over(session *overlayfuse.Session) bool {
	select {
	case <-session.Done():
		return true
	default:
		return false
	}
}

// adopt gives an entry its session, until that ends.
func (s *Server) adopt(e *entry, spec Spec, session *overlayfuse.Session) {
	s.mu.Lock()
	e.spec, e.session = spec, session
	s.mu.Unlock()
	log := s.log.WithField("mount", spec.ID)
	log.WithField("mountpoint", session.Mountpoint()).Info("mounted")
	go func() {
		if err := session.Wait(); err != nil {
			log.WithError(err).Error("close file system")
		}
		log.Info("gone")
		s.mu.Lock()
		defer s.mu.Unlock()
		if e.session == session { // else the ID has its next one
			e.spec, e.session = Spec{}, nil
		}
		s.drop(spec.ID, e)
	}()
}

// setFlushing shows the flush that runs on an entry; nil when it has ended.
func (s *Server) setFlushing(e *entry, m *overlayfuse.FlushMeter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.flushing = m
}
