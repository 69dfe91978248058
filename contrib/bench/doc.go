// Command bench measures side by side: on the kernel's overlayfs, on fuse-overlayfs, on ours and, where that says
// something, in a plain directory of the same file system.
//
//	go run ./contrib/bench all                     everything a user may notice; an hour, 15 GB free
//	go run ./contrib/bench all -quick              smaller files, fewer rounds; 12 minutes beside other work
//	go run ./contrib/bench all -only '^tree'       some of it; -list names the experiments
//	go run ./contrib/bench all -writeback          ours with io=writeback, too, in a column of its own
//	go run ./contrib/bench all -mirror             a FUSE server that only mirrors a directory, too
//	go run ./contrib/bench copyup                  the copy-up engine; about half an hour
//	go run ./contrib/bench threshold               up to which size copying whole beats copying partially
//
// It needs root, /dev/fuse, the kernel's overlayfs, fuse-overlayfs and sqlite3 in PATH, and ours (-overlayfuse); "all" also
// Go, git, fio, Debian's python3 and contrib/stack, and says which experiments it leaves out for the lack of one.
// -out DIR keeps the tables (Markdown), every single sample (JSON) and, of "all", a plot (SVG). -strict makes a missed bound
// exit code 1.
//
// # Terms
//
//   - An experiment is one workload. It prints rows; a row is one quantity, its unit and the bounds that ours must
//     keep.
//   - A round of an experiment runs the workload once on each of its systems, one after the other; the next round
//     starts with the next system. So what slows the machine down for a while slows all of them down.
//   - A sample is what one system showed in one round. A table shows medians of samples. Where it shows a ratio as a
//     quantity of its own (overwriting against writing anew), it is taken in each round.
//   - The mirror is a bare FUSE server: mirrorFS says what it does. Where ours misses a bound, the table has the mirror's ratio behind it.
//     It is no bound for all servers: one that is asked less is faster.
//   - Cold: the scratch file system is synced, and all caches of the machine are dropped, right before; the mount is new, so
//     the server knows nothing yet. Warm: the median of several passes after the first.
//   - A hub is one "overlayfuse serve", which serves many mounts as it does for the snapshotter; a fleet is many mounts of
//     one image, on a hub or as fuse-overlayfs has it.
//
// # What is fair
//
// Each round has a new upper directory and a new mount, and so each write is the first. The lower layer is made once and
// is in the page cache. Before a workload starts, the file system below is synced: nobody pays for what the one before
// left dirty. Names that a latency is measured on are looked up before: it is that of the system call alone. The
// kernel's overlayfs syncs what it copies; rows named "synced" have the others do so too, at the end.
//
// Everything lies on an ext4 of this run's own, in a file without a name on /var/tmp (-dir has it elsewhere): an aged file system
// creates inodes slowly, and unevenly. Its loop device does direct I/O, so that what is dropped from the page cache is read
// from the disk. Where an experiment changes nothing, plain is the lower directory itself.
//
// Each worker repeats an operation thousands of times and takes the time itself; commands (tar, git, sqlite3) are
// timed from fork to exit by a worker, containers from the start of nerdctl to its end. The page cache of a fleet is what a
// memory cgroup is charged, from cold caches, with all servers and all readers in the group; of the servers' resident memory, what is
// mapped from files is in there already. Memory is measured after 5 s of rest, of all systems: containers run for days, and their
// first second is not what a machine must have room for.
//
// Data in the upper is what SEEK_DATA finds there; "allocated" is st_blocks, with the block that the extended
// attributes may need.
//
// # Processes
//
// This process mounts and looks only at the layers. Everything that touches a mount is a child with a deadline
// (bench -worker NAME, chown, sqlite3): if ours hangs, a child hangs, is killed, and its sample says so. FUSE servers
// run in the foreground as children. They are killed, and mounts are detached, however the run ends, SIGINT and SIGTERM
// included. All mounts are in a mount namespace of the run's own; after a SIGKILL they, the servers and the scratch file system
// are gone as well, and only a containerd that was running is left.
//
// # Sources
//
// The bounds of "copyup" are those that the partial copy-up engine was asked for; those of "all" are the on coherence
// and speed ("Must show"). Compare: fs/overlayfs/copy_up.c:ovl_copy_up_file()
// (Linux 6.18), which skips the holes of a lower file, and syncs.
//
// # What it is not
//
// No test of correctness: it only notices when sqlite's answer, a sampled block or a lower file is wrong.
package main
