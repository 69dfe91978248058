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
	for round := range 300 {
		const unit = 4096
		limit := rng.Int64N(300 * unit)
		if round%10 == 0 {
			limit = (150_000 + rng.Int64N(50_000)) * unit // several containers of the bitmap
		}
		e := newExtents(unit, limit)
		have := make([]bool, unitsIn(limit, unit))
		for range 40 {
			if rng.IntN(8) == 0 {
				limit = rng.Int64N(limit + 1)
				e.cut(limit)
				have = have[:unitsIn(limit, unit)]
			} else {
				lo := rng.Int64N(unitsIn(limit, unit) + 10)
				hi := lo + 1 + rng.Int64N(1+rng.Int64N(40))
				switch rng.IntN(6) {
				case 0:
					hi = lo + rng.Int64N(100_000) + 1
				case 1:
					lo, hi = 65_536, 131_072+rng.Int64N(3)
				}
				e.add(lo*unit, hi*unit)
				for u := lo; u < min(hi, int64(len(have))); u++ {
					have[u] = true
				}
			}
			checkExtents(t, rng, e, have, limit)
			if t.Failed() {
				return
			}
		}
	}
}

func checkExtents(t *testing.T, rng *rand.Rand, e *extents, have []bool, limit int64) {
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
	units := int64(len(have))
	lo := rng.Int64N(units + 3)
	hi, in := lo+rng.Int64N(units+3-lo), int64(0)
	for u := lo; u < min(hi, units); u++ {
		if !have[u] {
			in++
		}
	}
	if got := e.missingIn(lo*e.unit, hi*e.unit); got != in {
		t.Errorf("missing in units %d to %d of %d: %d, want %d", lo, hi, units, got, in)
	}
	size := limit + 5*e.unit
	for off := int64(0); off < size; {
		p := e.next(off, size)
		if p.off != off || p.end <= off || p.end > size {
			t.Fatalf("piece %+v at %d", p, off)
		}
		for at := p.off; at < p.end; at += max(e.unit/2, e.unit/2*(rng.Int64N(1+(p.end-p.off)/e.unit/100))) {
			want := at < limit && !have[at/e.unit]
			if p.lower != want {
				t.Fatalf("piece %+v: %d in the lower: %v", p, at, want)
			}
		}
		off = p.end
	}
}
