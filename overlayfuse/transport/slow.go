package transport

import (
	"sync/atomic"
	"time"
)

// slowRequest is the time from which a request counts as slow: several times what handing over to another thread costs.
const slowRequest = 50 * time.Microsecond

// A request of an opcode is expected to be slow while more than one in slowWeight of them were so lately. One that was not on
// the CPU for a while, because others wanted it, does not do that.
const (
	slowWeight = 8
	slowFrom   = 2 * slowWeight
	slowMost   = 8 * slowWeight
)

// slowness remembers which kinds of request were slow lately: another goroutine reads on while one of them is handled.
// All methods may be called concurrently; a lost update costs speed alone.
type slowness [opCount]atomic.Int32

// expect tells whether a request is likely to be slow.
func (s *slowness) expect(opcode uint32) bool {
	switch opcode {
	case opSyncFS, opSetLkW:
		return true
	}
	return opcode < opCount && s[opcode].Load() >= slowFrom
}

// fast notes that a request was not slow.
func (s *slowness) fast(opcode uint32) {
	if opcode < opCount && s[opcode].Load() > 0 {
		s[opcode].Add(-1)
	}
}

// slow notes that a request was slow, and another one waited for it, or would have.
func (s *slowness) slow(opcode uint32) {
	if opcode < opCount {
		s[opcode].Store(min(s[opcode].Load()+slowWeight, slowMost))
	}
}
