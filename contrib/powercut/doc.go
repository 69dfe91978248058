// Package powercut holds tests of what an overlay keeps when the power goes, or its server. They need root, /dev/fuse,
// and xfsprogs, e2fsprogs and btrfs-progs; they import nothing of ours and drive the command alone.
//
// # Power
//
// The file system under test is on a loop device whose image is a file of a host xfs. Worker processes change files
// through the overlay and tell the parent of each operation before and after it. At random moments the parent makes a
// reflink copy (FICLONE) of the image: the disk as it would be found if the power had gone then. Each copy is mounted
// (the journal is replayed), `overlayfuse fsck -n` is run on it, the overlay is mounted and every file is compared:
//
//   - a byte is what it was at the last completed fsync of its file, or what any later operation made it. Never a byte of
//     another file, never an older one, never a zero that no operation explains;
//   - what a write with RWF_DSYNC, or a store with msync, put there is there, or what a later operation made of it;
//   - a size and a mode are those of that fsync or of a later operation; a size may be one on the way of an extending write;
//   - a name shows one of the files that ever had it, complete; a file that was only renamed has one name; a name that was
//     never taken away is there, and a name that nobody gave is not;
//   - every file can be read, and the lower directory is untouched.
//
// Directories are not synced, so names are not required to be new. On btrfs a name that was taken away may show the lower file
// again: the file system forgets the whiteout of a rename whose new name it keeps. A file that was replaced may come back under its name there, as old as the
// last commit of the whole file system, when the file that replaced it was renamed again.
//
// Two tests play what btrfs's log of single inodes loses, and needs a moment that a random load rarely meets: an object that was moved
// while another took its old name (TestMovedKeepsAName), and a directory that a commit found in the workdir
// (TestSyncedInNewDirectory). The kernel's overlayfs fails both (POWERCUT_BINARY=kernel).
//
// What this power cut is not: everything that the loop device was told is in the copy, as on a disk whose cache keeps its
// content. A missing flush of the disk's cache is not seen; a missing write, or a wrong order of writes, is.
//
// # Server
//
// The server is killed (SIGKILL) under the same load and the overlay mounted again. The page cache of the upper file system
// lives on, so all of the above holds with every completed operation in the place of the last fsync, names included; only a
// store into a mapping counts from its msync on.
//
// With io=writeback the kernel holds what was written and not synced: that may be lost, or be there in part. Whatever is asked of the
// server is kept as above: names, modes, truncations, holes.
//
// A flush and a repairing fsck are killed, too (TestKilledCommand): the next run leaves what an undisturbed one does, and an upper
// whose flush was killed is sound and shows what it showed.
//
// # Environment
//
//	POWERCUT_SEED=N     repeats a run's operations (not its timing)
//	POWERCUT_CUTS=N     cuts on each file system (24)
//	POWERCUT_FIRST=N    begins with the load that cut N is in (0)
//	POWERCUT_KILLS=N    kills on each file system (6), a third as many with io=writeback, half as many of a flush and of a repair
//	POWERCUT_FS=A,B     file systems (ext4,xfs,btrfs)
//	POWERCUT_BINARY=F   the overlayfuse to test, instead of this tree's; "kernel": the kernel's overlayfs
//	POWERCUT_STRICT=1   no exception for btrfs: see forgetsWhiteouts
//	POWERCUT_KEEP=1     keeps a copy in which something is wrong, and the operations, below /var/tmp
//
// All mounts are in a mount namespace of the test's own and every loop device clears itself: nothing outlives the test,
// not even one that is killed.
package powercut
