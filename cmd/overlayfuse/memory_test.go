package main

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// allocate makes garbage of n bytes.
func allocate(n int) {
	for ; n > 0; n -= 64 << 10 {
		garbage.Store(new([64 << 10]byte))
	}
}

var garbage atomic.Pointer[[64 << 10]byte]

// TestMemoryIsFreedAtRest: memory is given back once, after a load and not during it, and by a process at rest not again.
func TestMemoryIsFreedAtRest(t *testing.T) {
	freed := make(chan time.Time, 100)
	const rest = 300 * time.Millisecond
	tr := &trimmer{rest: rest, free: func() {
		freed <- time.Now()
		runtime.GC()
	}}
	tr.watch()
	var last time.Time
	for end := time.Now().Add(5 * rest); time.Now().Before(end); time.Sleep(rest / 50) {
		allocate(4 * restBytes)
		before := last
		last = time.Now()
		if len(freed) == 0 {
			continue
		}
		at := <-freed
		if last.Sub(before) < rest/2 { // else the machine had no time for this load
			t.Fatalf("memory was given back under load, %v ago", last.Sub(at))
		}
		t.Logf("no load for %v", last.Sub(before))
	}
	runtime.GC() // what was allocated last brings none about
	select {
	case <-freed:
	case <-time.After(20 * rest):
		t.Fatal("no memory was given back after the load")
	}
	runtime.GC()
	select {
	case at := <-freed:
		t.Errorf("memory was given back again %v after the load, with nothing allocated", at.Sub(last))
	case <-time.After(4 * rest):
	}
	allocate(4 * restBytes)
	runtime.GC()
	select {
	case <-freed:
	case <-time.After(20 * rest):
		t.Error("no memory was given back after the second load")
	}
}
