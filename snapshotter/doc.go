// Package snapshotter is a containerd snapshotter whose containers live on an overlay that another process mounts.
//
// # What
//
// [Snapshotter] implements containerd's snapshots.Snapshotter and snapshots.Cleaner. What exists is said by containerd's own
// metadata store (core/snapshots/storage, bolt); files are in one directory per snapshot; mounts are made by a [Mounter].
//
// # Terms
//
// The words of containerd's core/snapshots: an active snapshot is written to, a view is read-only, a committed one is a layer
// and never changes. A key is the client's name for a snapshot, an id the metadata's number for it, given once. An extraction
// is an active snapshot into which containerd unpacks an image layer; its key tells. upper, work, lower, whiteout, redirect
// and metacopy are overlayfs's words. A session is a mount that the mount server serves; it outlives its mount point while a
// bind or an open file uses it.
//
// # Mounts
//
// How a snapshot is mounted follows from metadata and layers alone; the table is at Snapshotter.wayOf. Containers get the
// mount server's mount, bound. An extraction gets an overlay mount that nobody mounts: containerd's applier writes straight
// into the upper directory it names, whiteouts included (core/diff/apply/apply_linux.go:apply, 2.4.2), also for the first
// layer, which has an empty directory below it. A view gets the cheapest mount that shows its layers right: a bind of a layer
// that is nothing but plain files, else the kernel's overlayfs following redirects, else FUSE.
//
// No committed layer has a metacopy file: Commit makes the upper complete and then looks at every file. Redirects stay.
//
// # Commit
//
// While a snapshot is committed its mount is read-only as a whole, in every bind. So nothing is written between the flush and
// the transaction, nothing is lost, and a bind that outlives the commit cannot change the layer. Files open for writing make
// the commit fail, as containerd's callers unmount first and a running writer's last words could only be lost. The mount point
// goes after the transaction, when nothing can fail any more.
//
// Deviation from containerd's overlayfs snapshotter: there, a layer committed while mounted goes on changing
// (TestCommitWhileBound, TestCommitWhileAFileIsOpenForWriting).
//
// # Crashes
//
// A crash can come between any two of these steps. What it leaves is recognised by the metadata, which alone is believed:
//
//	step                           left by a crash after it          collected by
//	Prepare, View
//	 make new-RANDOM/              new-RANDOM without an id          Cleanup
//	 rename it to ID/              ID without an id, given again     the next Prepare, Cleanup
//	 end of transaction            a snapshot nobody mounted         Mounts
//	 make mounts/ID                an empty mount point              Mounts, or reconcile
//	 mount                         a session of a live snapshot      kept; Mounts finds it
//	Commit
//	 mount read-only               active, but read-only             reconcile, Mounts
//	 flush, marks.json             active, complete                  nothing to do: the next Commit does it again
//	 end of transaction            committed, but mounted            reconcile
//	 unmount, drop work            work of a committed snapshot      Cleanup
//	Remove
//	 end of transaction            a session without a snapshot      reconcile
//	 unmount                       ID without an id                  Cleanup
//	Cleanup
//	 rename to garbage-ID-RANDOM   garbage-*                         Cleanup
//
// reconcile runs when the root is opened and at each Cleanup. After a reboot no session exists; Mounts makes it again.
// Each line has its test in crash_test.go.
//
// # Locks
//
//	idLocks (one per snapshot; held while it is mounted, flushed, committed, unmounted)
//	  bolt's write transaction (short: never across a walk, a flush or a call of the mount server)
//	    usageCache.mu, marksCache.mu, idLocks.mu (leaves)
//
// Remove keeps the id's lock until its unmount, in the background, is done; Close waits for that.
//
//	measurement.mu (held while one snapshot is measured; taken under none of the above)
//
// Between processes: flock on root/lock, for as long as the root is open.
//
// # Errors
//
// containerd's errdefs, with the cause and its errno in the chain. ErrUnavailable: the mount server cannot be reached; the
// socket is named. An error of Commit leaves the snapshot as it was.
//
// # Units
//
// Usage is in bytes and inodes, counted as containerd's fs.DiskUsage does.
//
// # What it is not
//
// It knows neither FUSE nor files' contents. It touches no path inside a mount it asked for. It maps no ids: labels that ask
// for it are refused.
package snapshotter
