package transport

import (
	"runtime/debug"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// serve handles the request in b.in[:n] and answers it.
func (s *Server) serve(w *worker, b *buffer, n int) {
	if n < inHeaderSize {
		s.log.Printf("transport: request of %d bytes", n)
		return
	}
	h := header(b.in)
	opcode := h.Opcode
	handed := s.slow.expect(opcode)
	if handed {
		s.hand(w)
	}
	start := now()
	w.unique.Store(h.Unique)
	w.doing.Add(1)
	reply := s.handle(b, n)
	w.doing.Add(1)
	w.unique.Store(0)
	took := now() - start
	slow := took > slowRequest
	if !handed {
		s.sample(w, opcode, took)
	} else if slow {
		s.slow.slow(opcode)
	}
	if !slow {
		s.slow.fast(opcode)
	}
	if len(reply) > 0 {
		s.answer(opcode, b, reply)
	}
	b.touched(n, len(reply))
}

// sample looks, now and then and after a slow request, whether another request waits that one reader is too few for. The
// caller of the present one still waits for its reply, so it is somebody else's.
func (s *Server) sample(w *worker, opcode uint32, took time.Duration) {
	switch opcode {
	case opRelease, opReleaseDir, opForget, opBatchForget: // nobody waits for them
		return
	}
	slow := took > slowRequest
	if w.count++; w.count%sampled != 0 && !slow {
		return
	}
	if slow && s.relieved(w) { // for a tick or two, others may have waited
		s.slow.slow(opcode)
		return
	}
	if took < costly || !await(s.fd, 0) {
		w.crowd = 0
		return
	}
	if slow {
		s.slow.slow(opcode)
	}
	if w.crowd++; w.crowd >= crowd {
		w.crowd = 0
		s.reinforce()
	}
}

// handle has the file system handle the request in b.in[:n], and gives the reply, empty if there is none.
func (s *Server) handle(b *buffer, n int) (reply []byte) {
	unique, opcode := header(b.in).Unique, header(b.in).Opcode
	defer func() {
		// The protocol server catches what panics in the file system, but for what READ's results do.
		if r := recover(); r != nil {
			s.log.Printf("transport: panic in request %d of opcode %d: %v\n%s", unique, opcode, r, debug.Stack())
			reply = refuse(b, opcode, unique)
		}
	}()
	m, status := s.protocol.HandleRequest([][]byte{b.in[:n]}, [][]byte{b.out})
	if status != fuse.OK {
		return refuse(b, opcode, unique) // the protocol server could not make sense of it
	}
	return b.out[:m]
}

// refuse builds the reply EIO, or none if the kernel expects none.
func refuse(b *buffer, opcode uint32, unique uint64) []byte {
	if opcode == opForget || opcode == opBatchForget {
		return nil
	}
	*outHeader(b.out) = fuse.OutHeader{Length: uint32(outHeaderSize), Status: -int32(unix.EIO), Unique: unique}
	return b.out[:outHeaderSize]
}

// answer sends a reply. If the kernel does not take it, the caller gets EIO instead of waiting for ever.
func (s *Server) answer(opcode uint32, b *buffer, reply []byte) {
	unique := outHeader(reply).Unique
	switch errno := write(s.fd, reply); errno {
	case 0:
	case unix.ENOENT, unix.ENODEV, unix.ECONNABORTED: // whoever waited for it is gone
	default:
		s.log.Printf("transport: reply of %d bytes to request %d of opcode %d: %v", len(reply), unique, opcode, errno)
		_ = write(s.fd, refuse(b, opcode, unique)) // fails if the kernel has given EIO itself
	}
}

// die notes that the connection is dead, and interrupts what is still being handled: nobody waits for it.
func (s *Server) die() {
	s.mu.Lock()
	first := !s.dead
	s.dead = true
	s.mu.Unlock()
	if first {
		s.interruptAll()
	}
}

// interruptAll interrupts what is handled. The last of it may have reached the protocol server only just: it is asked again
// as long as it does not know the request.
func (s *Server) interruptAll() {
	for range 100 {
		s.mu.Lock()
		var uniques []uint64
		for w := range s.workers {
			if u := w.unique.Load(); u != 0 {
				uniques = append(uniques, u)
			}
		}
		s.mu.Unlock()
		missed := false
		for _, u := range uniques {
			missed = s.interrupt(u) != nil || missed
		}
		if !missed {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// interrupt interrupts a request.
//
// Errors: EAGAIN if it is not in progress, or was interrupted before.
func (s *Server) interrupt(unique uint64) error {
	in := fuse.InterruptIn{
		InHeader: fuse.InHeader{Length: uint32(unsafe.Sizeof(fuse.InterruptIn{})), Opcode: opInterrupt, Unique: unique | 1},
		Unique:   unique,
	}
	var out [256]byte
	m, _ := s.protocol.HandleRequest([][]byte{bytesOf(&in)}, [][]byte{out[:]})
	if m == 0 {
		return nil // no reply: it was found
	}
	return unix.EAGAIN
}

// outHeader is the header of a reply.
//
// Preconditions: b has room for one.
func outHeader(b []byte) *fuse.OutHeader {
	return (*fuse.OutHeader)(unsafe.Pointer(unsafe.SliceData(b)))
}
