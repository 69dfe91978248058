package copyup

import (
	"math"
	"sort"

	"github.com/RoaringBitmap/roaring/v2"
)

// maxUnits bounds the extent map: what it cannot number is copied whole at the first write fault.
const maxUnits = math.MaxUint32

// extents is the extent map of a partial file: which units of the file below the lower limit are in the upper. Beyond the
// limit the upper alone counts. A unit that the limit cuts belongs to it as a whole.
//
//	lower  |aaaaaaaa|bbbbbbbb|cccccccc|dddd      4 units, the last one cut by the limit
//	upper  |........|BBBBBBBB|........|....----  "." hole, "-" beyond the limit: a hole there is zeros
//	shows  |aaaaaaaa|BBBBBBBB|cccccccc|dddd0000
//
// Locks: none of its own; File.mu protects it.
type extents struct {
	unit    int64 // bytes
	limit   int64 // bytes of the lower that show where the upper has none
	have    *roaring.Bitmap
	missing int64 // units below the limit that are not in have
}

func newExtents(unit, limit int64) *extents {
	return &extents{unit: unit, limit: limit, have: roaring.New(), missing: unitsIn(limit, unit)}
}

// unitsIn counts the units that n bytes touch.
func unitsIn(n, unit int64) int64 { return (n + unit - 1) / unit }

func (e *extents) down(off int64) int64 { return off &^ (e.unit - 1) }

func (e *extents) up(off int64) int64 { return e.down(off + e.unit - 1) }

// missingIn counts the missing units of [off, end), which is aligned or ends behind the limit.
func (e *extents) missingIn(off, end int64) int64 {
	lo, hi := off/e.unit, unitsIn(min(end, e.limit), e.unit)
	if lo >= hi {
		return 0
	}
	return hi - lo - int64(e.have.CardinalityInRange(uint64(lo), uint64(hi)))
}

// full: the lower is needed no more.
func (e *extents) full() bool { return e.missing == 0 }

// has reports whether the upper alone counts at off.
func (e *extents) has(off int64) bool {
	return off >= e.limit && e.down(off) >= e.limit || e.have.Contains(uint32(off/e.unit))
}

// piece is a part of a file that is in one place.
type piece struct {
	off, end int64
	lower    bool
}

// next gives the piece at off, up to end. Units that the limit cuts give two pieces, as they are in two places.
// Preconditions: off < end.
func (e *extents) next(off, end int64) piece {
	if off >= e.limit {
		return piece{off, end, false}
	}
	stop := min(end, e.limit)
	u := uint32(off / e.unit)
	if e.have.Contains(u) {
		if at := e.absent(int64(u), unitsIn(stop, e.unit)) * e.unit; at < stop {
			return piece{off, at, false}
		}
		return piece{off, end, false}
	}
	if to := e.have.NextValue(u); to >= 0 {
		stop = min(stop, to*e.unit)
	}
	return piece{off, stop, true}
}

// absent gives the first unit of [lo, hi) that is missing, or hi. (Bitmap.NextAbsentValue of roaring v2.30.0 is wrong behind the
// first 65,536 values.)
func (e *extents) absent(lo, hi int64) int64 {
	const near = 64 // units that are looked at one by one: most writes are small
	for u := lo; u < min(hi, lo+near); u++ {
		if !e.have.Contains(uint32(u)) {
			return u
		}
	}
	if hi <= lo+near {
		return hi
	}
	before := int64(e.have.Rank(uint32(lo))) - 1
	// All of [lo, lo+n) are there for n up to some number, and for none above it.
	n := sort.Search(int(hi-lo), func(n int) bool {
		return int64(e.have.Rank(uint32(lo+int64(n))))-before <= int64(n)
	})
	return lo + int64(n)
}

// add notes that the upper has the units [off, end), which are aligned; what is beyond the limit is left out.
func (e *extents) add(off, end int64) {
	lo, hi := off/e.unit, min(end/e.unit, unitsIn(e.limit, e.unit))
	switch {
	case lo >= hi:
	case hi-lo == 1:
		if e.have.CheckedAdd(uint32(lo)) {
			e.missing--
		}
	default:
		if e.absent(lo, hi) == hi {
			return // an overwrite
		}
		before := e.have.GetCardinality()
		e.have.AddRange(uint64(lo), uint64(hi))
		e.missing -= int64(e.have.GetCardinality() - before)
	}
}

// cut makes the limit smaller.
func (e *extents) cut(limit int64) {
	if limit >= e.limit {
		return
	}
	e.limit = limit
	units := unitsIn(limit, e.unit)
	e.have.RemoveRange(uint64(units), math.MaxUint32+1)
	e.missing = units - int64(e.have.GetCardinality())
}
