package copyup

import (
	"math"

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
	u := uint32(off / e.unit)
	if e.have.Contains(u) {
		to := e.have.NextAbsentValue(u)
		if at := to * e.unit; to >= 0 && at < e.limit {
			return piece{off, min(end, at), false}
		}
		return piece{off, end, false}
	}
	stop := min(end, e.limit)
	if to := e.have.NextValue(u); to >= 0 {
		stop = min(stop, to*e.unit)
	}
	return piece{off, stop, true}
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
		if to := e.have.NextAbsentValue(uint32(lo)); to < 0 || to >= hi && e.have.Contains(uint32(lo)) {
			return // all there: an overwrite
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

// present gives the number of bytes below the limit that the upper has, rounded to units.
func (e *extents) present() int64 { return (unitsIn(e.limit, e.unit) - e.missing) * e.unit }
