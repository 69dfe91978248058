package copyup

import (
	"math/rand/v2"
	"runtime"
	"testing"
)

// TestExtentMapMemory measures the heap of a map of 1 GiB in units of 4 KiB for patterns of what is there. It must stay within
// 2 bytes for each unit of the file, whatever the pattern; and common ones within far less.
func TestExtentMapMemory(t *testing.T) {
	const unit, size = 4096, 1 << 30
	const units = size / unit
	rng := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct {
		name  string
		limit float64 // bytes per unit of the file
		fill  func(e *extents)
	}{
		{"nothing", 0.01, func(*extents) {}},
		{"one run of half the file", 0.2, func(e *extents) {
			for off := int64(0); off < size/2; off += 1 << 20 {
				e.add(off, off+1<<20)
			}
		}},
		{"1,000 random units", 0.2, func(e *extents) { randomUnits(e, rng, 1000, units) }},
		{"100,000 random units", 0.3, func(e *extents) { randomUnits(e, rng, 100_000, units) }},
		{"every second unit", 2, func(e *extents) { everyUnit(e, 2, units) }},
		{"every 16th unit", 2, func(e *extents) { everyUnit(e, 16, units) }},
		{"every 17th unit", 2, func(e *extents) { everyUnit(e, 17, units) }},
		{"runs of 3 with gaps of 13", 2, func(e *extents) {
			for u := int64(0); u+3 < units; u += 16 {
				e.add(u*unit, (u+3)*unit)
			}
		}},
	} {
		const maps = 20
		before := heap()
		var all [maps]*extents
		for i := range all {
			all[i] = newExtents(unit, size)
			c.fill(all[i])
		}
		bytes := float64(heap()-before) / maps
		have := units - all[0].missing
		t.Logf("%-28s %8d of %d units: %9.0f bytes, %.4f for each unit of the file", c.name, have, units, bytes, bytes/units)
		if bytes/units > c.limit {
			t.Errorf("%s: %.3f bytes for each unit, more than %v", c.name, bytes/units, c.limit)
		}
		runtime.KeepAlive(all)
	}
}

func randomUnits(e *extents, rng *rand.Rand, n int, units int64) {
	for range n {
		u := rng.Int64N(units)
		e.add(u*e.unit, (u+1)*e.unit)
	}
}

func everyUnit(e *extents, step, units int64) {
	for u := int64(0); u < units; u += step {
		e.add(u*e.unit, (u+1)*e.unit)
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
