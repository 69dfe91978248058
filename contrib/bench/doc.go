// Command bench measures copy-up side by side: on the kernel's overlayfs, on fuse-overlayfs, on ours and, where that
// says something, in a plain directory of the same file system.
//
//	go run ./contrib/bench copyup                  every experiment; about half an hour, 15 GB free
//	go run ./contrib/bench copyup -quick           smaller files, fewer rounds; some minutes
//	go run ./contrib/bench copyup -only '^sqlite'  some of them; -list names them
//	go run ./contrib/bench threshold               up to which size copying whole beats copying partially
//
// It needs root, /dev/fuse, the kernel's overlayfs, fuse-overlayfs and sqlite3 in PATH, and ours (-overlayfuse).
// -out DIR keeps the tables (Markdown) and every single sample (JSON). -strict makes a missed bound exit code 1.
//
// # Terms
//
//   - An experiment is one workload. It prints rows; a row is one quantity, its unit and the bounds that ours must
//     keep.
//   - A round of an experiment runs the workload once on each of its systems, one after the other; the next round
//     starts with the next system. So what slows the machine down for a while slows all of them down.
//   - A sample is what one system showed in one round. A table shows medians of samples. Where it shows a ratio as a
//     quantity of its own (overwriting against writing anew), it is taken in each round.
//
// # What is fair
//
// Each round has a new upper directory and a new mount, and so each write is the first. The lower layer is made once and
// is in the page cache. Before a workload starts, the file system below is synced: nobody pays for what the one before
// left dirty. Names that a latency is measured on are looked up before: it is that of the system call alone. The
// kernel's overlayfs syncs what it copies; rows named "synced" have the others do so too, at the end.
//
// Data in the upper is what SEEK_DATA finds there; "allocated" is st_blocks, with the block that the extended
// attributes may need.
//
// # Processes
//
// This process mounts and looks only at the layers. Everything that touches a mount is a child with a deadline
// (bench -worker NAME, chown, sqlite3): if ours hangs, a child hangs, is killed, and its sample says so. FUSE servers
// run in the foreground as children. They are killed, and mounts are detached, however the run ends, SIGINT and SIGTERM
// included.
//
// # Sources
//
// The bounds are those that the partial copy-up engine was asked for. Compare: fs/overlayfs/copy_up.c:ovl_copy_up_file()
// (Linux 6.18), which skips the holes of a lower file, and syncs.
//
// # What it is not
//
// No test of correctness: it only notices when sqlite's answer, a sampled block or a lower file is wrong.
package main
