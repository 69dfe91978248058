package transport

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// headroom is what a request or a reply may need in bytes beside the data that MaxWrite counts.
const headroom = 8 << 10

// pageSize is in bytes.
var pageSize = os.Getpagesize()

// freeDirty is how many bytes of memory the buffers that nobody uses may keep while requests come.
const freeDirty = 4 << 20

// buffer is what one worker reads a request into and builds its reply in. Its pages come from the kernel as they are first
// touched, so one that carried names and attributes costs a few pages, whatever its size.
type buffer struct {
	in, out []byte // the data of a WRITE and of a READ start at page boundaries
	mapping []byte // holds both
	dirty   int    // bytes that may be resident
}

// touched notes the sizes of a request and of its reply.
func (b *buffer) touched(in, out int) { b.dirty = max(b.dirty, in+out) }

// pool are the buffers of a process that nobody uses.
type pool struct {
	mu    sync.Mutex
	free  []*buffer // guarded by mu
	dirty int       // of free; guarded by mu
}

var buffers pool

// get gives a buffer for requests and replies of size bytes.
//
// Errors: ENOMEM.
func (p *pool) get(size int) (*buffer, error) {
	p.mu.Lock()
	for i := len(p.free) - 1; i >= 0; i-- {
		if b := p.free[i]; len(b.in) == size {
			p.free = append(p.free[:i], p.free[i+1:]...)
			p.dirty -= b.dirty
			p.mu.Unlock()
			return b, nil
		}
	}
	p.mu.Unlock()
	half := pageSize + (size+pageSize-1)&^(pageSize-1)
	m, err := unix.Mmap(-1, 0, 2*half, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("buffer of %d bytes: %w", 2*half, err)
	}
	_ = unix.Madvise(m, unix.MADV_NOHUGEPAGE) // a huge page would be resident as a whole; there may be none
	_ = unix.Madvise(m, unix.MADV_DONTFORK)   // a child has no use for it; and by that smaps tells buffers from what else is mapped
	in, out := m[pageSize-writeInSize:], m[half+pageSize-outHeaderSize:]
	return &buffer{in: in[:size:size], out: out[:size:size], mapping: m}, nil
}

// put takes b back.
func (p *pool) put(b *buffer) {
	p.mu.Lock()
	keep := p.dirty+b.dirty <= freeDirty && len(p.free) < 16
	if keep {
		p.free = append(p.free, b)
		p.dirty += b.dirty
	}
	p.mu.Unlock()
	if !keep {
		b.unmap()
	}
}

// trim gives back all memory but that of one buffer that carried small requests only.
func (p *pool) trim() {
	p.mu.Lock()
	drop := p.free
	p.free, p.dirty = nil, 0
	for i, b := range drop {
		if b.dirty <= headroom {
			p.free, p.dirty = []*buffer{b}, b.dirty
			drop = append(drop[:i], drop[i+1:]...)
			break
		}
	}
	p.mu.Unlock()
	for _, b := range drop {
		b.unmap()
	}
}

func (b *buffer) unmap() {
	_ = unix.Munmap(b.mapping) // cannot fail: it is what Mmap gave
}
