package transport

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// patience is how long the last reader waits for a request before it leaves the connection to the hub.
	patience = 10 * time.Millisecond

	// A reader samples each sampled-th request. If it was costly and another one waited meanwhile, in crowd samples in
	// sequence, one reader is not enough. Where requests are cheap, it does more than several that take CPUs from the clients.
	sampled = 8
	crowd   = 4
	costly  = 15 * time.Microsecond

	// maxWorkers is the most goroutines that one connection has. Only a kernel that has so many requests in progress meets it.
	maxWorkers = 1024
)

// worker is one goroutine that reads and handles requests. It is either a reader, which will read on soon, or has been
// relieved: it leaves as soon as nothing waits.
type worker struct {
	reader bool          // guarded by Server.mu
	seen   uint32        // what doing was at the last tick; guarded by Server.mu
	doing  atomic.Uint32 // odd while a request is handled; each has a number of its own
	unique atomic.Uint64 // of the request that is handled
	count  int           // of requests handled
	crowd  int           // samples in sequence in which another request waited
}

// enlist counts a reader that is about to start, unless all is over.
func (s *Server) enlist() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead && s.live == 0 {
		return false
	}
	s.enlistLocked()
	return true
}

func (s *Server) enlistLocked() {
	s.live++
	s.readers++
}

// work reads and handles requests until there is no need for this goroutine.
//
// Preconditions: the caller has enlisted it.
func (s *Server) work() {
	w := &worker{reader: true}
	s.mu.Lock()
	s.workers[w] = struct{}{}
	s.mu.Unlock()
	defer s.leave(w)

	b, err := buffers.get(s.size)
	for err != nil {
		s.log.Printf("transport: %v", err)
		time.Sleep(time.Second)
		b, err = buffers.get(s.size)
	}
	defer buffers.put(b)
	for {
		n, errno := s.next(w, b.in)
		switch errno {
		case 0:
			s.serve(w, b, n)
		case unix.EAGAIN:
			return
		case unix.EINTR, unix.ENOENT: // the request was taken back before we read it
		case unix.ENODEV, unix.ECONNABORTED:
			s.die()
			return
		default:
			s.log.Printf("transport: read /dev/fuse: %v", errno)
			s.die()
			return
		}
	}
}

// leave ends a worker that has given its buffer back.
func (s *Server) leave(w *worker) {
	defer idle.trim()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.workers, w)
	if w.reader {
		s.readers--
	}
	s.live--
	if s.dead && s.live == 0 {
		close(s.ended)
	}
}

// next reads a request, and waits for one if w is the only reader. EAGAIN says that w is not needed.
func (s *Server) next(w *worker, b []byte) (int, unix.Errno) {
	n, errno := read(s.fd, b)
	if errno != unix.EAGAIN {
		return n, errno
	}
	if !s.stays(w) {
		return 0, unix.EAGAIN
	}
	start := now()
	if n, errno = s.pace.poll(s.fd, b); errno != unix.EAGAIN {
		return n, errno
	}
	for {
		if !await(s.fd, patience) && s.rests(w) {
			return 0, unix.EAGAIN
		}
		if n, errno = read(s.fd, b); errno != unix.EAGAIN {
			s.pace.slept(now() - start)
			return n, errno
		}
	}
}

// stays tells whether w is the only reader. If not, it is one no longer.
func (s *Server) stays(w *worker) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.reader && s.readers > 1 {
		w.reader = false
		s.readers--
	}
	return w.reader
}

// relieved tells whether w is a reader no longer.
func (s *Server) relieved(w *worker) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !w.reader
}

// rests leaves the connection to the hub, for w, its only reader.
func (s *Server) rests(w *worker) bool {
	s.mu.Lock()
	w.reader = false
	s.readers--
	s.mu.Unlock()
	err := idle.rest(s)
	if err == nil {
		return true
	}
	s.log.Printf("transport: %v", err)
	s.mu.Lock()
	defer s.mu.Unlock()
	w.reader = true
	s.readers++
	return false
}

// reinforce starts another reader if there are processors for more.
func (s *Server) reinforce() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.readers > 0 && s.readers < runtime.GOMAXPROCS(0) {
		s.startLocked()
	}
}

// hand has another worker read on while w handles a request that may take long.
func (s *Server) hand(w *worker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handLocked(w)
}

func (s *Server) handLocked(w *worker) {
	if !w.reader || s.live >= maxWorkers || s.dead {
		return
	}
	w.reader = false
	s.readers--
	if s.readers == 0 {
		s.startLocked()
	}
}

func (s *Server) startLocked() {
	if s.live < maxWorkers && !s.dead {
		s.enlistLocked()
		go s.work()
	}
}

// relieve replaces the readers that have been handling one request since the last tick.
func (s *Server) relieve() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.workers {
		doing := w.doing.Load()
		if w.reader && doing%2 == 1 && doing == w.seen {
			s.handLocked(w)
		}
		w.seen = doing
	}
}
