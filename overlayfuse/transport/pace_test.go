package transport

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pipe gives the reading end of a pipe, which does not block, and the writing end.
func pipe(t *testing.T) (r, w int) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = unix.Close(p[0]), unix.Close(p[1]) })
	return p[0], p[1]
}

func polls(t *testing.T, p *pace) bool {
	t.Helper()
	r, w := pipe(t)
	if _, err := unix.Write(w, []byte{1}); err != nil {
		t.Fatal(err)
	}
	n, errno := p.poll(r, make([]byte, 8))
	return errno == 0 && n == 1
}

func TestPollingNeedsShortGaps(t *testing.T) {
	if runtime.GOMAXPROCS(0) < 2 || runtime.NumCPU() < 2 {
		t.Skip("a single processor never polls")
	}
	p := &pace{limit: defaultPoll, yield: yield}
	if polls(t, p) {
		t.Error("it polls at once")
	}
	for range firstEnough - 1 {
		p.slept(defaultPoll)
	}
	p.slept(time.Second)
	for range firstEnough - 1 {
		p.slept(defaultPoll)
	}
	if polls(t, p) {
		t.Error("it polls although a gap was long")
	}
	p.slept(defaultPoll)
	if !polls(t, p) {
		t.Error("it does not poll after short gaps")
	}
}

func TestPollingInVainEnds(t *testing.T) {
	if runtime.GOMAXPROCS(0) < 2 || runtime.NumCPU() < 2 {
		t.Skip("a single processor never polls")
	}
	r, _ := pipe(t)
	p := &pace{limit: defaultPoll, on: true, yield: yield}
	for range 1000 {
		if _, errno := p.poll(r, make([]byte, 8)); errno != unix.EAGAIN {
			t.Fatal(errno)
		}
		p.until = 0 // others that want this CPU are not the matter here
		if !p.on {
			break
		}
	}
	if p.on {
		t.Error("it polls on")
	}
	if p.need <= firstEnough {
		t.Errorf("it starts again after %d short gaps", p.need)
	}
	if n := polling.Load(); n != 0 {
		t.Errorf("%d poll, it is said", n)
	}
}

func TestNeverPollsWithoutALimit(t *testing.T) {
	p := &pace{}
	for range 1000 {
		p.slept(0)
	}
	if p.on {
		t.Error("it polls")
	}
}

func TestSlownessNeedsManySlowRequests(t *testing.T) {
	const op = 15
	var s slowness
	for range 100 { // one in twenty, as where others take the CPU away
		s.slow(op)
		for range 19 {
			s.fast(op)
		}
		if s.expect(op) {
			t.Fatal("expected to be slow, of which one in twenty was")
		}
	}
	for range 10 { // one in two
		s.slow(op)
		s.fast(op)
	}
	if !s.expect(op) {
		t.Error("not expected to be slow, of which one in two was")
	}
	for range slowMost {
		s.fast(op)
	}
	if s.expect(op) {
		t.Error("still expected to be slow")
	}
	if !s.expect(opSetLkW) || s.expect(opCount+5) {
		t.Error("what waits for a lock is slow, and an unknown opcode is not")
	}
}

func TestSlownessCountsWhatWasRelieved(t *testing.T) {
	const op = 20
	s := &Server{}
	for range slowFrom / slowWeight {
		if s.slow.expect(op) {
			t.Fatal("expected to be slow too early")
		}
		s.sample(&worker{reader: false}, op, 2*tick)
	}
	if !s.slow.expect(op) {
		t.Error("a kind of which the reader had to be relieved is not expected to be slow")
	}
}

// TestPollingGivesWay: where somebody else wanted the CPU no reader polls for a while, each time for longer, until a poll goes well.
func TestPollingGivesWay(t *testing.T) {
	if runtime.GOMAXPROCS(0) < 2 || runtime.NumCPU() < 2 {
		t.Skip("a single processor never polls")
	}
	r, w := pipe(t)
	yields := 0
	var wanted time.Duration // what a yield takes
	p := &pace{limit: time.Second, on: true, yield: func() {
		yields++
		time.Sleep(wanted)
	}}
	poll := func() unix.Errno {
		p.on, p.vain = true, 0
		_, errno := p.poll(r, make([]byte, 1))
		return errno
	}
	wanted = 2 * lost
	for _, rest := range []time.Duration{firstRest, 2 * firstRest, 4 * firstRest} {
		yields = 0
		begin := now()
		if errno := poll(); errno != unix.EAGAIN || yields != 1 {
			t.Fatalf("%v after %d yields, want one", errno, yields)
		}
		if end := now(); p.rest != rest || p.until < begin+rest || p.until > end+rest {
			t.Fatalf("polling rests for %v, until %v, want %v from between %v and %v", p.rest, p.until, rest, begin, end)
		}
		yields, p.until = 0, now()+time.Minute // however late this goes on
		if errno := poll(); errno != unix.EAGAIN || yields != 0 {
			t.Fatalf("%v, %d yields while polling rests", errno, yields)
		}
		p.until = 0
	}
	p.rest = lastRest
	if poll(); p.rest != lastRest {
		t.Errorf("polling rests for %v, want %v at most", p.rest, lastRest)
	}

	p.until, wanted = 0, 0
	if _, err := unix.Write(w, []byte{1}); err != nil {
		t.Fatal(err)
	}
	if errno := poll(); errno != 0 || p.rest != 0 {
		t.Errorf("%v, and the next rest is longer than %v", errno, p.rest)
	}
}

// TestHalfOfTheProcessorsPoll: what polls takes a processor of the Go scheduler, which others need.
func TestHalfOfTheProcessorsPoll(t *testing.T) {
	procs := min(runtime.GOMAXPROCS(0), runtime.NumCPU())
	r, _ := pipe(t)
	yields := 0
	p := &pace{limit: defaultPoll, on: true, yield: func() { yields++ }}
	polling.Add(int32(procs / 2))
	defer polling.Add(-int32(procs / 2))
	if _, errno := p.poll(r, make([]byte, 1)); errno != unix.EAGAIN || yields != 0 {
		t.Errorf("%v, one more than %d of %d polls", errno, procs/2, procs)
	}
	if n := polling.Load(); n != int32(procs/2) {
		t.Errorf("%d poll, want %d", n, procs/2)
	}
}
