package copyup

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTransitionsEveryCell compares the code with doc.go's table, written out again here as a person reads it.
func TestTransitionsEveryCell(t *testing.T) {
	const table = `
		             openRead     openWrite    lastClose    wholeFault  partialFault  lastBlock
		Lower        Lower        LowerShared  Lower        Upper       UpperShared   -
		LowerShared  LowerShared  LowerShared  Lower        Upper       UpperShared   -
		UpperShared  UpperShared  UpperShared  UpperShared  -           -             Upper
		Upper        Upper        Upper        Upper        -           -             -`
	rows := strings.Split(strings.TrimSpace(table), "\n")
	events := strings.Fields(rows[0])
	if len(events) != int(numEvents) || len(rows)-1 != int(numStates) {
		t.Fatalf("table is %d x %d, code is %d x %d", len(rows)-1, len(events), numStates, numEvents)
	}
	for s := range numStates {
		cells := strings.Fields(rows[s+1])
		if cells[0] != s.String() {
			t.Fatalf("row %d is %v, state is %v", s, cells[0], s)
		}
		for e := range numEvents {
			if events[e] != e.String() {
				t.Fatalf("column %d is %v, event is %v", e, events[e], e)
			}
			got, err := s.next(e)
			switch want := cells[e+1]; {
			case want == "-":
				if !errors.Is(err, unix.EIO) || got != s {
					t.Errorf("%v on %v: got %v, %v; want EIO and no move", s, e, got, err)
				}
			case err != nil || got.String() != want:
				t.Errorf("%v on %v: got %v, %v; want %v", s, e, got, err, want)
			}
		}
	}
}

func TestTransitionsOutsideTheTable(t *testing.T) {
	for _, c := range []struct {
		s State
		e event
	}{{numStates, openRead}, {200, openRead}, {Lower, numEvents}, {Upper, 200}} {
		if got, err := c.s.next(c.e); !errors.Is(err, unix.EIO) || got != c.s {
			t.Errorf("%v on %v: got %v, %v; want EIO and no move", c.s, c.e, got, err)
		}
	}
}

// TestDataNeverMovesDown: no event takes data from an upper state back to a lower one.
func TestDataNeverMovesDown(t *testing.T) {
	for s := range numStates {
		for e := range numEvents {
			if got, err := s.next(e); err == nil && !s.onLower() && (got.onLower() || got < s) {
				t.Errorf("%v on %v goes down to %v", s, e, got)
			}
		}
	}
}
