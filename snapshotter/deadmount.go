package snapshotter

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse"
	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/control"
)

// A mount whose server died is dead, but what was opened for writing in it may go on writing into the upper: the kernel does that by
// itself where it was given the real file (FUSE passthrough). So a dead mount is only taken away once it could be made read-only, which
// fails while such a file is open. Until then it stays, aside if its mount point is wanted, and its snapshot cannot be committed.
//
// That the mount server does not know a mount does not make it dead: another one may serve it, behind another socket. And what is mounted
// on a mount point need not be ours. So both are asked first.

// deadInfix is between an id and a random text in the name of a mount point of a dead mount that was put aside.
const deadInfix = ".dead-"

// deadOf gives the id of a mount point that putAside named.
func deadOf(name string) (id string, dead bool) {
	id, _, dead = strings.Cut(name, deadInfix)
	return id, dead
}

// quiet tells whether nothing can be written any more through a mount of ours that our mount server does not serve. If it is dead and nothing
// is open for writing, it is made read-only for that.
//
// Errors: errdefs.ErrFailedPrecondition if it is not dead; ETIMEDOUT if its server does not answer. Then nothing was done.
func quiet(ctx context.Context, m *mountinfo.Info) (bool, error) {
	alive, err := control.Alive(ctx, m)
	switch {
	case err != nil:
		return false, err
	case alive:
		return false, fmt.Errorf("%s is served by another mount server: %w", m.Mountpoint, errdefs.ErrFailedPrecondition)
	}
	err = setReadOnly(m.Mountpoint, true)
	if errors.Is(err, unix.EBUSY) {
		return false, nil
	}
	return err == nil, err
}

// quietAt is quiet of what is mounted on a directory that is a mount point of ours or aside of it. What is not ours is no concern.
func quietAt(ctx context.Context, dir, point string) (bool, error) {
	table, err := readMountTable()
	if err != nil {
		return false, err
	}
	m := table.on(dir)
	if m == nil || !sessionOf(m, point) {
		return true, nil
	}
	return quiet(ctx, m)
}

// retire takes dead mounts off a mount point. One that may still be written through goes aside.
//
// Locks: the id's lock is held.
// Errors: those of quiet.
func (s *Snapshotter) retire(ctx context.Context, point string) error {
	ok, err := quietAt(ctx, point, point)
	if err != nil {
		return err
	}
	if !ok {
		s.log.WithField("mountpoint", point).Warn("the mount server died, and something may go on writing in its mount")
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

// endWriting makes sure that nothing can be written to a layer through the sessions of its mount point that died, wherever they are mounted:
// on it, aside, or only where a container has them bound. live: the one on the mount point lives.
//
// Locks: the id's lock is held.
// Errors: errdefs.ErrFailedPrecondition, with EBUSY if something is open for writing; those of quiet.
func endWriting(ctx context.Context, point, layer string, live bool) error {
	table, err := readMountTable()
	if err != nil {
		return err
	}
	all, err := table.sessions(point)
	if err != nil {
		return err
	}
	if len(all) == 0 && !live { // nor is one where this mount namespace does not show it
		return awaitNoWriters(ctx, layer)
	}
	for _, m := range all {
		if on := table.on(point); live && on != nil && overlayfuse.DeviceOf(on) == overlayfuse.DeviceOf(m) {
			continue
		}
		switch ok, err := quiet(ctx, m); {
		case err != nil:
			return err
		case !ok:
			return fmt.Errorf("the mount server died, and files are open for writing in %s: %w: %w", m.Mountpoint, unix.EBUSY, errdefs.ErrFailedPrecondition)
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

// lettingGo is how long the kernel may take to close what it wrote through, once the last user of a dead mount is gone. It is some
// milliseconds (fs/fuse/inode.c:delayed_release()).
const lettingGo = 2 * time.Second

// awaitNoWriters is checkNoWriters of a layer which the kernel may be about to let go.
func awaitNoWriters(ctx context.Context, layer string) error {
	for end := time.Now().Add(lettingGo); ; {
		err := checkNoWriters(ctx, layer)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(lettingGo / 100):
		}
	}
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
func (s *Snapshotter) reconcileDead(ctx context.Context, aside, point string) error {
	ok, err := quietAt(ctx, aside, point)
	if err != nil || !ok {
		return err // it stays
	}
	return s.dropMountPoint(aside)
}
