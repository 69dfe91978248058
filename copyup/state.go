package copyup

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// State says where the data of one regular file is. Metadata has no part in it: a file whose owner was changed and
// whose data was not (a metacopy upper) is in state Lower.
type State uint8

// The four states, in the order in which a file moves through them. doc.go draws the transitions.
const (
	// Lower: all data is in the lower file, and nobody has the file open for writing.
	Lower State = iota
	// LowerShared: all data is in the lower file, and somebody opened the file for writing.
	LowerShared
	// UpperShared: some blocks are in the upper file, the rest is still in the lower.
	UpperShared
	// Upper: the upper file is complete; the lower is never looked at again.
	Upper

	numStates
)

// String gives the state's name as DESIGN.md writes it.
func (s State) String() string {
	switch s {
	case Lower:
		return "Lower"
	case LowerShared:
		return "LowerShared"
	case UpperShared:
		return "UpperShared"
	case Upper:
		return "Upper"
	case numStates:
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// onLower reports whether the lower file alone holds the data.
func (s State) onLower() bool { return s == Lower || s == LowerShared }

// event is what moves a file from state to state.
type event uint8

const (
	openRead     event = iota // an open that cannot write
	openWrite                 // an open that can
	lastClose                 // the last of all opens went away
	wholeFault                // a copy-up that left nothing in the lower was committed
	partialFault              // a copy-up that left blocks in the lower was committed
	lastBlock                 // the last block that was missing in the upper arrived

	numEvents
)

// String gives the event's name for errors and the log.
func (e event) String() string {
	switch e {
	case openRead:
		return "openRead"
	case openWrite:
		return "openWrite"
	case lastClose:
		return "lastClose"
	case wholeFault:
		return "wholeFault"
	case partialFault:
		return "partialFault"
	case lastBlock:
		return "lastBlock"
	case numEvents:
	}
	return fmt.Sprintf("event(%d)", uint8(e))
}

// illegal marks the cells of the table that must never be asked for.
const illegal = numStates

// transitions is the table of doc.go. Data only ever moves up: no event leads from an upper state to a lower one.
var transitions = [numStates][numEvents]State{
	Lower: {
		openRead: Lower, openWrite: LowerShared, lastClose: Lower,
		wholeFault: Upper, partialFault: UpperShared, lastBlock: illegal,
	},
	LowerShared: {
		openRead: LowerShared, openWrite: LowerShared, lastClose: Lower,
		wholeFault: Upper, partialFault: UpperShared, lastBlock: illegal,
	},
	UpperShared: {
		openRead: UpperShared, openWrite: UpperShared, lastClose: UpperShared,
		wholeFault: illegal, partialFault: illegal, lastBlock: Upper,
	},
	Upper: {
		openRead: Upper, openWrite: Upper, lastClose: Upper,
		wholeFault: illegal, partialFault: illegal, lastBlock: illegal,
	},
}

// next gives the state that follows s on e.
// Errors: EIO for a cell that is illegal and for values outside the table; then s is returned unchanged.
func (s State) next(e event) (State, error) {
	if s >= numStates || e >= numEvents || transitions[s][e] == illegal {
		return s, fmt.Errorf("copyup: illegal transition: %v in state %v: %w", e, s, unix.EIO)
	}
	return transitions[s][e], nil
}
