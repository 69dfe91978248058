package transport

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// tick is how often busy connections are looked at: a request that takes longer holds the others up for two at most.
const tick = time.Millisecond

// hub watches the devices of all connections of the process that have no reader, with one goroutine in epoll_wait.
// The goroutine that finds a request there starts its own successor and becomes the connection's reader.
// While a connection has a reader, another goroutine wakes up every tick and looks whether one is stuck.
type hub struct {
	mu      sync.Mutex
	epoll   int                  // valid while there are connections; closed by the goroutine that waits on it
	bell    int                  // an eventfd in epoll that ends that goroutine
	conns   map[int32]*Server    // by descriptor
	busy    map[*Server]struct{} // those that have a reader
	ticking bool                 // tick runs; guarded by mu
}

var idle = hub{epoll: -1, conns: map[int32]*Server{}, busy: map[*Server]struct{}{}}

// oneRequest is disarmed once it fired: a connection that has a reader wakes nobody else.
const oneRequest = unix.EPOLLIN | unix.EPOLLONESHOT

// add begins to watch s.
func (h *hub) add(s *Server) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.conns) == 0 {
		if err := h.startLocked(); err != nil {
			return err
		}
	}
	ev := unix.EpollEvent{Events: oneRequest, Fd: int32(s.fd)}
	if err := unix.EpollCtl(h.epoll, unix.EPOLL_CTL_ADD, s.fd, &ev); err != nil {
		h.stopLocked()
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	h.conns[int32(s.fd)] = s
	return nil
}

// startLocked starts the goroutine that waits.
func (h *hub) startLocked() error {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("epoll_create1: %w", err)
	}
	bell, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = unix.Close(epoll) // nothing is in it
		return fmt.Errorf("eventfd: %w", err)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(bell)}
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, bell, &ev); err != nil {
		_, _ = unix.Close(bell), unix.Close(epoll) // nothing is in them
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	h.epoll, h.bell = epoll, bell
	go h.watch(epoll, bell)
	return nil
}

// stopLocked ends the goroutine that waits, if nothing is left to wait for.
func (h *hub) stopLocked() {
	if len(h.conns) == 0 && h.epoll >= 0 {
		_, _ = unix.Write(h.bell, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // the counter is far from full
		h.epoll = -1
	}
}

// rest takes s back from its last reader. A request that came meanwhile is found at once.
func (h *hub) rest(s *Server) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.busy, s)
	ev := unix.EpollEvent{Events: oneRequest, Fd: int32(s.fd)}
	if err := unix.EpollCtl(h.epoll, unix.EPOLL_CTL_MOD, s.fd, &ev); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// trim gives memory back if no connection has a reader.
func (h *hub) trim() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.busy) == 0 {
		buffers.trim()
	}
}

// remove ends the watching of s, which is busy, before its descriptor is closed. With the last connection the goroutine that
// waits ends.
func (h *hub) remove(s *Server) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.busy, s)
	delete(h.conns, int32(s.fd))
	_ = unix.EpollCtl(h.epoll, unix.EPOLL_CTL_DEL, s.fd, nil) // it is in there
	h.stopLocked()
}

// watch waits for a connection without a reader, and becomes its reader.
func (h *hub) watch(epoll, bell int) {
	for {
		var ev [1]unix.EpollEvent
		if n, err := unix.EpollWait(epoll, ev[:], -1); err != nil || n == 0 {
			continue // EINTR is the only error there is
		}
		if ev[0].Fd == int32(bell) {
			_, _ = unix.Close(bell), unix.Close(epoll) // nothing is in them
			return
		}
		if s := h.take(ev[0].Fd); s != nil {
			go h.watch(epoll, bell)
			s.work()
			return
		}
	}
}

// take makes a connection busy, whose reader the caller becomes; nil if it is gone, or fd is the bell.
func (h *hub) take(fd int32) *Server {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.conns[fd]
	if s == nil || !s.enlist() {
		return nil
	}
	h.busy[s] = struct{}{}
	if !h.ticking {
		h.ticking = true
		go h.tick()
	}
	return s
}

// tick looks at the busy connections, and ends when there are none. It sleeps on a timer of the runtime, and not in a system
// call, for one that returns has the runtime's sysmon look every 20 µs whether there is another.
func (h *hub) tick() {
	for h.look() {
		time.Sleep(tick)
	}
}

// look replaces the readers that are stuck, and tells whether any connection is busy.
func (h *hub) look() bool {
	h.mu.Lock()
	busy := slices.Collect(maps.Keys(h.busy))
	h.ticking = len(busy) > 0
	h.mu.Unlock()
	for _, s := range busy {
		s.relieve()
	}
	return len(busy) > 0
}
