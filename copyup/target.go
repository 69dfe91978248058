package copyup

import (
	"errors"
	"os"
)

// Target is the overlay's side of one regular file: it knows the names, the owner, the marks and the layers; File knows the data.
//
// Every descriptor that a Target returns belongs to File from then on: File closes it, the Target never does, also not
// in Commit or Abort. Descriptors must be seekable, of regular files, and without O_DIRECT.
//
// Locks: File holds no mutex when it calls a Target, but it may hold the reservation of the copy-up or of an extent, for
// which writers of the same file wait. So a caller of File must not hold a lock that a method of its Target takes.
type Target interface {
	// OpenLower opens the file with the lower data for reading only. Never called in state Upper.
	OpenLower() (*os.File, error)
	// OpenUpper opens the upper file for reading and writing; for reading alone if nobody may write it, with O_APPEND if
	// it can only grow. Called in states UpperShared and Upper only.
	// It must work on a file that was unlinked while open.
	OpenUpper() (*os.File, error)
	// LowerLimit gives the number of bytes at the start of the lower file that the file still shows: a truncation takes
	// away what is beyond for ever. No I/O.
	LowerLimit() int64
	// Stage reserves the copy-up and gives the upper to raise, open for reading and writing: an upper that has the
	// attributes and the size of the file and no data, marked metacopy or partial, made first if there is none.
	// Exactly one Commit or Abort follows a Stage that succeeded.
	Stage() (*os.File, error)
	// Commit makes the data of the staged file count, as shape says: marks it partial, or takes the marks away.
	// What raising it changed of its times and capability is put back; by the next mount, if the process is killed before. File goes on
	// using staged as the upper's descriptor.
	// Errors: after any error the lower must still be what the file shows, so that Stage can be called again; where
	// that cannot be said, the error wraps ErrInDoubt and the File is poisoned.
	Commit(staged *os.File, shape Shape) error
	// Abort gives the reservation of Stage back.
	Abort(staged *os.File)
	// SetLimit stores a smaller lower limit with the partial upper.
	// Crash: the old limit or the new one.
	SetLimit(upper *os.File, limit int64) error
	// MeanEmpty notes with the partial upper that a size of 0 is meant, and not one that was lost. Called before a truncation to 0 if
	// Options.LooseNames.
	MeanEmpty(upper *os.File) error
	// Quietly runs fn, which copies data into the partial upper that the file shows already: its times and its capability
	// are afterwards what they were, and nobody changes them meanwhile. lasting: also if the process is killed before the end.
	// Errors: those of fn; those of putting things back.
	Quietly(upper *os.File, lasting bool, fn func() error) error
	// Complete takes the marks of a partial upper away. All of its data is durable, or need not be.
	// Errors: after one, the upper is still partial.
	// Crash: partial, or complete.
	Complete(upper *os.File) error
	// Keep makes the overlay keep this File for the file, and no other, until release is called. False: it has gone already.
	Keep() (release func(), ok bool)
}

// Shape is what a copy-up makes of an upper.
type Shape struct {
	// Partial: what the upper does not have is in the lower, below Limit. Else the upper is complete.
	Partial bool
	// Limit is the number of bytes of the lower that still show. It is less than the lower has, and has to be stored, if Cut.
	Limit int64
	Cut   bool
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

// DefaultPartialAbove is the size up to which a file is copied whole at its first write fault. See doc.go, "Sizes".
const DefaultPartialAbove = 128 << 10

// Options are the same for every File of one mount.
type Options struct {
	// Unit is the granularity in bytes at which the upper's file system tells data from holes (lseek(2) SEEK_DATA), a power
	// of two; see ProbeUnit. 0: it does not tell, so every copy-up is whole and waits for the disk.
	Unit int64
	// PartialAbove is the size in bytes up to which the whole file is copied at the first write fault.
	PartialAbove int64
	// LooseNames: a crash may leave a new upper's name and marks without its size and its extents, because an fsync of another
	// file wrote them (btrfs; assumed of file systems that are not known). No file is then made plain before it was synced itself; who makes
	// the Target gives an upper that is marked and has lost its size the lower's again, unless MeanEmpty says that 0 is meant.
	LooseNames bool
	// StaleTails: the file system leaves on the disk what a truncation cuts off within the last block, and shows it again after a
	// crash, if the file had grown since (btrfs, of plain files too). It is overwritten then.
	StaleTails bool
	// Volatile: never sync. A crash may lose or mix whatever was written; as in the kernel's overlayfs, such an upper must
	// not be used again after one.
	Volatile bool
	// Log is told, once for each file, why the File of a target answers EIO from now on. May be nil. Called without locks.
	Log func(t Target, format string, args ...any)
	// Lost is told when what was written to a Target's file did not reach the disk and nobody who uses the file was told, and with nil once
	// somebody was told of all of that. May be nil. Called without locks.
	Lost func(t Target, err error)
	// Stats receives the counters. May be nil.
	Stats *Stats
	// Background does what no caller waits for. Nil: nothing is done but what is asked for.
	Background *Background
}

var (
	// ErrInDoubt marks an error after which nobody knows whether the upper or the lower holds the data.
	ErrInDoubt = errors.New("upper in doubt")
	// ErrWritableLower says that Target.OpenLower returned a descriptor that could write to the lower layer.
	ErrWritableLower = errors.New("lower descriptor is open for writing")
	// ErrNoUpper says that the data is still in the lower file only.
	ErrNoUpper = errors.New("no upper file yet")

	// ErrMovedUp says that the data is in the lower file no longer, or not all of it.
	ErrMovedUp = errors.New("data has moved up")

	// errMoved says that the data has left the backing file that was asked for. It never leaves the package.
	errMoved = errors.New("data has moved up")
)
