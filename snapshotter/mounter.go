package snapshotter

import "context"

// MountSpec is one overlay mount, read-write or read-only.
type MountSpec struct {
	// ID names the mount among all mounts of the mount server; it is the mount point, so that two snapshotters can share a server.
	ID string
	// MountPoint is an existing empty directory.
	MountPoint string
	// Lower are the lower directories, the topmost first; at least one.
	Lower []string
	// Upper and Work are empty for a read-only mount.
	Upper, Work string
	// Options are further options as after -o, one per element.
	Options []string
}

// FlushOptions say what a flush leaves.
type FlushOptions struct {
	// KeepMetacopy leaves files metacopy of which only metadata was changed, in the format of the kernel's overlayfs.
	KeepMetacopy bool
}

// Mounter makes the overlay mounts. The mounts live outside the caller's process and outlive it.
//
// There are two: [MountServer], over FUSE, and the kernel's overlayfs in the tests, as the oracle.
// All methods are safe for concurrent use.
type Mounter interface {
	// Mount returns when the mount answers. The same specification already mounted: nil.
	//
	// Errors: errdefs.ErrUnavailable when the mount server cannot be reached.
	Mount(ctx context.Context, spec MountSpec) error
	// Unmount takes the mount off its mount point. Whatever still uses the mount elsewhere, through a bind or an open file,
	// goes on. An unknown ID: nil.
	Unmount(ctx context.Context, id string) error
	// Flush makes the upper directory fit to be a layer, and durable: no dirty page of the mount, no partial file, no metacopy file
	// unless opts say so, everything synced. It works on the mount if it is mounted, else on the directories.
	//
	// Errors: the cause, with its errno; the context's. The upper then holds everything it held before, and the next Flush goes
	// on where this one ended.
	Flush(ctx context.Context, spec MountSpec, opts FlushOptions) error
	// Mounted lists what the mount server serves, also what was unmounted and is still used.
	//
	// Errors: errdefs.ErrUnavailable when the mount server cannot be reached.
	Mounted(ctx context.Context) ([]MountSpec, error)
}
