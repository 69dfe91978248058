package transport

import (
	"errors"
	"fmt"
	"log"
	"slices"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Options are how a connection is served.
type Options struct {
	Poll time.Duration // the longest time that a reader polls before it sleeps; 0 is the default, less is never
}

// Server serves one FUSE connection. It owns the descriptor from New on.
type Server struct {
	fs       fuse.RawFileSystem
	protocol *fuse.ProtocolServer
	log      *log.Logger
	fd       int // of the device; does not block
	size     int // of a buffer for a request, and of one for a reply, in bytes
	hello    []byte
	pace     pace
	slow     slowness
	ended    chan struct{} // closed when the connection is dead and nobody works on it

	// open guards the descriptor against being closed under those that are no workers.
	open   sync.RWMutex
	closed bool // guarded by open

	mu      sync.Mutex
	workers map[*worker]struct{} // guarded by mu
	live    int                  // workers, those that are still starting included; guarded by mu
	readers int                  // those of them that will read on soon; guarded by mu
	dead    bool                 // the connection is; guarded by mu
}

// New takes over fd, a /dev/fuse descriptor. Init or Resume come next, then Serve. A nil o is the default.
// The file system's Init and SetDebug are not called: there is no fuse.Server to give it.
//
// Errors: of fcntl(2); fd is then still the caller's.
func New(fs fuse.RawFileSystem, opts *fuse.MountOptions, fd int, o *Options) (*Server, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("fcntl of /dev/fuse: %w", err)
	}
	s := &Server{fs: fs, log: opts.Logger, fd: fd, ended: make(chan struct{}), workers: map[*worker]struct{}{}}
	if s.log == nil {
		s.log = log.Default()
	}
	s.pace.limit, s.pace.yield = defaultPoll, yield
	if o != nil && o.Poll != 0 {
		s.pace.limit = max(o.Poll, 0)
	}
	s.protocol = fuse.NewProtocolServer(fs, opts)
	// The kernel demands room for MaxWrite in each read; 128 KiB is what it asks for at least, in some replies.
	s.size = max(opts.MaxWrite, 128<<10) + headroom
	return s, nil
}

// Init waits for the kernel's first request and answers it. The mount answers from then on, once Serve was called.
//
// Errors: the connection is over; Close it.
func (s *Server) Init() error {
	b, err := buffers.get(s.size)
	if err != nil {
		return err
	}
	defer buffers.put(b)
	for {
		n, errno := read(s.fd, b.in)
		switch {
		case errno == unix.EAGAIN:
			await(s.fd, time.Minute)
		case errno == unix.EINTR, errno == unix.ENOENT:
		case errno != 0:
			return fmt.Errorf("read the kernel's INIT: %w", errno)
		default:
			return s.answerInit(b, n)
		}
	}
}

func (s *Server) answerInit(b *buffer, n int) error {
	reply, err := s.greet(b, b.in[:n])
	if err != nil {
		return err
	}
	if errno := write(s.fd, reply); errno != 0 {
		return fmt.Errorf("answer the kernel's INIT: %w", errno)
	}
	return nil
}

// greet has the protocol handle an INIT, and keeps it.
func (s *Server) greet(b *buffer, hello []byte) (reply []byte, err error) {
	if len(hello) < inHeaderSize || header(hello).Opcode != opInit {
		return nil, fmt.Errorf("the first request is no INIT: %w", unix.EPROTO)
	}
	s.hello = slices.Clone(hello)
	m, status := s.protocol.HandleRequest([][]byte{hello}, [][]byte{b.out})
	if status == fuse.OK {
		status = fuse.Status(-outHeader(b.out).Status)
	}
	if status != fuse.OK {
		return nil, fmt.Errorf("the kernel's INIT: %w", unix.Errno(status))
	}
	return b.out[:m], nil
}

// Hello is the INIT that the kernel sent: what Resume needs in another process.
func (s *Server) Hello() []byte { return slices.Clone(s.hello) }

// Resume takes over a connection whose INIT another process answered: hello is what its Hello gave. The kernel sends the
// requests again that were read and not answered, with bit 63 of their unique numbers set.
//
// Errors: ENOSYS or EINVAL if the kernel cannot send again (before Linux 6.9).
func (s *Server) Resume(hello []byte) error {
	b, err := buffers.get(s.size)
	if err != nil {
		return err
	}
	defer buffers.put(b)
	if _, err := s.greet(b, hello); err != nil {
		return err
	}
	if errno := s.notify(notifyResend); errno != 0 {
		return fmt.Errorf("have requests sent again: %w", errno)
	}
	return nil
}

// Serve answers requests until the connection is dead: the file system was unmounted and nobody uses it any more, or it was
// aborted. All handlers have ended when it returns, and the descriptor is closed.
//
// Errors: of epoll(7); nothing was served then, and the connection is over.
func (s *Server) Serve() error {
	if err := idle.add(s); err != nil {
		return errors.Join(err, s.Close())
	}
	<-s.ended
	idle.remove(s)
	err := s.Close()
	s.fs.OnUnmount()
	return err
}

// Close gives the descriptor up without serving it; Serve does so itself.
func (s *Server) Close() error {
	s.open.Lock()
	defer s.open.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if err := unix.Close(s.fd); err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("close /dev/fuse: %w", err)
	}
	return nil
}
