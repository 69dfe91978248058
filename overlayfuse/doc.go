// Package overlayfuse is an overlay file system on FUSE: read-only lower layers, one writable upper, merged into one tree in
// which opening a file for writing copies nothing.
//
// # What
//
// FS answers the kernel's requests (go-fuse's RawFileSystem), Session mounts and serves it, openLayers opens and checks the layers,
// ParseOptions reads mount(8)'s option text. The data of a regular file is package copyup's; this package gives it
// descriptors. One file answers one question:
//
//	layers.go workdir.go   which directories, are they fit, who else uses them
//	merge.go entry.go marks.go   what a name means in the lower layers
//	listing*.go            the names of a merged lower directory, read once and kept
//	chain_share.go         what mounts of the same lower layers have in common
//	lookup.go origin.go    what it means with the upper, and which object that is
//	ahead.go               which listings come with lookups
//	inode.go alias.go inode_map.go table.go   the objects that the kernel knows, their identity and names
//	place.go dirfd.go      where an object's real file is, as a descriptor
//	copyup.go dress.go install.go temp.go   how an object gets an upper
//	logged.go              what is synced where the upper's file system logs single inodes (btrfs)
//	target.go file.go ioctl.go   a regular file's data
//	iomode.go backing.go   in which mode it is opened; the kernel's hold of real files
//	open_files.go writeback.go   io=writeback: files that nobody opens, data and times that come late
//	absent.go              which attributes need not be looked for
//	create.go link.go remove.go rename.go replace.go readdir.go attr.go xattr.go acl.go owner.go caller.go   the operations
//	index.go flush*.go     hard links of lower files; an upper made fit to be a lower
//	inspect.go             what a mount says of itself
//	lost.go                writes that were lost, and of which nobody was told yet
//	fsck*.go               an upper that is not mounted, checked and repaired
//
// # Terms
//
// Those of the kernel's overlayfs (Documentation/filesystems/overlayfs.rst): upper, lower, workdir, whiteout, opaque, redirect,
// metacopy, origin, index, copy-up. A ref is one real object of one layer, an entry what a name means in the merged lower view, a
// listing all names of one directory of that view, an alias one name of an inode, a reservation a lock that is held across I/O.
//
// # States
//
// An inode has an upper object or not (upperObj); it gets one by copyUp and never loses it. A regular file's upper may be a metacopy: it
// has the attributes, copyup.File says where the data is. An inode without names is dead; if it has an upper, a pinned descriptor
// reaches it. In which mode an open file is read and written, iomode.go decides: whichever it is, everybody sees one content, but for
// mappings of programs that are written in place. An inode may have been given more than one nodeid (see split there).
//
// The identity of an inode (objKey, and st_ino from it) is that of the real object that was seen first: the topmost lower
// object, or the upper one where there is none. overlay.origin keeps it over a remount.
//
// # Locks
//
// In this order; one on the right or below is never held when one on the left or above is taken:
//
//	timeLocks                   held while a file's data or times change, with io=writeback
//	inodeIO.mu                  held while a backing file is opened and registered; not with a reservation
//	inode.copy of files         reservations, held across I/O; several: by age (lockAll)
//	  inode.copy of directories
//	    stack.build             of all mounts of a chain: the making of a listing; only leaves are taken under it
//	    FS.ns                   read: a path of the upper becomes a descriptor; write: a directory is renamed
//	      table.mu
//	        inode.mu            leaf
//	dirOrders.mu, upperOrder.mu, dirCache.mu, openFiles.mu, inoMap.mu, index.mu, handleTable.mu, listingCache.mu, chains.mu,
//	lookAhead.mu: leaves (but for inode.mu, which lookAhead.mu takes)
//	sharedChain.setup: while a mount is made; only leaves are taken under it
//	mending: held while an upper that lost its size in a crash gets it back; only table.mu is taken under it
//
// copyup.File's own reservations come before inode.copy of a file: it calls target.Stage, which takes that and keeps it until
// Commit or Abort, and Quietly and Complete, which take it for a moment. So nobody calls copyup.File with a reservation held.
//
// The merged lower view has no lock: the layers never change, an entry is constant, and a listing but for the entries that are found
// for it. Whether a name is one of the upper is asked first, under the reservation of the directory.
//
// Real files that are reached by a name are compared with the identity that the inode remembers: a rename or unlink that ran in
// between is seen, and the name looked up again.
//
// # Memory
//
// An inode that the kernel knows costs some 360 bytes of heap (inode_size_test.go), of which the entry, 128, and its place in the listing
// are shared by all mounts of a chain. One of the upper costs 100 more, an open file 250 until it is forgotten. Listings are bounded by
// listingBudget for the process, directory descriptors by dirFDsAll. How many inodes there are, the kernel decides; what nobody looks
// up is not given to it with a listing (ahead.go).
//
// A mount at rest has no goroutine that runs and no buffer. The heap that only a load needed, cmd/overlayfuse gives back 2 s after it.
//
// 20 times Python of one image with sharing=all, in KiB, 4 s after the last one was ready (Linux 6.18): 23,500 page cache of the image, as
// the kernel's overlayfs has, 4,800 of the server's program, 3,200 others, most of it listings that the kernel keeps of each
// mount's directories, and 7,500 anonymous memory: 3,400 live heap of 8,400 inodes and 3,900 files that were opened, 1,500 what the
// allocator cannot use otherwise, and the runtime with its stacks.
//
// # Errors
//
// Functions return errors that wrap an errno and name the layer and path; FS.fail turns them into the answer. One without errno is EIO and
// logged. An error of the kind "the layer is impossible" (a redirect that leaves the layer, a metacopy file without data, xattrs that
// can't be read) is answered for the object concerned, and nothing else.
//
// # Crash
//
// A new object and a copied-up one are made in work/work and get their name in one step. A copied-up file has no data then, and says so by
// its marks (marks.go); what its data needs of their order is argued in package copyup. What is left in work/work is removed at the
// next mount. The count of names of an indexed file (index.go) may be too large after a crash, never too small. On btrfs, a whiteout of
// a renamed file may be lost although the file was synced under its new name, as with the kernel's overlayfs: both names then show. What
// else btrfs's log of single inodes could lose is synced on purpose (logged.go): a moved lower object whose old name another one took,
// and what was synced in a directory that a commit found in work/work. The kernel's overlayfs loses both (contrib/powercut). And an upper
// that btrfs left without a size gets the lower's back, with its data; the kernel's overlayfs shows an empty file.
//
// # Deviations from the kernel's overlayfs
//
// Each has the script of its name in testdata/script, which runs on both ("as it comes": without redirect_dir=on, index=on, metacopy=on,
// nfs_export=on, which cost something or are not on by default).
//
//	| script                                       | kernel                                    | here                                          |
//	|----------------------------------------------|-------------------------------------------|-----------------------------------------------|
//	| better_open_for_writing_copies_nothing       | open for writing copies the whole file    | nothing is copied before the first write      |
//	| better_write_copies_only_blocks              | the first write copies the whole file     | it copies the blocks that it touches          |
//	| better_copyup_keeps_holes                    | small holes of a copy become zeros        | they stay holes                               |
//	| better_chmod_copies_no_data                  | a change of attributes copies the data    | it copies none (metacopy)                     |
//	| better_mapping_made_first                    | a mapping made before the write is stale  | it sees the write                             |
//	| better_mapping_of_a_descriptor_opened_first  | so is one of a descriptor opened before   | it sees the write                             |
//	| better_link_survives_copyup                  | a copy-up breaks hard links               | the names stay one file                       |
//	| better_link_survives_remount                 | they stay two files                       | they are one file at the next mount too       |
//	| better_rename_lower_directory                | EXDEV                                     | renamed, with a redirect                      |
//	| better_rename_merged_directory               | EXDEV                                     | renamed, with a redirect                      |
//	| better_rename_exchange_directories           | EXDEV                                     | exchanged, with redirects                     |
//	| better_rename_whiteout                       | EINVAL                                    | moved; the old name is gone                   |
//	| better_whiteout_that_was_lost                | a renamed file and its old name: ESTALE   | both are files, each with its own data        |
//	| better_handles_as_it_comes                   | file handles only with nfs_export=on      | while the inode lives                         |
//	| differs_fallocate_collapse_and_insert        | what the upper's file system does         | EOPNOTSUPP, from fs/fuse itself; UNSHARE too  |
//	| differs_chown_nothing                        | chown(-1, -1) takes set-id bits           | nothing: fs/fuse does not say what it is      |
//	| differs_setid_given_to_an_open_file          | a write takes them                        | stays: the kernel writes with our rights      |
//	| differs_watch_of_an_open_program             | a watch on the program tells of a write   | nothing; a watch on its directory tells of it |
//	| differs_locks_of_an_open_program             | they exclude those of later descriptors   | not if it was open when it was first written  |
//	| differs_partial_file_under_the_kernel        | no such file                              | the kernel's overlayfs: EIO, until a flush    |
//	| differs_metacopy_without_data                | EPERM, or EIO with metacopy=on            | EIO                                           |
//	| differs_completion_that_was_killed           | EIO: it has no partial files              | its times are put back at the next mount      |
//	| differs_access_times_of_a_partial_file       | a read sets it, O_NOATIME leaves it       | what is read in the upper sets it, no other   |
//	| differs_redirect_escapes                     | ".." in a redirect is EACCES              | EINVAL: the redirect is wrong                 |
//	| differs_mount_type                           | type overlay                              | type fuse.overlayfuse                         |
//
// With the option sharing (not with io=writeback, where nothing is shared):
//
//	| sharing_none                         | a mapping made before the write is stale  | it sees the write, of a program, too                  |
//	| sharing_mapped                       | so is one of a descriptor opened before   | the same, of files of every kind; reads see all       |
//	| sharing_all                          | a descriptor opened before sees the write | it never does, nor any later one; one opened later does |
//
// FICLONE between files of the mount is EOPNOTSUPP, as on the kernel's overlayfs over ext4, also where the upper's file system could
// do it: fs/fuse has no remap_file_range, so the server is never asked (fs/remap_range.c:vfs_clone_file_range(), Linux 6.18).
// copy_file_range(2) reaches the server and shares blocks there, which is what cp --reflink=auto does next.
//
// An upper or a workdir inside a lower layer is ELOOP. The kernel's overlayfs takes it, and writes to that layer (TestLayersSeenThroughABind).
//
// ENOSPC for a store into a mapped page of a cached file shows at msync, fsync or close: FUSE has no message for the store itself.
// Quotas of users and groups do not bind a server that has CAP_SYS_RESOURCE, on ext4, as they do not bind who mounts the kernel's overlayfs.
//
// Only with io=writeback (the first column is a script, or a test of fulldisk_test.go):
//
//	| writeback_holes_are_data             | SEEK_DATA finds data                   | all is data: fs/fuse does not write back before it asks        |
//	| writeback_access_times               | a read sets the access time            | only a read that the page cache can't answer                   |
//	| writeback_immutable_and_append_only  | chattr +i and +a of a file             | EOPNOTSUPP; of one that is so already the writeback fails      |
//	| writeback_change_time                | the change time of the write           | the upper's, of the writeback, once the kernel forgot the file |
//	| writeback_truncate_to_the_same_size  | truncate(2) changes the time           | not if the size stays                                          |
//	| TestFullDisk                         | ENOSPC at write(2)                     | at fsync or close; the page cache has the data until it forgets|
//	| TestLostWritesAreTold                | fsync(2) of each descriptor tells      | of what the upper lost, only that of who syncs first: nobody   |
//	|                                      | what was lost                          | knows the descriptors, which the kernel opens without asking   |
//
// There, fsync(2) tells everybody who has the file open of what could not be written to the upper, close(2) only who closes first
// (mm/filemap.c:filemap_check_errors()). close(2) writes back what is dirty, so whatever is dirty is of a file that is open for writing, and
// no mount with such a file can be made read-only. What the server is killed over is lost if it was not written back, as in a crash of the
// machine; with the other modes it is not. A file that was closed asks for its attributes at the next stat(2): fs/fuse believes that
// closing changed st_blocks (fs/fuse/file.c:fuse_flush()).
//
// A program or shared object of a lower layer that is written in place: who had mapped it sees the lower file still, as on the kernel's
// overlayfs; read(2) is never stale (sharing=none: mappings neither). If it was open while somebody opened it for writing, the old
// descriptors are of another inode of the kernel with the same st_ino: flock(2) and record locks of the two do not see each other,
// watches of inotify and fanotify and leases on the old one tell nothing of the new one, to open one again through /proc/self/fd is
// ESTALE, and what goes by the size that the kernel has (sendfile(2), splice(2), copy_file_range(2)) ends on an old one where the file ended
// before it grew, until that descriptor or its name is asked for the size (fstat(2)).
//
// syncfs(2) of the mount, and so sync -f, does nothing and reports no error: fs/fuse asks no server but virtiofs's
// (fs/fuse/inode.c:fuse_sync_fs()). fsync(2), O_SYNC and sync(2) do what they promise.
//
// Under passthrough the kernel maps the real file without a look at the flags of its inode: who has a file of the upper that was made
// append-only (chattr +a) open for reading and writing with O_APPEND can store into a shared mapping of it, which is EACCES on the kernel's.
//
// A directory's change time and link count that a copy-up of something in it changes show once the kernel asks again, for which the copy-up
// gives it no reason.
//
// A store through a shared mapping whose descriptor is closed changes the times of a file at once, but stat(2) may show the old
// ones for a second.
//
// # Changed layers
//
// A lower layer that is changed while it is mounted is not ours to follow, as with the kernel's overlayfs: names that were read stay,
// new ones may not show, and a file that is not the one that was looked up any longer is ESTALE or ENOENT when it is opened. It is the
// same for all mounts of the layer in one process: they share what was read, until the last one ends.
//
// # Units
//
// Sizes and offsets are bytes, st_blocks 512 bytes, times those of struct timespec.
//
// # Sources
//
// Linux 6.18 fs/overlayfs and fs/fuse; overlayfs.rst; go-fuse v2.12.1; man pages named where they count. Found beside or
// against what ../shared says, on this kernel: reads of a descriptor that was opened before the copy-up are not stale on its overlayfs,
// mappings are; a passthrough mapping that has lost its descriptor counts as a writer of the FUSE mount (a remount read-only is EBUSY).
// What a round trip costs is in package transport.
//
// # What it is not
//
// It knows nothing of containers and snapshots. User
// namespaces are the mount's, not the file system's: ids are mapped only by uidmapping= and gidmapping=.
package overlayfuse
