package transport

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// How long to poll, and when.
const (
	// defaultPoll is how long a reader polls before it sleeps: two to three round trips.
	defaultPoll = 50 * time.Microsecond

	// shortGap is a gap between two requests that counts as short although the reader slept in it: a poll, and what waking up
	// two threads takes.
	shortGap = 4 * defaultPoll

	// So many short gaps one after the other turn polling on: the first number, and twice as many, up to the last, each time
	// that polling proved to be in vain.
	firstEnough = 4
	lastEnough  = 64

	// tooMany is how many polls in vain one after the other turn it off.
	tooMany = 2

	// lost is the time that a sched_yield takes if somebody who computes wanted the CPU, and got it for a slice: milliseconds.
	// The client, if it is on this CPU, needs less for its next request.
	lost = 200 * time.Microsecond

	// Polling rests that long after somebody wanted the CPU; each time twice as long, until a poll goes well.
	firstRest = 10 * time.Millisecond
	lastRest  = time.Second
)

// polling counts the goroutines that poll, of all servers of the process: each takes a processor of the Go scheduler, and
// half of them at most.
var polling atomic.Int32

// pace decides whether the reader of one connection polls. Only one reader waits at a time, and only it uses pace.
type pace struct {
	limit time.Duration // of one poll; 0 never polls
	on    bool
	short int           // short gaps in sequence, while off
	need  int           // how many turn it on
	vain  int           // polls in vain in sequence, while on
	rest  time.Duration // the last one's length
	until time.Duration // no poll before, on the clock of now
	yield func()        // lets whoever wants this CPU run
}

var epoch = time.Now()

// now is the time since the process started.
func now() time.Duration { return time.Since(epoch) }

// poll reads until a request is there or polling is not worth it any more. After EAGAIN the caller sleeps, and tells slept
// when that ended.
func (p *pace) poll(fd int, b []byte) (int, unix.Errno) {
	if !p.on || !acquirePoll() {
		return 0, unix.EAGAIN
	}
	defer polling.Add(-1)
	start := now()
	if start < p.until {
		return 0, unix.EAGAIN
	}
	for t := start; t-start < p.limit; {
		p.yield()
		n, errno := read(fd, b)
		u := now()
		if u-t > lost {
			p.rest = min(max(2*p.rest, firstRest), lastRest)
			p.until = u + p.rest
			return n, errno
		}
		t = u
		if errno != unix.EAGAIN {
			p.vain, p.rest, p.need = 0, 0, max(p.need-1, firstEnough)
			return n, errno
		}
	}
	if p.vain++; p.vain >= tooMany {
		p.on, p.short, p.need = false, 0, min(2*max(p.need, firstEnough), lastEnough)
	}
	return 0, unix.EAGAIN
}

// slept notes how long there was no request, in a reader that slept.
func (p *pace) slept(gap time.Duration) {
	switch {
	case p.on || p.limit <= 0:
	case gap > shortGap:
		p.short = 0
	default:
		if p.short++; p.short >= max(p.need, firstEnough) {
			p.on, p.vain = true, 0
		}
	}
}

// acquirePoll counts one more goroutine that polls, unless there are enough.
func acquirePoll() bool {
	procs := min(runtime.GOMAXPROCS(0), runtime.NumCPU())
	if procs < 2 {
		return false
	}
	if polling.Add(1) > int32(procs/2) {
		polling.Add(-1)
		return false
	}
	return true
}
