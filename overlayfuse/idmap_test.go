package overlayfuse

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

func TestIDMapsTranslateBothWays(t *testing.T) {
	maps := []IDMap{{Host: 0, Mapped: 1000, Length: 1}, {Host: 1, Mapped: 110000, Length: 65536}}
	for stored, shown := range map[uint32]uint32{0: 1000, 1: 110000, 65536: 175535} {
		if got := shownID(maps, stored); got != shown {
			t.Errorf("shownID(%d) = %d, want %d", stored, got, shown)
		}
		if got, ok := storedID(maps, shown); !ok || got != stored {
			t.Errorf("storedID(%d) = %d, %v, want %d, true", shown, got, ok, stored)
		}
	}
	if got := shownID(maps, 65537); got != overflowID {
		t.Errorf("shownID of an unmapped id = %d, want %d", got, overflowID)
	}
	if _, ok := storedID(maps, 999); ok {
		t.Error("storedID of an unmapped id succeeded")
	}
	if got := shownID(nil, 7); got != 7 {
		t.Errorf("shownID without a mapping = %d, want 7", got)
	}
	if got, ok := storedID(nil, 7); !ok || got != 7 {
		t.Errorf("storedID without a mapping = %d, %v", got, ok)
	}
}

func TestIDMapsThatContradictThemselvesAreRefused(t *testing.T) {
	for name, maps := range map[string][]IDMap{
		"empty range":           {{0, 0, 0}},
		"end after the last id": {{0, 4294967290, 6}},
		"stored ids overlap":    {{0, 1000, 10}, {9, 2000, 1}},
		"shown ids overlap":     {{0, 1000, 10}, {100, 1009, 1}},
	} {
		if err := checkIDMaps("uidmapping", maps); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s: %v, want EINVAL", name, err)
		}
	}
	if err := checkIDMaps("uidmapping", []IDMap{{0, 4294967290, 5}, {5, 0, 10}}); err != nil {
		t.Errorf("good ranges: %v", err)
	}
}
