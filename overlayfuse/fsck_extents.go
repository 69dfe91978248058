package overlayfuse

import "github.com/overlayfuse/overlayfuse-snapshotter/copyup"

// ownData is what a partial file has itself of its bytes below the lower limit.
type ownData struct {
	missing  int64 // bytes that only the lower has
	crooked  bool  // some data does not begin and end with a block, nor with the file
	off, end int64 // crooked: the first such data
}

// measureData looks at the data extents of a file of size bytes below limit.
//
//	          0        unit     2*unit   limit
//	upper     |........|DDDDDDDD|........|..DDD    "." hole, "D" data; 2*unit bytes are missing
//
// Compare: copyup.File.readExtents, which refuses a crooked file.
func measureData(extents []copyup.Extent, limit, size, unit int64) ownData {
	var own ownData
	pos := int64(0)
	for _, e := range extents {
		if e.Off >= limit {
			break
		}
		own.missing += max(0, e.Off-pos)
		if !own.crooked && (e.Off%unit != 0 || e.End%unit != 0 && e.End < min(limit, size)) {
			own.crooked, own.off, own.end = true, e.Off, e.End
		}
		pos = max(pos, e.End)
	}
	own.missing += max(0, limit-pos)
	return own
}
