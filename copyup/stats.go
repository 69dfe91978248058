package copyup

import "sync/atomic"

// Stats counts what the Files of one mount did and what they were spared. All fields but NotCopied only grow.
type Stats struct {
	Avoided   atomic.Uint64 // copy-ups of data that never came: open for writing without a write, truncation to 0, metadata alone
	Deferred  atomic.Uint64 // opens for writing that copied nothing
	Faults    atomic.Uint64 // first write faults that succeeded: partial, reflinked, or without anything to copy
	Partial   atomic.Uint64 // of these, those that left blocks in the lower
	Reflinked atomic.Uint64 // of these, those that shared all blocks with the lower
	Completed atomic.Uint64 // files whose last block arrived and was durable
	Failed    atomic.Uint64 // copy-ups and completions that failed

	BytesCopied  atomic.Uint64 // bytes of lowers that were written to uppers
	BytesCloned  atomic.Uint64 // bytes that uppers share with lowers by reflink
	BytesDropped atomic.Uint64 // bytes of uppers that were dropped from the page cache once they were written back
	NotCopied    atomic.Int64  // bytes that a whole copy-up of the same files would have copied and that were not, now; below 0 by earlier mounts' files

	Poisoned atomic.Uint64 // Files that answer EIO because upper and memory are in doubt

	noClone atomic.Bool  // the uppers' file system has no reflink
	scarce  atomic.Int64 // until when it counts as short of space, in ns since the epoch
}

// Counters is Stats at one moment. Counts are of files or events, Bytes of bytes. NotCopied is 0 at least: what an earlier mount spared and
// this one copied counts for nothing.
type Counters struct {
	Avoided      uint64 `json:"avoided"`
	Deferred     uint64 `json:"deferred"`
	Faults       uint64 `json:"faults"`
	Partial      uint64 `json:"partial"`
	Reflinked    uint64 `json:"reflinked"`
	Completed    uint64 `json:"completed"`
	Failed       uint64 `json:"failed"`
	BytesCopied  uint64 `json:"bytes_copied"`
	BytesCloned  uint64 `json:"bytes_cloned"`
	BytesDropped uint64 `json:"bytes_dropped_from_cache"`
	NotCopied    int64  `json:"bytes_not_copied"`
	Poisoned     uint64 `json:"poisoned"`
}

// Read gives the counters of this moment.
func (s *Stats) Read() Counters {
	return Counters{
		Avoided: s.Avoided.Load(), Deferred: s.Deferred.Load(), Faults: s.Faults.Load(), Partial: s.Partial.Load(),
		Reflinked: s.Reflinked.Load(), Completed: s.Completed.Load(), Failed: s.Failed.Load(),
		BytesCopied: s.BytesCopied.Load(), BytesCloned: s.BytesCloned.Load(), BytesDropped: s.BytesDropped.Load(),
		NotCopied: max(0, s.NotCopied.Load()), Poisoned: s.Poisoned.Load(),
	}
}
