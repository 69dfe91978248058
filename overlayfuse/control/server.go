package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse"
)

// frameTimeout is how long a peer may take to send its request or to take the answer.
const frameTimeout = 10 * time.Second

// Server serves many mounts, each with a file system and a session of its own, and the socket that drives them.
type Server struct {
	log *logrus.Entry

	mu      sync.Mutex
	entries map[string]*entry // guarded by mu
	closing bool              // guarded by mu: no new mounts, stop after the last
	idle    chan struct{}     // closed when closing and no entry is left
	conns   sync.WaitGroup
}

// entry is one ID: it exists while an operation on it is under way or it has a session.
type entry struct {
	turn chan struct{} // one token: held by the operation under way
	refs int           // operations under way or waiting; guarded by Server.mu

	spec    Spec                 // guarded by Server.mu
	session *overlayfuse.Session // guarded by Server.mu; nil if there is none

	flushing *overlayfuse.FlushMeter // guarded by Server.mu; nil if no flush runs
}

// NewServer has no mounts.
func NewServer(log *logrus.Entry) *Server {
	return &Server{log: log, entries: map[string]*entry{}, idle: make(chan struct{})}
}

// Serve answers on l until Shutdown has come to its end, or until ctx ends, and closes l. What is mounted after ctx has
// ended stops answering when the process exits.
func (s *Server) Serve(ctx context.Context, l *Listener) error {
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		select {
		case <-ctx.Done():
		case <-s.idle:
		}
		if err := l.Close(); err != nil {
			s.log.WithError(err).Warn("close control socket")
		}
	}()
	for {
		conn, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			break
		}
		if err != nil { // out of descriptors, say
			s.log.WithError(err).Error("accept on control socket")
			time.Sleep(100 * time.Millisecond)
			continue
		}
		s.conns.Add(1)
		go func() {
			defer s.conns.Done()
			s.handle(ctx, conn)
		}()
	}
	<-stop
	if ctx.Err() == nil {
		s.conns.Wait()
	}
	return nil
}

// Shutdown refuses new mounts from now on, and unmounts what is not in use. Serve returns when the last mount is gone.
func (s *Server) Shutdown() {
	s.mu.Lock()
	s.closing = true
	var ids []string
	for id := range s.entries {
		ids = append(ids, id)
	}
	s.endIfIdle()
	s.mu.Unlock()
	for _, id := range ids {
		if err := s.unmount(context.Background(), id, false); err != nil && !errors.Is(err, ErrNotFound) {
			s.log.WithField("mount", id).WithError(err).Info("goes on after the stop was asked for")
		}
	}
}

// handle answers the one request of a connection.
func (s *Server) handle(ctx context.Context, conn *net.UnixConn) {
	defer func() { _ = conn.Close() }() // the answer is out, or nobody is there to get it
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	var q request
	err := conn.SetDeadline(time.Now().Add(frameTimeout))
	if err == nil {
		err = checkPeer(conn)
	}
	if err == nil {
		err = readFrame(conn, &q)
	}
	r := response{Version: Version}
	switch {
	case err != nil:
		r.Error = wireError(fmt.Errorf("request: %w", err))
	case q.Version != Version:
		r.Error = wireError(fmt.Errorf("protocol version %d, this server speaks %d: %w", q.Version, Version, unix.EPROTONOSUPPORT))
	default:
		if err := conn.SetDeadline(time.Time{}); err != nil {
			s.log.WithError(err).Warn("control connection")
			return
		}
		go func() {
			// Nothing more is to come: what ends the read is the client, or the Close above.
			_, _ = conn.Read(make([]byte, 1))
			cancel()
		}()
		err := s.serve(ctx, q, &r)
		if err != nil {
			s.log.WithFields(logrus.Fields{"op": q.Op, "mount": q.id()}).WithError(err).Warn("request failed")
		}
		r.Error = wireError(err)
	}
	if err := conn.SetWriteDeadline(time.Now().Add(frameTimeout)); err != nil {
		s.log.WithError(err).Debug("control connection")
	}
	if err := writeFrame(conn, r); err != nil {
		s.log.WithError(err).Debug("answer to a client that hung up")
	}
}

func (q request) id() string {
	if q.Spec != nil {
		return q.Spec.ID
	}
	return q.ID
}

// serve does what q asks for and fills in the answer.
func (s *Server) serve(ctx context.Context, q request, r *response) error {
	if (q.Op == opMount || q.Op == opFlush) && q.Spec == nil {
		return fmt.Errorf("%s without a mount: %w", q.Op, unix.EINVAL)
	}
	switch q.Op {
	case opPing:
		s.mu.Lock()
		defer s.mu.Unlock()
		r.Info = &Info{Version: Version, PID: os.Getpid(), Closing: s.closing}
		return nil
	case opList:
		var err error
		r.Mounts, err = s.list()
		return err
	case opInspect:
		var err error
		r.Inspections, err = s.inspect(q.IDs)
		return err
	case opMount:
		return s.mount(ctx, *q.Spec)
	case opUnmount:
		return s.unmount(ctx, q.ID, q.Lazy)
	case opFlush:
		stats, err := s.flush(ctx, *q.Spec, q.KeepMetacopy)
		if err == nil {
			r.Flush = &stats
		}
		return err
	}
	return fmt.Errorf("unknown request %q: %w", q.Op, unix.EOPNOTSUPP)
}
