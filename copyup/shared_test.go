package copyup

import "testing"

// TestSharedBounds: what completions copy is bounded for all mounts that have the same settings.
func TestSharedBounds(t *testing.T) {
	background := func(rate int64, shared bool) *Background {
		b := NewBackground(BackgroundConfig{CompleteRate: rate, Workers: 3, Shared: shared})
		t.Cleanup(b.Close)
		return b
	}
	one := background(1<<20, true)
	if other := background(1<<20, true); one.limiter != other.limiter || one.slots != other.slots {
		t.Error("two with the same settings are bounded each for itself")
	}
	if other := background(2<<20, true); one.limiter == other.limiter || one.slots == other.slots {
		t.Error("two with different settings share bounds")
	}
	if other := background(1<<20, false); one.limiter == other.limiter || one.slots == other.slots {
		t.Error("one that shares nothing has the bounds of others")
	}
}
