package snapshotter

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Cleanup deletes the files of removed snapshots, and whatever a crash left. What is in use stays for a later call.
//
// Errors: the first cause for each thing that could not be deleted, joined; the rest is deleted. If it is not known what is in
// use, nothing is deleted.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	faults, err := s.reconcile(ctx)
	if err != nil {
		return fmt.Errorf("cleanup: %w", err)
	}
	used, err := s.inUse(ctx)
	if err != nil {
		return fmt.Errorf("cleanup: %w", err)
	}
	var garbage []string
	// A write transaction, so that no snapshot is being made: its directory comes before its id.
	if err := s.store.WithTransaction(ctx, true, func(ctx context.Context) error {
		garbage, err = s.setGarbageAside(ctx, used)
		return err
	}); err != nil {
		return fmt.Errorf("cleanup: %w", err)
	}
	for i := range faults { // of single mounts; what they use is known nevertheless
		faults[i] = fmt.Errorf("cleanup: %w", faults[i])
	}
	if len(garbage) == 0 {
		return errors.Join(faults...)
	}
	bare, err := openBare(s.root.snapshots())
	if err != nil {
		return errors.Join(append(faults, fmt.Errorf("cleanup: %w", err))...)
	}
	defer func() { _ = bare.Close() }() // nothing is written through it
	for _, name := range garbage {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(faults, err)...)
		}
		if err := bare.removeAll(name); err != nil {
			faults = append(faults, fmt.Errorf("cleanup: %w", err))
		}
	}
	return errors.Join(faults...)
}

// bareDir is a directory without what is mounted below it, now or later: what is deleted in it is deleted there and nowhere else.
type bareDir struct {
	*os.File
	path string
}

func openBare(path string) (bareDir, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return bareDir{}, fmt.Errorf("%s: private mount: %w", path, err)
	}
	return bareDir{os.NewFile(uintptr(fd), path), path}, nil
}

// removeAll deletes what has the name, and all below it.
//
// Errors: EBUSY if something is mounted below it, which keeps what it has; those of unlinkat(2).
func (d bareDir) removeAll(name string) error {
	err := os.RemoveAll(fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name))
	if pe := (*os.PathError)(nil); errors.As(err, &pe) {
		return fmt.Errorf("delete %s: %w", filepath.Join(d.path, name), pe.Err)
	}
	return err
}

// setGarbageAside gives garbage names to what belongs to no snapshot, because an id can come back: one that was given in a
// transaction that a crash cut off. It returns the names of everything to be deleted.
//
// Preconditions: a write transaction is in the context.
func (s *Snapshotter) setGarbageAside(ctx context.Context, used map[string]bool) ([]string, error) {
	known, err := kinds(ctx)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(s.root.snapshots())
	if err != nil {
		return nil, err
	}
	var garbage []string
	for _, e := range entries {
		name := e.Name()
		kind, ok := known[name]
		switch {
		case strings.HasPrefix(name, tempPrefix), strings.HasPrefix(name, garbagePrefix):
			of := garbageOf(name)
			ended := !live(known[strings.TrimPrefix(of, garbagePrefix)]) // else its session's work directory has its own name
			if !used[name] && !(ended && used[of]) {
				garbage = append(garbage, name)
			}
		case !ok && !used[name]:
			aside := garbageName(name)
			if err := os.Rename(s.root.snapshot(name), s.root.snapshot(aside)); err != nil {
				return nil, err
			}
			garbage = append(garbage, aside)
		case kind == snapshots.KindCommitted && !used[name]:
			aside, err := s.dropWork(name)
			if err != nil {
				return nil, err
			}
			if aside != "" {
				garbage = append(garbage, aside)
			}
		}
	}
	return garbage, nil
}

// inUse is the names in snapshots/ that a mount still shows or lies below, of snapshots or of what is left of them; and garbageOf the garbage of those
// whose work directory is used.
//
// Errors: errdefs.ErrUnavailable if the mount server cannot be asked although mounts of its live.
func (s *Snapshotter) inUse(ctx context.Context) (map[string]bool, error) {
	table, err := readMountTable()
	if err != nil {
		return nil, err
	}
	used := table.using(s.root.snapshots())
	specs, err := s.cfg.Mounter.Mounted(ctx)
	if errdefs.IsUnavailable(err) && !table.hasFUSE(s.root.mounts()) {
		return used, nil
	}
	if err != nil {
		return nil, err
	}
	for _, spec := range specs {
		if id, ok := strings.CutPrefix(spec.ID, s.root.mounts()+"/"); ok && spec.Work != "" {
			used[garbagePrefix+id] = true // its files may be opened by way of the index, in what a commit made garbage
		}
		for _, dir := range append([]string{spec.Upper, spec.Work}, spec.Lower...) {
			if rest, ok := strings.CutPrefix(dir, s.root.snapshots()+"/"); ok {
				name, _, _ := strings.Cut(rest, "/")
				used[name] = true
			}
		}
	}
	return used, nil
}

// garbageOf gives the part of a garbage name that all garbage of one id has.
func garbageOf(name string) string { return name[:max(0, strings.LastIndexByte(name, '-'))] }

// garbageName is a name that nothing had and nothing will have.
func garbageName(id string) string { return garbagePrefix + id + "-" + rand.Text() }
