// Package copyup is the data of one regular file of an overlay: in the lower file until the first write; from then on each block that
// was written in the upper file, and the rest in the lower still. It works on descriptors that a Target opens, and knows neither
// names nor layers nor FUSE.
//
// # Terms
//
//	lower        the file of a lower layer that has the data; never written, not even opened for writing
//	upper        the file of the upper layer
//	metacopy     an upper that has its own metadata and a mark that says that its data is all in the lower
//	partial      an upper with a mark that says that what is no hole in it is data, and the rest is in the lower
//	limit        the number of bytes at the start of the lower that show where a partial upper has a hole; a truncation
//	             makes it smaller, for ever
//	write fault  the operation that makes a copy-up necessary: write, truncate, fallocate, being the target of a copy.
//	             Opening for writing is none, and no change of metadata is one
//	copy-up      making an upper whose data counts
//	unit         the granularity of the extent map: the block of the upper's file system
//	missing      a unit below the limit that the upper does not have
//	populate     copy what is missing of a range; complete: of the file, and make it plain
//	staged       the upper that a copy-up raises: it has the attributes and the size already, and no data
//	commit       the step that makes the data of the staged upper count
//	backing      an open descriptor of the lower or the upper
//	reservation  the right to run the copy-up of a file, of which there is at most one; or of a span of a partial file
//
// # States
//
//	state        data is in                       entered
//	Lower        lower                            at first; after the last close of LowerShared
//	LowerShared  lower                            by the first open for writing
//	UpperShared  upper where written, else lower  by a write fault; the upper is marked partial
//	Upper        upper                            by a write fault that left nothing in the lower; by the last block
//
// Transitions (state.go has the same as code; "-" is refused with EIO):
//
//	             openRead     openWrite    lastClose    wholeFault  partialFault  lastBlock
//	Lower        Lower        LowerShared  Lower        Upper       UpperShared   -
//	LowerShared  LowerShared  LowerShared  Lower        Upper       UpperShared   -
//	UpperShared  UpperShared  UpperShared  UpperShared  -           -             Upper
//	Upper        Upper        Upper        Upper        -           -             -
//
// A whole fault is one that copies nothing and needs nothing of the lower: truncation to 0, a lower that is one hole, a file
// whose blocks are all shared (FICLONE). lastBlock is not the moment at which the last missing unit arrives, but the one at
// which all of them are known to be on the disk and the marks are taken away.
//
// Invariants:
//   - Data moves up only. Once Upper, always Upper.
//   - The lower's bytes never change, and no descriptor of it can write: newBacking checks each with F_GETFL.
//   - A missing unit is a hole in the upper, on the disk and in the cache. It is written whole, in one call, with what the lower
//     has around the caller's bytes. After a write or copy that fails, all units of its range that are still missing are punched out:
//     one may be half written, and without space ext4 leaves zeros in others, of which it says nothing (File.empty). While space is
//     short, missing units are allocated first, so that a kill between the two finds nothing.
//   - A unit that is there never becomes missing again, except by that.
//   - The limit on the disk is never larger than the size, or it is stored before the file can grow.
//   - A read that starts after a write returned sees that write. One that met a copy-up while it read the lower reads again.
//   - Each Stage that succeeded is followed by exactly one Commit or Abort.
//   - With no open and no operation left, a File has no descriptor.
//
// # The extent map
//
// On the disk it is the upper's own allocation; in memory a compressed bitmap of units (RoaringBitmap), made from it by the first
// operation that wants it. What has been written is asked by FIEMAP, after a writeback of the file, and not by SEEK_DATA: that takes a
// clean page in the cache over allocated, never written space for data, and xfs allocates such space around writes to a
// file that shares blocks (found by the model test; ../shared/DESIGN.md says SEEK_DATA tells exactly). tmpfs has no FIEMAP, no such space,
// and is asked by SEEK_DATA. ProbeUnit tries at the mount whether a file system can carry a map; one that can't gets whole
// copies that wait for the disk (Options.Unit 0).
//
// A file system may write zeros into the block that the end of a file cuts, when the size changes, hole or not: btrfs does. So the
// unit that the old or the new size cuts is brought to the upper first (cutUnit). And btrfs does not write the zeros behind a new, smaller
// size: after a power cut, a file that had grown again meanwhile shows what was cut off, also if the truncation was synced, and also if
// the file is a plain one (Linux 6.18, found by contrib/powercut). Options.StaleTails makes the block dirty.
//
// Memory: see TestExtentMapMemory, which prints it. 8 KiB for each 65,536 units (256 MiB) where neither runs nor rare units prevail, a few
// bytes for each run where they do. Of a file of 1 GiB, 262,144 units of 4 KiB, 2026-11-28:
//
//	| in the upper            | bytes  | for each unit |
//	|-------------------------|--------|---------------|
//	| 100,000 random units    | 33,370 | 0.127 (worst) |
//	| every second unit       | 33,101 | 0.126         |
//	| 1,000 random units      |  3,070 | 0.012         |
//	| one run of half of it   |    262 | 0.001         |
//	| nothing                 |    113 | 0.0004        |
//
// # Sizes
//
// Files up to Options.PartialAbove are copied whole at the first write fault, once they are partial, so that later reads
// need one file alone. It costs one copy_file_range(2) of what is in the page cache; see DefaultPartialAbove for the measurement
// that the default is from (contrib/bench threshold).
//
// # Zeros
//
// What fallocate(2) is to make zeros of can't be a hole of a partial upper. Zeros are written there, where the lower has data; or, if less
// data of the rest of the file is missing than that, the rest is completed, and the file is plain with the hole. So a range of zeros
// costs at most what it covers, and never the file. The zeros take space, which the hole of a plain file gives back.
//
// # Locks
//
//	reservation of a copy-up (File.copying)   held across Stage, FICLONE, Commit, populating a small file; one per file
//	  reservation of a span (File.spans)      held across reads of the lower, writes of the upper, Quietly, SetLimit, Complete;
//	                                          writers of other spans go on. The whole file for what changes the size or the state
//	    File.loading                          held while the map is read
//	    File.syncing                          held across a call that tells of failed writeback
//	File.telling                              held across Options.Lost; nothing is reserved then
//	      Background.mu                       held across nothing but
//	        File.mu                           leaf; held across no system call and no call of a Target
//
// Reads reserve nothing. Who waits for a reservation holds no mutex and no other reservation. Two files are never reserved by one
// goroutine. A caller must hold no lock that a method of its Target takes.
//
// A copy-up that fails ends for all who waited for it with the same error, except when the error is its maker's alone:
// the maker's context ended, or it was truncating. Then the next of those who waited tries.
//
// # Errors
//
// Every error wraps the errno of the system call, or of the Target, that caused it. EINTR of a system call is retried,
// except of close(2). After an error the file shows what it showed before, or of a write the first n bytes, or of a range to zero some of
// the zeros and the size before; and the operation can be tried again.
//
// Not passed on, and why:
//
//	call                    errno                                     instead
//	FICLONERANGE            EOPNOTSUPP EXDEV EINVAL ENOTTY ENOSYS     a partial file
//	                        EPERM ETXTBSY
//	copy_file_range         the same; 0 bytes before the end          pread and pwrite, which tell a real reason
//	lseek SEEK_DATA         the same (of the lower)                   everything is data
//	lseek SEEK_DATA         ENXIO                                     the rest is a hole
//	FIEMAP                  EOPNOTSUPP ENOTTY                         SEEK_DATA
//	populating a small file any                                       it stays partial; what is missing is read from the lower
//	SetLimit after a cut    any                                       the log; again before the file can grow, and then its error counts
//	Complete after a fsync  any                                       the log; the file stays partial
//	sync, writeback of one  any                                       the next Sync of each user reports it (SyncFor), and of who opens
//	  that nobody waits for                                             the file next if none did; until then Options.Lost has it
//	fadvise DONTNEED        any                                       the pages stay
//	close                   any                                       the log; fsync(2) is what reports lost writes
//
// What could not be written back is clean in the page cache, is written no more, and is gone when the kernel wants the page. The kernel
// tells it once to each descriptor, and all users of a file share the upper's. So one call that could hear of it runs at a time; after a
// failure nothing is called complete until the pages are dropped and the map is read again (distrust): then what was lost shows the
// lower. Writeback that nobody waits for is asked about before and after pages are dropped (Background). Between the failure and that, at
// most DropAfter, a page that the kernel drops by itself reads as zeros, as on a plain file; a whole file in the upper stays so.
//
// A File is poisoned when upper and memory are in doubt: it answers EIO from then on and says why to Options.Log, once.
// Causes: a Commit or Complete whose error wraps ErrInDoubt; a size that could not be restored after a failed copy-up; a unit that was
// half written and could not be punched out; a Target that panicked; an initial state that New does not take. Only a new
// File, made from what is on the disk, gets out of it.
//
// # Crash
//
// No copy-up waits for the disk. What makes that right is one order for marks, data and names, which each file system below keeps:
//
//		1  new upper: attributes, size and the mark "partial" (or "metacopy") on a file without a name
//		2  its name
//		3  data, in whole units that were holes; whenever the file system likes
//		4  truncation: the smaller size, then the smaller limit; growth only after the limit
//		5  completion: all data written back, its extents durable or journalled; then the marks are taken away
//
//	  - Between 1 and 2 nothing can be seen. 1 before 2 is metadata of one journal, or of one transaction: a name that survives
//	    has its marks and its size.
//	  - From 2 to 5 a unit whose data or extent did not reach the disk is a hole, and reads as the lower: old data. One that did is
//	    whole: new data. It is never zeros, because no hole is ever turned into an extent before its data is on the disk:
//	    ext4 (data=ordered, delayed allocation) writes data to unwritten extents and converts them when the write has ended
//	    (fs/ext4/page-io.c:ext4_end_io_end()), or holds the commit back until the data is written; xfs converts in
//	    fs/xfs/xfs_aops.c:xfs_end_io(); btrfs enters an extent when its ordered extent is finished
//	    (fs/btrfs/inode.c:btrfs_finish_one_ordered()). ext4 mounted data=writeback without delayed allocation does not
//	    promise that, for no file.
//	  - btrfs does not keep 1 before 2 together: an fsync of another file or of a directory may log a new name with the inode's
//	    xattrs, and with size 0 (found by contrib/powercut). Such an upper has its mark, as Options.LooseNames keeps every mark
//	    until the file was synced itself, and is given its size back when it is looked up: a marked upper of size 0 over a
//	    lower with data is meant only if its limit is 0 too, or the mark says so, which a truncation to 0 has it say first
//	    (Target.MeanEmpty). On the others a size of 0 is always meant.
//	  - 4: a crash between size and limit leaves a size below the limit; min(size, limit) is what a reader of the upper takes. Nobody lets
//	    the file grow before the limit is stored (limitDue), in the same journal, so before the larger size.
//	  - 5 waits with fsync(2) for the data, and the removal of the mark is a later transaction: it cannot be on the disk without it. That
//	    it is not waited for does not matter: with the mark, a complete file reads the same.
//	  - FICLONE shares blocks that are on the disk already, by metadata alone: such a file is complete without a wait (on btrfs
//	    it is marked until it was synced). A lower that is not on the disk yet is not cloned: that would wait.
//	  - fsync of a partial file makes name, marks and limit durable as well: the first one after a copy-up is fsync(2), never
//	    fdatasync(2) alone, which may skip them (named).
//	  - A kill of the process loses nothing that a write returned for: marks, sizes and data are in the kernel.
//	  - Volatile: no sync, and 5 without a wait. The upper is not used after a crash of the machine.
//
// crash_test.go plays kills and power cuts on the model; contrib/powercut does so on real file systems.
//
// # Memory
//
// Pages of an upper in the page cache are a second copy of what the mount's cache has. Background drops them: DropAfter their use, or
// sooner when more than CacheBytes were used; dirty ones are written back by the first fadvise and dropped by the next. What is written
// from one end to the other begins to be written back every StreamBytes, so that the disk works while the requests come
// (contrib/bench/results/mirror.md).
//
// # Units
//
// All offsets, sizes and counters are bytes; extents.missing counts units.
//
// # Sources
//
// Linux 6.18: fs/overlayfs/copy_up.c (order of data, attributes and name), fs/overlayfs/file.c (volatile drops O_SYNC),
// fs/open.c (fallocate). man 2: copy_file_range, ioctl_ficlonerange, lseek, pwritev, close, fsync, posix_fadvise.
//
// # What it is not
//
// It does no access check, clears no setuid bit, sets no time (the kernel does where the upper is written; a Target puts
// back what completion changes, but for ctime), follows no name, and decides nothing about FUSE's caches: the overlay does. It
// does not notice a lower that changes. Do not copy a partial upper with a tool that makes holes of zeros: they would
// show the lower.
package copyup
