package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
)

// unit says how a quantity is printed. Quantities are kept in seconds, bytes or as plain numbers.
type unit int

const (
	seconds unit = iota
	bytesUnit
	times // a ratio
	percent
)

func (u unit) String() string { return [...]string{"seconds", "bytes", "times", "percent"}[u] }

// row is one quantity of an experiment.
type row struct {
	key   string // in values
	title string
	unit  unit
	must  []bound
}

// bound is what ours must keep: at most limit, or at most limit times what another system has.
type bound struct {
	against system // "" is none
	limit   float64
}

func atMost(limit float64) bound { return bound{limit: limit} }

func against(y system, limit float64) bound { return bound{against: y, limit: limit} }

// sample is one measured quantity.
type sample struct {
	Value float64
	Over  bool `json:",omitempty"` // cut off by the deadline: it is more than Value
}

// median of samples; of an even number the upper of the two in the middle. Without samples there is none.
func median(samples []sample) (sample, bool) {
	if len(samples) == 0 {
		return sample{}, false
	}
	sorted := slices.SortedFunc(slices.Values(samples), func(a, b sample) int { return cmp.Compare(a.Value, b.Value) })
	return sorted[len(sorted)/2], true
}

// verdict on a bound.
type verdict string

const (
	held    verdict = "ok"
	missed  verdict = "MISSED"
	unknown verdict = "?" // a system has no sample, or the deadline cut off what it is compared with
)

// judge says whether b holds of the medians of a row.
func (b bound) judge(medians map[system]sample) verdict { return b.judgeOf(ours, medians) }

// ofMirror says of a bound that ours misses whether the mirror would keep it, and its value: a bare FUSE server's.
func (b bound) ofMirror(medians map[system]sample) string {
	if b.judge(medians) != missed {
		return ""
	}
	of := medians[mirror].Value
	if other, ok := medians[b.against]; ok && other.Value != 0 {
		of /= other.Value
	}
	switch b.judgeOf(mirror, medians) {
	case held:
		return " (mirror " + digits(of) + ")"
	case missed:
		return " (mirror too: " + digits(of) + ")"
	default:
		return ""
	}
}

// judgeOf says whether y would keep b.
func (b bound) judgeOf(y system, medians map[system]sample) verdict {
	mine, ok := medians[y]
	if !ok {
		return unknown
	}
	limit := sample{Value: b.limit}
	if b.against != "" {
		if limit, ok = medians[b.against]; !ok {
			return unknown
		}
		limit.Value *= b.limit
	}
	switch {
	case mine.Value <= limit.Value && !mine.Over:
		return held
	case limit.Over:
		return unknown
	default:
		return missed
	}
}

func (b bound) text(u unit) string {
	switch {
	case b.against == "":
		return "≤ " + u.format(b.limit)
	case b.limit == 1:
		return fmt.Sprintf("≤ %s", b.against)
	default:
		return fmt.Sprintf("≤ %.3g × %s", b.limit, b.against)
	}
}

// format prints a quantity with three significant digits, two below a tenth.
func (u unit) format(v float64) string {
	switch u {
	case seconds:
		if v < 1 {
			return digits(v*1e3) + " ms"
		}
		return digits(v) + " s"
	case bytesUnit:
		names := []string{"B", "KiB", "MiB", "GiB"}
		i := 0
		for ; v >= 1024 && i < len(names)-1; i++ {
			v /= 1024
		}
		return digits(v) + " " + names[i]
	case percent:
		return digits(v) + " %"
	default:
		return digits(v)
	}
}

func digits(v float64) string {
	switch {
	case v >= 100 || v == 0:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case v >= 1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	case v >= 0.1:
		return strconv.FormatFloat(v, 'f', 3, 64)
	default:
		return strconv.FormatFloat(v, 'f', 1-int(math.Floor(math.Log10(v))), 64) // two digits
	}
}

func (s sample) text(u unit) string {
	if s.Over {
		return "> " + u.format(s.Value)
	}
	return u.format(s.Value)
}

// ratio of two medians, as text; "" if there is none to tell.
func ratio(medians map[system]sample, y system) string {
	mine, ok := medians[ours]
	other, ok2 := medians[y]
	switch {
	case !ok || !ok2 || other.Value == 0:
		return ""
	case mine.Over && other.Over:
		return ""
	case mine.Over:
		return "> " + digits(mine.Value/other.Value)
	case other.Over:
		return "< " + digits(mine.Value/other.Value)
	default:
		return digits(mine.Value / other.Value)
	}
}
