package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// way is how a snapshot is mounted. It follows from the metadata and the marks of its layers alone, so that every call of
// Mounts, also after a restart, gives the same answer.
type way uint8

const (
	// wayBind: its own layer, writable. An active snapshot without a parent.
	wayBind way = iota
	// wayExtract: an overlay mount that nobody mounts: containerd's applier writes into the upper directory it names.
	wayExtract
	// wayFUSE: the mount server's mount, writable. A container.
	wayFUSE
	// wayViewBind: the only layer, which looks like what it means, read-only.
	wayViewBind
	// wayViewOverlay: the kernel's overlayfs without an upper.
	wayViewOverlay
	// wayViewFUSE: the mount server's mount, read-only.
	wayViewFUSE
)

// fuse: the mount server mounts it.
func (w way) fuse() bool { return w == wayFUSE || w == wayViewFUSE }

// wayOf decides how an active snapshot or a view is mounted.
//
//	kind    parents  key      layers                        way
//	active  any      extract  no redirects                  wayExtract
//	active  none     other                                  wayBind
//	active  some     other    or extract, with redirects    wayFUSE
//	view    none                                            wayViewBind, of its own empty layer
//	view    one               plain                         wayViewBind
//	view    some              no metacopy                   wayViewOverlay
//	view    some              metacopy                      wayViewFUSE
func (s *Snapshotter) wayOf(ctx context.Context, r record) (way, error) {
	marks, err := s.chainMarks(ctx, r.parents)
	if err != nil {
		return 0, err
	}
	if r.info.Kind == snapshots.KindActive {
		switch {
		// The applier looks up parents of what it writes below each lower directory by path, so it must find them there.
		// A metacopy file below would show there as a hole.
		case isExtraction(r.key) && !marks.Redirects && !marks.Metacopy:
			return wayExtract, nil
		case len(r.parents) == 0:
			return wayBind, nil
		}
		return wayFUSE, nil
	}
	switch {
	case len(r.parents) == 0, len(r.parents) == 1 && marks.plain():
		return wayViewBind, nil
	case s.kernelViews && !marks.Metacopy:
		return wayViewOverlay, nil
	}
	return wayViewFUSE, nil
}

// namespacedKey is how containerd's metadata store names a key: namespace, number, the client's key.
// Compare: containerd core/metadata/snapshot.go:createKey() (2.4.2).
var namespacedKey = regexp.MustCompile(`^[^/]+/[0-9]+/`)

// isExtraction tells keys under which containerd unpacks an image layer.
// Compare: containerd core/snapshots/snapshotter.go:UnpackKeyFormat (2.4.2).
func isExtraction(key string) bool {
	return strings.HasPrefix(key[len(namespacedKey.FindString(key)):], snapshots.UnpackKeyPrefix+"-")
}

// Mounts returns the mounts of an active snapshot or a view, and mounts what the mount server should have and has not: after
// a reboot, a container's file system comes back here.
//
// Errors: errdefs.ErrNotFound; errdefs.ErrFailedPrecondition for a committed snapshot; errdefs.ErrUnavailable without a mount server.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	r, unlock, err := s.lockRecord(ctx, key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if r.info.Kind == snapshots.KindCommitted {
		return nil, fmt.Errorf("snapshot %s is committed: %w", key, errdefs.ErrFailedPrecondition)
	}
	w, err := s.wayOf(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("mounts of snapshot %s: %w", key, err)
	}
	if w.fuse() {
		if err := s.ensureMounted(ctx, s.spec(r)); err != nil {
			return nil, fmt.Errorf("mount snapshot %s: %w", key, err)
		}
	}
	return s.mountsBy(w, r), nil
}

func (s *Snapshotter) mountsBy(w way, r record) []mount.Mount {
	switch w {
	case wayBind:
		return bind(s.root.layer(r.id), "rw")
	case wayExtract:
		// Never ro: the last mount of an extraction being read-only means that the layer's content is already there.
		// The paths come last and lowerdir last of all: containerd shortens long lists itself.
		return overlay("index=off", "redirect_dir=follow", "workdir="+s.root.work(r.id), "upperdir="+s.root.layer(r.id),
			"lowerdir="+strings.Join(s.lower(r), ":"))
	case wayFUSE:
		return bind(s.root.mountPoint(r.id), "rw")
	case wayViewBind:
		if len(r.parents) == 0 {
			return bind(s.root.layer(r.id), "ro")
		}
		return bind(s.root.layer(r.parents[0]), "ro")
	case wayViewOverlay:
		lower := s.root.layers(r.parents)
		if len(lower) == 1 { // without an upper, overlayfs wants two
			lower = append(lower, s.root.empty())
		}
		return overlay("ro", "redirect_dir=follow", "lowerdir="+strings.Join(lower, ":"))
	case wayViewFUSE:
		return bind(s.root.mountPoint(r.id), "ro")
	}
	return nil
}

func bind(source, access string) []mount.Mount {
	return []mount.Mount{{Type: "bind", Source: source, Options: []string{access, "rbind"}}}
}

func overlay(options ...string) []mount.Mount {
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: options}}
}

// lower is the layers below a snapshot: an empty directory if there are none.
func (s *Snapshotter) lower(r record) []string {
	if len(r.parents) == 0 {
		return []string{s.root.empty()}
	}
	return s.root.layers(r.parents)
}

// spec is the mount server's mount of a snapshot.
func (s *Snapshotter) spec(r record) MountSpec {
	spec := MountSpec{
		ID:         s.root.mountPoint(r.id),
		MountPoint: s.root.mountPoint(r.id),
		Lower:      s.lower(r),
		// the source of the mount, and of every bind of it, tells whose it is
		Options: append([]string{"fsname=" + s.root.mountPoint(r.id)}, s.cfg.MountOptions...),
	}
	if own, err := sharing(r.info.Labels); err == nil { // it was checked when it was set
		spec.Options = append(spec.Options, own...)
	}
	if r.info.Kind == snapshots.KindActive {
		spec.Upper, spec.Work = s.root.layer(r.id), s.root.work(r.id)
	}
	return spec
}

// ensureMounted makes the mount, or finds it made.
//
// Locks: the id's lock is held.
// Crash: a mount point with or without a mount; both are found again by Mounts and by reconcile.
func (s *Snapshotter) ensureMounted(ctx context.Context, spec MountSpec) error {
	if err := os.Mkdir(spec.MountPoint, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	mounted, readOnly, err := mountedAt(spec.MountPoint)
	if err != nil {
		return err
	}
	if mounted {
		live, err := s.serving(ctx, spec.ID)
		switch {
		case err != nil:
			return err
		case live != nil && readOnly && live.Upper != "": // a commit was cut short by a crash
			return setReadOnly(spec.MountPoint, false)
		case live != nil:
			return nil
		}
		if err := s.retire(ctx, spec.MountPoint); err != nil {
			return err
		}
	}
	return s.cfg.Mounter.Mount(ctx, spec)
}

// serving is what the mount server serves under an ID: the specification it was mounted with, or nil.
func (s *Snapshotter) serving(ctx context.Context, id string) (*MountSpec, error) {
	specs, err := s.cfg.Mounter.Mounted(ctx)
	if err != nil {
		return nil, err
	}
	for i := range specs {
		if specs[i].ID == id {
			return &specs[i], nil
		}
	}
	return nil, nil
}
