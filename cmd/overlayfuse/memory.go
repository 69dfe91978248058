package main

import (
	"os"
	"runtime"
	"runtime/debug"
	gometrics "runtime/metrics"
	"sync"
	"time"
)

const (
	// restTime is how long little must have happened before memory is given back. A collection of 50 MB takes some 50 ms.
	restTime = 2 * time.Second
	// restBytes is how much may be allocated meanwhile: some thousand requests.
	restBytes = 1 << 20
	// worthFreeing is how much must have been allocated since the last time.
	worthFreeing = 256 << 10
)

// boundMemory sets what a server keeps beside what lives: at most half as much again under load, as most of it is inodes that live
// long, and nothing at rest; and it yields to others that need memory. GOGC of the environment comes first.
func boundMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	(&trimmer{rest: restTime, free: debug.FreeOSMemory}).watch()
	yieldMemory()
}

// trimmer gives the memory back that only a load needed, once the load is over. A process at rest is not woken up for it: what brings
// it about is a collection, which only allocations do (and the runtime, after two minutes without one).
type trimmer struct {
	rest time.Duration
	free func() // collects and gives back

	mu    sync.Mutex
	armed bool   // look will be called; guarded by mu
	seen  uint64 // what allocated was when it was looked at last; guarded by mu
	freed uint64 // what it was after free; guarded by mu
}

// sentinel is what is collected. It has a pointer, so that it shares its place with nothing that lives longer.
type sentinel struct{ _ *sentinel }

// watch waits for the next collection.
func (t *trimmer) watch() { runtime.AddCleanup(&sentinel{}, (*trimmer).collected, t) }

// collected follows each collection.
func (t *trimmer) collected() {
	t.watch()
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := allocated(); !t.armed && now-t.freed >= worthFreeing {
		t.armed, t.seen = true, now
		time.AfterFunc(t.rest, t.look)
	}
}

// look gives memory back if the process has come to rest, and else looks again later.
func (t *trimmer) look() {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := allocated()
	if now-t.seen > restBytes {
		t.seen = now
		time.AfterFunc(t.rest, t.look)
		return
	}
	t.free()
	t.armed, t.freed = false, allocated()
}

// allocated is how many bytes the process has allocated in its life.
func allocated() uint64 {
	s := []gometrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	gometrics.Read(s)
	return s[0].Value.Uint64()
}
