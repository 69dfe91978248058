package copyup

import (
	"errors"
	"os"
	"sync/atomic"
)

// Target is the overlay's side of one regular file: it knows the names, the owner and the layers; File knows the data.
//
// Every descriptor that a Target returns belongs to File from then on: File closes it, the Target never does, also not
// in Commit or Abort. Descriptors must be seekable, of regular files, and without O_DIRECT.
//
// Locks: File holds no mutex when it calls a Target, but it may hold the reservation of the copy-up, for which writers of
// the same file wait. So a caller of File must not hold a lock that a method of its Target takes.
type Target interface {
	// OpenLower opens the file with the lower data for reading only. Never called in state Upper.
	OpenLower() (*os.File, error)
	// OpenUpper opens the upper file for reading and writing; for reading alone if nobody may write it, with O_APPEND if
	// it can only grow. Called in states UpperShared and Upper only.
	// It must work on a file that was unlinked while open.
	OpenUpper() (*os.File, error)
	// Stage reserves the copy-up and gives the file to copy into, open for reading and writing: a new file of the workdir
	// without a name, or the installed metacopy upper, whose data nobody reads before Commit.
	// Exactly one Commit or Abort follows a Stage that succeeded.
	Stage() (*os.File, error)
	// Commit makes the staged file the complete upper: owner, mode, xattrs, capability last, times, then the name; or, for a
	// metacopy upper, takes the mark away. The data in it is durable already, if durability is wanted.
	// File goes on using staged as the upper's descriptor.
	// Errors: after any error the lower must still be what the file shows and what Commit made must be gone, so that
	// Stage can be called again; where that cannot be said, the error wraps ErrInDoubt and the File is poisoned.
	Commit(staged *os.File) error
	// Abort gives the reservation back. A file that has no name disappears when File closes it.
	Abort(staged *os.File)
}

// Limiter is a Target whose lower data shows only up to a limit: a truncation was cut short by a crash between the
// change of the metacopy upper's size and the removal of its mark (see "Crash" in doc.go).
type Limiter interface {
	// LowerLimit gives the number of bytes at the start of the lower file that the file still shows. No I/O.
	LowerLimit() int64
}

// SyncMode is how durable a write must be before WriteAt returns.
type SyncMode uint8

const (
	// SyncNone leaves the data to writeback.
	SyncNone SyncMode = iota
	// SyncData is O_DSYNC: the data, and what is needed to read it back.
	SyncData
	// SyncAll is O_SYNC: data and all metadata.
	SyncAll
)

// Options are the same for every File of one mount.
type Options struct {
	// Volatile: never sync. A crash may lose or mix whatever was written; as in the kernel's overlayfs, such an upper must
	// not be used again after one.
	Volatile bool
	// Log is told, once for each file, why a File answers EIO from now on. May be nil. Called without locks.
	Log func(format string, args ...any)
	// Stats receives the counters. May be nil.
	Stats *Stats
}

// Stats counts what the Files of one mount did and what they were spared. All fields only grow.
type Stats struct {
	Faults      atomic.Uint64 // copy-ups that were committed
	FaultErrors atomic.Uint64 // copy-ups that failed and were undone
	BytesCopied atomic.Uint64 // bytes written to uppers by copy-ups
	BytesCloned atomic.Uint64 // bytes that uppers share with lowers by reflink

	AvoidedOpens     atomic.Uint64 // files that were open for writing and were closed again without a fault
	AvoidedTruncates atomic.Uint64 // copy-ups of a file with data that copied none of it (O_TRUNC, truncate to 0)
	AvoidedMetadata  atomic.Uint64 // metadata changes that copied no data; counted by the overlay
	AvoidedBytes     atomic.Uint64 // bytes of lowers that a truncation made unnecessary to copy

	Poisoned atomic.Uint64 // Files that answer EIO because upper and memory are in doubt
}

var (
	// ErrInDoubt marks an error after which nobody knows whether the upper or the lower holds the data.
	ErrInDoubt = errors.New("upper in doubt")
	// ErrWritableLower says that Target.OpenLower returned a descriptor that could write to the lower layer.
	ErrWritableLower = errors.New("lower descriptor is open for writing")
	// ErrNoUpper says that the data is still in the lower file only.
	ErrNoUpper = errors.New("no upper file yet")
)
