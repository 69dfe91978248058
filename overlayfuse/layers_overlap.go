package overlayfuse

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// dirID names a directory on one mount.
type dirID struct {
	dev, ino, mount uint64
}

// fileID names a directory whatever mount it is seen through.
type fileID struct {
	dev, ino uint64
}

// step is an open directory on the way from a layer to the root of its mount.
type step struct {
	fd int
	id dirID
}

// checkOverlap refuses layers that lie inside each other, or are the same directory.
// It compares device and inode numbers all the way up, so symlinks and odd spellings of a path do not hide anything.
//
// Errors: ELOOP, naming both.
// Compare: fs/overlayfs/super.c:ovl_check_overlapping_layers() (Linux 6.18).
func (l *layers) checkOverlap() error {
	type owner struct{ role, path string }
	roots := map[fileID]owner{}
	add := func(role string, r layerRoot) error {
		id := fileID{r.dev, r.ino}
		if o, ok := roots[id]; ok {
			return fmt.Errorf("%s %s and %s %s are the same directory: %w", role, r.path, o.role, o.path, unix.ELOOP)
		}
		roots[id] = owner{role, r.path}
		return nil
	}
	type layer struct {
		role string
		layerRoot
	}
	var all []layer
	if l.hasUpper() {
		all = append(all, layer{"upperdir", l.upper}, layer{"workdir", l.work})
	}
	for _, r := range l.lower {
		all = append(all, layer{"lower layer", r})
	}
	for _, r := range all {
		if err := add(r.role, r.layerRoot); err != nil {
			return err
		}
	}

	clear := map[fileID]bool{} // directories whose way up has been walked and holds no layer
	for _, r := range all {
		var above owner
		var walked []fileID
		err := walkUp(r.fd, func(_ int, id dirID) bool {
			f := fileID{id.dev, id.ino}
			if clear[f] {
				return false
			}
			if o, ok := roots[f]; ok {
				above = o
				return false
			}
			walked = append(walked, f)
			return true
		})
		if err != nil {
			return fmt.Errorf("%s %s: %w", r.role, r.path, err)
		}
		if above.path != "" {
			return fmt.Errorf("%s %s is inside %s %s: %w", r.role, r.path, above.role, above.path, unix.ELOOP)
		}
		for _, f := range walked {
			clear[f] = true
		}
	}
	return nil
}

// walkUp visits the directories above fd, the nearest first, across mounts and up to the root, until visit is false.
// A parent that may not be searched ends the walk.
func walkUp(fd int, visit func(fd int, id dirID) bool) error {
	cur, err := identify(fd)
	if err != nil {
		return err
	}
	at := fd
	defer func() {
		if at != fd {
			_ = unix.Close(at) // O_PATH: nothing to lose
		}
	}()
	for {
		up, err := ignoringEINTR(func() (int, error) {
			return unix.Openat(at, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		})
		if errors.Is(err, unix.EACCES) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("open parent: %w", err)
		}
		if at != fd {
			_ = unix.Close(at) // O_PATH: nothing to lose
		}
		at = up
		id, err := identify(up)
		if err != nil {
			return err
		}
		if id == cur || !visit(up, id) {
			return nil
		}
		cur = id
	}
}

// ancestors opens r and the directories above it as far as its mount reaches. The caller closes them (closeSteps).
func ancestors(r layerRoot) (_ []step, err error) {
	var steps []step
	defer func() {
		if err != nil {
			closeSteps(steps)
		}
	}()
	add := func(fd int, id dirID) error {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("%s: dup: %w", r.path, err)
		}
		steps = append(steps, step{dup, id})
		return nil
	}
	id, err := identify(r.fd)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.path, err)
	}
	if err := add(r.fd, id); err != nil {
		return nil, err
	}
	var failed error
	err = walkUp(r.fd, func(fd int, up dirID) bool {
		if up.mount != id.mount {
			return false
		}
		failed = add(fd, up)
		return failed == nil
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, fmt.Errorf("%s: %w", r.path, err)
	}
	return steps, nil
}

func closeSteps(steps []step) {
	for _, s := range steps {
		_ = unix.Close(s.fd) // O_PATH: nothing to lose
	}
}

// identify asks for the ids of an open directory; the mount's is the one that is never used twice, from Linux 6.8 on.
func identify(fd int) (dirID, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW,
		unix.STATX_INO|unix.STATX_MNT_ID|unix.STATX_MNT_ID_UNIQUE, &st); err != nil {
		return dirID{}, fmt.Errorf("statx: %w", err)
	}
	return dirID{dev: unix.Mkdev(st.Dev_major, st.Dev_minor), ino: st.Ino, mount: st.Mnt_id}, nil
}
