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
// # Metacopy
//
// Of a file whose mode, owner, times or name alone a container changed, the upper has no data. With Config.KeepMetacopy it is
// committed so, in the kernel's own format (trusted.overlay.metacopy, and redirect after a rename or link); without, Commit
// copies the data. A partial file, which has some of its data, is always completed: nobody else could read it. Commit looks at
// every file after the flush and refuses what it should not find. Redirects always stay.
//
// Who reads a committed layer, and what a kept metacopy file is to them:
//
//	reader                                          metacopy file
//	a container on it, by FUSE                      followed
//	a view of it, what containerd's differ walks    followed: mounted by FUSE then (wayOf), not by the kernel
//	an extraction on it                             followed: mounted by FUSE then, so without the applier's fast path
//	the kernel's overlayfs with metacopy=on         followed
//	whoever goes to the directory itself            a hole of the right size. Config.UpperdirLabel invites to that
//
// The parents that have the data cannot go before the layer: containerd's metadata refuses to remove a parent.
//
// The configuration's default, "auto", keeps them unless UpperdirLabel is on. "complete" was the other candidate: views of its
// layers are mounted by the kernel, which reads them faster, and cp(1) can copy them. But a "chown -R" of an image in one
// build step would make its commit as slow as copying the image, and its layer as large as the image: what this snapshotter is
// there to spare. What a kept file costs its readers is a mount by FUSE, which every container here has anyway. Who commits
// seldom and reads often can have "complete"; a layer that was committed before stays what it is either way.
//
// # Commit
//
// While a snapshot is committed its mount is read-only as a whole, in every bind. So nothing is written between the flush and
// the transaction, nothing is lost, and a bind that outlives the commit cannot change the layer. Files open for writing make
// the commit fail, as containerd's callers unmount first and a running writer's last words could only be lost. The mount point
// goes after the transaction, when nothing can fail any more.
//
// A mount server that died ends no writing: files that the kernel passes through are written as before. So its mount is taken away only
// once it is read-only, and is kept aside until then (mounts/ID.dead-RANDOM); while something can be written through it, the
// snapshot cannot be committed (deadmount.go).
//
// An active snapshot without a parent is no mount of ours but its directory, bound, as with containerd's own snapshotters: who still has it
// bound after the commit can change the layer. Nothing of it is pending here, and nothing keeps it from changing while it is committed, so
// no walk could sync it: its commit is the one that writes back all of the file system (syncfs(2)), also what is of others.
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
//	 put a dead mount aside        ID.dead-RANDOM                    Commit, Remove, or reconcile
//	 mount                         a session of a live snapshot      kept; Mounts finds it
//	Commit
//	 mount read-only               active, but read-only             reconcile, Mounts
//	 flush, marks.json             active, flushed                   nothing to do: the next Commit does it again
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
