package snapshotter

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// A mount whose server died is dead, but what was opened for writing in it may go on writing into the upper: the kernel does that by
// itself where it was given the real file (FUSE passthrough). So a dead mount is only taken away once it could be made read-only, which
// fails while such a file is open. Until then it stays, aside if its mount point is wanted, and its snapshot cannot be committed.

// deadInfix is between an id and a random text in the name of a mount point of a dead mount that was put aside.
const deadInfix = ".dead-"

// deadOf gives the id of a mount point that putAside named.
func deadOf(name string) (id string, dead bool) {
	id, _, dead = strings.Cut(name, deadInfix)
	return id, dead
}

// retire takes dead mounts off a mount point. One that may still be written through goes aside.
//
// Locks: the id's lock is held.
func (s *Snapshotter) retire(point string) error {
	mounted, _, err := mountedAt(point)
	if err != nil || !mounted {
		return err
	}
	if err := setReadOnly(point, true); err != nil {
		s.log.WithError(err).WithField("mountpoint", point).Warn("the mount server died, and something may go on writing in its mount")
		if err := putAside(point); err != nil {
			return err
		}
	}
	return detach(point)
}

// putAside mounts what is mounted on a mount point on one of its own as well. A bind, since no mount can be moved out of a shared one.
func putAside(point string) error {
	aside := point + deadInfix + rand.Text()
	if err := os.Mkdir(aside, 0o700); err != nil {
		return err
	}
	if err := unix.Mount(point, aside, "", unix.MS_BIND, ""); err != nil {
		return errors.Join(fmt.Errorf("bind %s on %s: %w", point, aside, err), os.Remove(aside))
	}
	return nil
}

// endDead takes away the dead mounts of a snapshot that were put aside.
//
// Locks: the id's lock is held.
// Errors: errdefs.ErrFailedPrecondition with EBUSY if something may still be written through one of them; it stays.
func (s *Snapshotter) endDead(id string) error {
	points, err := s.deadMounts(id)
	if err != nil {
		return err
	}
	for _, point := range points {
		mounted, _, err := mountedAt(point)
		if err != nil {
			return err
		}
		if mounted {
			if err := setReadOnly(point, true); err != nil {
				return fmt.Errorf("the mount server died while it was used: %w", err)
			}
		}
		if err := s.dropMountPoint(point); err != nil {
			return err
		}
	}
	return nil
}

// dropDead takes away the dead mounts of a snapshot that is gone: nobody shall see what is written through them.
func (s *Snapshotter) dropDead(id string) error {
	points, err := s.deadMounts(id)
	for _, point := range points {
		err = errors.Join(err, s.dropMountPoint(point))
	}
	return err
}

// deadMounts gives the mount points of a snapshot's dead mounts that were put aside.
func (s *Snapshotter) deadMounts(id string) ([]string, error) {
	entries, err := os.ReadDir(s.root.mounts())
	if err != nil {
		return nil, err
	}
	var points []string
	for _, e := range entries {
		if of, dead := deadOf(e.Name()); dead && of == id {
			points = append(points, s.root.mountPoint(e.Name()))
		}
	}
	return points, nil
}

// reconcileDead takes a dead mount of a live snapshot, which was put aside, away, unless something may still be written through it.
//
// Locks: the id's lock is held.
func (s *Snapshotter) reconcileDead(point string) error {
	mounted, _, err := mountedAt(point)
	if err != nil || mounted && setReadOnly(point, true) != nil {
		return err // it stays
	}
	return s.dropMountPoint(point)
}
