package transport

import (
	"sync/atomic"
	"time"
)

// slowRequest is the time from which a request counts as slow if another one waited for it meanwhile: what handing over to
// another thread costs.
const slowRequest = 50 * time.Microsecond

// remembered is how many requests of an opcode are taken for slow ones after a slow one.
const remembered = 64

// slowness remembers which kinds of request were slow of late: another goroutine reads on while one of them is handled.
// All methods may be called concurrently; a lost update costs speed alone.
type slowness [opCount]atomic.Int32

// expect tells whether a request is likely to be slow.
func (s *slowness) expect(opcode uint32) bool {
	switch opcode {
	case opFsync, opFsyncDir, opSyncFS, opSetLkW, opFallocate, opCopyFileRange:
		return true
	}
	if opcode >= opCount || s[opcode].Load() == 0 {
		return false
	}
	s[opcode].Add(-1)
	return true
}

// found notes that a request was slow.
func (s *slowness) found(opcode uint32) {
	if opcode < opCount {
		s[opcode].Store(remembered)
	}
}
