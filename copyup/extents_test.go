package copyup

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestExtentsAgainstABitmap does random changes to a map and to a slice of bools, and compares every answer.
func TestExtentsAgainstABitmap(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		const unit = 4096
		limit := rng.Int64N(300 * unit)
		e := newExtents(unit, limit)
		have := make([]bool, unitsIn(limit, unit))
		for range 40 {
			if rng.IntN(8) == 0 {
				limit = rng.Int64N(limit + 1)
				e.cut(limit)
				have = have[:unitsIn(limit, unit)]
			} else {
				lo := rng.Int64N(310)
				hi := lo + 1 + rng.Int64N(1+rng.Int64N(40))
				e.add(lo*unit, hi*unit)
				for u := lo; u < min(hi, int64(len(have))); u++ {
					have[u] = true
				}
			}
			checkExtents(t, e, have, limit)
			if t.Failed() {
				return
			}
		}
	}
}

func checkExtents(t *testing.T, e *extents, have []bool, limit int64) {
	t.Helper()
	missing := int64(0)
	for u, h := range have {
		if !h {
			missing++
		}
		if e.has(int64(u)*e.unit) != h {
			t.Errorf("unit %d: has %v", u, !h)
		}
	}
	if e.missing != missing || e.full() != (missing == 0) || !e.has(e.up(limit)) {
		t.Errorf("missing %d, want %d", e.missing, missing)
	}
	size := limit + 5*e.unit
	for off := int64(0); off < size; {
		p := e.next(off, size)
		if p.off != off || p.end <= off || p.end > size {
			t.Fatalf("piece %+v at %d", p, off)
		}
		for at := p.off; at < p.end; at += e.unit / 2 {
			want := at < limit && !have[at/e.unit]
			if p.lower != want {
				t.Fatalf("piece %+v: %d in the lower: %v", p, at, want)
			}
		}
		off = p.end
	}
}
