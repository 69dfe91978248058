package overlayfuse

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
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

// checkOverlap refuses layers that lie inside each other, or are the same directory. Two comparisons: device and inode numbers up to the root
// of the layer's mount, so symlinks and odd spellings of a path do not hide anything; and, where layers are on several mounts, the paths inside
// the file system, so that a bind does not either. What is mounted inside a layer is no part of it.
//
// A mount that the process's mount table lacks (a detached one) is compared by the first alone.
//
// Errors: ELOOP, naming both.
// Compare: fs/overlayfs/super.c:ovl_check_overlapping_layers() (Linux 6.18).
func (l *layers) checkOverlap() error {
	var all []namedRoot
	if l.hasUpper() {
		all = append(all, namedRoot{"upperdir", l.upper}, namedRoot{"workdir", l.work})
	}
	for _, r := range l.lower {
		all = append(all, namedRoot{"lower layer", r})
	}
	if err := checkAbove(all); err != nil {
		return err
	}
	return checkAliases(all)
}

// namedRoot is a layer and what it is to the mount, for messages.
type namedRoot struct {
	role string
	layerRoot
}

func (r namedRoot) String() string { return r.role + " " + r.path }

// checkAbove looks for layers above each, as far as its mount reaches.
func checkAbove(all []namedRoot) error {
	roots := map[fileID]namedRoot{}
	for _, r := range all {
		id := fileID{r.dev, r.ino}
		if o, ok := roots[id]; ok {
			return fmt.Errorf("%v and %v are the same directory: %w", r, o, unix.ELOOP)
		}
		roots[id] = r
	}
	clear := map[dirID]bool{} // directories whose way up has been walked and holds no layer
	for _, r := range all {
		var above *namedRoot
		var walked []dirID
		err := walkUp(r.fd, func(_ int, id dirID) bool {
			if clear[id] {
				return false
			}
			if o, ok := roots[fileID{id.dev, id.ino}]; ok {
				above = &o
				return false
			}
			walked = append(walked, id)
			return true
		})
		if err != nil {
			return fmt.Errorf("%v: %w", r, err)
		}
		if above != nil {
			return fmt.Errorf("%v is inside %v: %w", r, *above, unix.ELOOP)
		}
		for _, id := range walked {
			clear[id] = true
		}
	}
	return nil
}

// checkAliases looks for layers above each in its file system, wherever binds show them.
func checkAliases(all []namedRoot) error {
	mounts := map[uint64]bool{}
	ids := make([]uint64, len(all))
	for i, r := range all {
		var st unix.Statx_t
		if err := unix.Statx(r.fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
			return fmt.Errorf("%v: statx: %w", r, err)
		}
		ids[i] = st.Mnt_id
		mounts[st.Mnt_id] = true
	}
	if len(mounts) == 1 {
		return nil // checkAbove saw all there is
	}
	table, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return !mounts[uint64(m.ID)], false })
	if err != nil {
		return fmt.Errorf("mount table: %w", err)
	}
	byID := map[uint64]*mountinfo.Info{}
	for _, m := range table {
		byID[uint64(m.ID)] = m
	}
	type place struct {
		major, minor int // of the superblock, which all subvolumes of a btrfs share
		path         string
	}
	places := make([]place, len(all))
	owners := map[place]namedRoot{}
	for i, r := range all {
		m := byID[ids[i]]
		if m == nil {
			continue
		}
		name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", r.fd))
		if err != nil {
			return fmt.Errorf("%v: real path: %w", r, err)
		}
		below, err := filepath.Rel(m.Mountpoint, name)
		if err != nil || !filepath.IsLocal(below) {
			return fmt.Errorf("%v: %s is not below its mount point %s: %w", r, name, m.Mountpoint, unix.ESTALE)
		}
		places[i] = place{m.Major, m.Minor, filepath.Join(m.Root, below)}
		owners[places[i]] = r
	}
	for i, r := range all {
		for p := places[i]; len(p.path) > 1; {
			p.path = filepath.Dir(p.path)
			if o, ok := owners[p]; ok {
				return fmt.Errorf("%v is inside %v, seen through another mount: %w", r, o, unix.ELOOP)
			}
		}
	}
	return nil
}

// walkUp visits the directories above fd, the nearest first, up to the root of its mount, until visit is false.
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
		if id == cur || id.mount != cur.mount || !visit(up, id) {
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
