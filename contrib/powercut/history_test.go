package powercut_test

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// kind is what an operation does.
type kind string

const (
	opWrite     kind = "write"     // write(2) of [Off, Off+Len), as with O_DSYNC if Sync
	opStore     kind = "store"     // into a shared mapping of [Off, Off+Len), and msync if Sync
	opTruncate  kind = "truncate"  // to Len
	opRewrite   kind = "rewrite"   // open with O_TRUNC, and write of [0, Len)
	opPunch     kind = "punch"     // a hole at [Off, Off+Len)
	opChmod     kind = "chmod"     // to Mode
	opRename    kind = "rename"    // Name to To, which is File Over's or nobody's
	opUnlink    kind = "unlink"    // Name
	opCreate    kind = "create"    // Name, as the new file File
	opFsync     kind = "fsync"     //
	opFdatasync kind = "fdatasync" //
)

// givesData says whether an operation ends with data that the kernel may keep to itself.
func (k kind) givesData() bool { return k == opWrite || k == opStore || k == opRewrite }

// op is one operation of a worker. Names are relative to the mount.
type op struct {
	N        uint32 // counts a worker's operations; the tag of what it writes
	Kind     kind
	File     uint32
	Name     string
	To       string `json:",omitempty"`
	Over     uint32 `json:",omitempty"`
	Off, Len int64
	Mode     uint32 `json:",omitempty"`
	Sync     bool   `json:",omitempty"`
}

func (o op) String() string {
	return fmt.Sprintf("op %d: %s %s %s (file %#x) off %d len %d mode %o sync %v", o.N, o.Kind, o.Name, o.To, o.File, o.Off, o.Len, o.Mode, o.Sync)
}

// record is what a worker tells its parent: an operation that it is about to begin, or the end of the one that it began.
type record struct {
	At  int64 // CLOCK_MONOTONIC, taken before an operation and after it
	Op  *op   `json:",omitempty"`
	Err string
}

// event is an operation with its time.
type event struct {
	op
	start int64
	done  int64 // 0: nobody knows whether it happened
}

// now is CLOCK_MONOTONIC in nanoseconds, which all processes share.
func now() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // no such clock: not Linux
	}
	return ts.Nano()
}

// replay brings w to the moment between the times before and after: what was done before it has happened, what was begun
// after it has not, and the rest may have.
func (w *world) replay(history [][]event, before, after int64) {
	for _, events := range history {
		for _, e := range events {
			if e.start > after {
				break
			}
			w.apply(e.op, e.done != 0 && e.done < before)
		}
	}
}
