// Package copyup is the data of one regular file of an overlay: in the lower file until the first write, in the upper
// file from then on. It works on descriptors that a Target opens, and knows neither names nor layers nor FUSE.
//
// # Terms
//
//	lower        the file of a lower layer that has the data; never written, not even opened for writing
//	upper        the file of the upper layer
//	metacopy     an upper that has its own metadata and a mark that says that its data is still in the lower
//	copy-up      making an upper that has the data
//	write fault  the operation that makes a copy-up necessary: write, truncate, fallocate, being the target of a copy.
//	             Opening for writing is none, and no change of metadata is one
//	staged       the file that a copy-up fills: without a name, or a metacopy upper
//	commit       the step that makes the staged file the upper
//	backing      an open descriptor of the lower or the upper
//	reservation  the right to run the copy-up of a file; there is at most one
//
// # States
//
//	state        data is in                       entered
//	Lower        lower                            at first; after the last close of LowerShared
//	LowerShared  lower                            by the first open for writing
//	UpperShared  upper where written, else lower  by a partial copy-up
//	Upper        upper                            by a whole copy-up; by the last block of a partial one
//
// Transitions (state.go has the same as code; "-" is refused with EIO):
//
//	             openRead     openWrite    lastClose    wholeFault  partialFault  lastBlock
//	Lower        Lower        LowerShared  Lower        Upper       UpperShared   -
//	LowerShared  LowerShared  LowerShared  Lower        Upper       UpperShared   -
//	UpperShared  UpperShared  UpperShared  UpperShared  -           -             Upper
//	Upper        Upper        Upper        Upper        -           -             -
//
// Every copy-up of this version is whole: partialFault and lastBlock have their place in the table and nothing that
// raises them. New takes Lower and Upper.
//
// Invariants:
//   - Data moves up only. Once Upper, always Upper.
//   - The lower's bytes never change, and no descriptor of it can write: newBacking checks each with F_GETFL.
//   - A read that starts after a write returned reads the upper. A read that started earlier and finds, when it has its
//     bytes, that a copy-up was committed meanwhile, reads again.
//   - Each Stage that succeeded is followed by exactly one Commit or Abort.
//   - With no open and no operation left, a File has no descriptor.
//
// # Locks
//
//	reservation of a copy-up (File.copying)   held across Stage, copy, sync, Commit; one per file
//	  File.mu                                 leaf; held across no system call and no call of a Target
//
// Writes, reads and everything else on the backing run in parallel, ordered by the kernel's inode lock alone, as on a
// plain file. Who waits for a reservation holds no mutex. Two files are never reserved by one goroutine: CopyRange
// copies its target up before it opens its source, which it only reads. A caller must hold no lock that a method of its
// Target takes.
//
// A copy-up that fails ends for all who waited for it with the same error, except when the error is its maker's alone:
// the maker's context ended, or it was truncating, to a size that may be wrong or that others do not want. Then the next
// of those who waited tries.
//
// # Errors
//
// Every error wraps the errno of the system call, or of the Target, that caused it. EINTR of a system call is retried,
// except of close(2). After an error of a copy-up the state is unchanged, reads go on from the lower, and the operation
// can be tried again.
//
// Not passed on, and why:
//
//	call                    errno                                     instead
//	FICLONERANGE            EOPNOTSUPP EXDEV EINVAL ENOTTY ENOSYS     copy_file_range
//	                        EPERM ETXTBSY
//	copy_file_range         the same; 0 bytes before the end          pread and pwrite, which tell a real reason
//	lseek SEEK_DATA         the same (of the lower)                   everything is data
//	lseek SEEK_DATA         ENXIO                                     the rest is a hole
//	fallocate PUNCH_HOLE    EOPNOTSUPP (of a staged metacopy upper)   zeros are written
//	close                   any                                       the log; fsync(2) is what reports lost writes
//
// A File is poisoned when upper and memory are in doubt: it answers EIO from then on and says why to Options.Log, once.
// Causes: a Commit whose error wraps ErrInDoubt; a metacopy upper whose size could not be restored after a failed
// truncation; a Target that panicked; an initial state that New does not take. Only a new File, made from what is on the
// disk, gets out of it.
//
// # Crash
//
// A copy-up is, in this order: data into the staged file, fdatasync, Commit.
//
//   - Staged file without a name: before the Commit a crash leaves nothing, and the lower is what shows. The name that
//     Commit makes is journalled after the data is durable, so a name that survives has its data. Neither the name nor the
//     attributes are waited for: a crash after the Commit shows the file before the copy-up or after it.
//   - Metacopy upper: the mark stays until Commit removes it, and while it is there the data in the upper is nobody's; a
//     later attempt punches it out first, without touching the size, which stat(2) shows. Removing the mark is
//     journalled after the data is durable.
//   - Truncation of a metacopy upper: the new size, the data below it, fdatasync, removal of the mark. A crash between the
//     first and the last leaves a metacopy upper that is shorter than its lower: what truncate(2) was asked for, as long as
//     the overlay shows no more of the lower than that. Limiter tells the File.
//   - A copy-up that copies nothing (truncation to 0, a lower that is one hole) changes only metadata, which the journal
//     orders, and waits for nothing.
//   - Volatile: no sync. The name may survive without the data, as in the kernel's overlayfs.
//
// # Units
//
// All offsets, sizes and counters are bytes.
//
// # Sources
//
// Linux 6.18: fs/overlayfs/copy_up.c (order of data, attributes and name), fs/overlayfs/file.c (volatile drops O_SYNC),
// fs/open.c (fallocate). man 2: copy_file_range, ioctl_ficlonerange, lseek, pwritev2, close, fsync.
//
// # What it is not
//
// It does no access check, clears no setuid bit, sets no time (the kernel does where the upper is written), follows no
// name, and decides nothing about FUSE's caches: the overlay does. It does not notice a lower that changes.
package copyup
