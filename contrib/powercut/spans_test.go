package powercut_test

import "math"

// forever is the end of the zeros behind every file.
const forever = math.MaxInt64

// span is a range of a file, from lo to before hi, and who may have written it.
type span struct {
	lo, hi int64
	src    source
}

// spans say of each byte who may have written it: every span that holds it. One that no span holds cannot exist.
type spans []span

// within is what s says about a range.
func (s spans) within(lo, hi int64) spans {
	var in spans
	for _, p := range s {
		if p.lo < hi && p.hi > lo {
			in = append(in, span{max(p.lo, lo), min(p.hi, hi), p.src})
		}
	}
	return in
}

// without is s with a range left out.
func (s spans) without(lo, hi int64) spans {
	out := make(spans, 0, len(s)+1)
	for _, p := range s {
		if p.hi <= lo || p.lo >= hi {
			out = append(out, p)
			continue
		}
		if p.lo < lo {
			out = append(out, span{p.lo, lo, p.src})
		}
		if p.hi > hi {
			out = append(out, span{hi, p.hi, p.src})
		}
	}
	return out
}

// with adds one possibility for a range.
func (s spans) with(lo, hi int64, src source) spans {
	if lo >= hi {
		return s
	}
	for _, p := range s {
		if p.src == src && p.lo <= lo && p.hi >= hi {
			return s
		}
	}
	return append(s, span{lo, hi, src})
}

// only makes src the only possibility for a range.
func (s spans) only(lo, hi int64, src source) spans {
	if lo >= hi {
		return s
	}
	return append(s.without(lo, hi), span{lo, hi, src})
}

// settled is s with what now says about a range.
func (s spans) settled(now spans, lo, hi int64) spans {
	return append(s.without(lo, hi), now.within(lo, hi)...)
}
