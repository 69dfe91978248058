package main

import (
	"slices"
	"time"
)

// experiments is all of "bench copyup", in the order of the table.
func (b *bench) experiments() []experiment {
	return slices.Concat(b.latencies(), []experiment{b.fsyncs()}, b.smalls(), b.bulks(), b.databases())
}

// within returns the deadline of an experiment's children: its own, or the one that -deadline gives all.
func (b *bench) within(own time.Duration) time.Duration {
	if b.deadline > 0 {
		return b.deadline
	}
	return own
}
