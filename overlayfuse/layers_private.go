package overlayfuse

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// privateLower moves r to a private mount of its own, read-only: a descriptor opened below it can never be written to,
// whatever flags an open carries.
func (l *layers) privateLower(r *layerRoot) error {
	fd, err := l.cloneMount(r.fd, unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOATIME | unix.MOUNT_ATTR_NOSYMFOLLOW,
		Attr_clr: unix.MOUNT_ATTR__ATIME,
	})
	if err != nil {
		return fmt.Errorf("lower layer %s: private mount: %w", r.path, err)
	}
	if fd < 0 {
		return nil
	}
	old := r.fd
	r.fd = fd
	if err := unix.Close(old); err != nil {
		return fmt.Errorf("lower layer %s: close: %w", r.path, err)
	}
	return nil
}

// privateUpper moves upper and workdir to one private mount of their nearest common ancestor.
//
// Errors: EXDEV if no such ancestor exists on one mount.
// Compare: fs/overlayfs/super.c:ovl_get_workdir() (Linux 6.18), which asks for the same mount too.
func (l *layers) privateUpper(cfg Config) error {
	ancestor, upperPath, workPath, err := commonAncestor(l.upper, l.work)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(ancestor) }() // O_PATH: nothing to lose

	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSYMFOLLOW, Attr_clr: unix.MOUNT_ATTR__ATIME}
	switch cfg.Atime {
	case AtimeRelative:
		attr.Attr_set |= unix.MOUNT_ATTR_RELATIME
	case AtimeStrict:
		attr.Attr_set |= unix.MOUNT_ATTR_STRICTATIME
	case AtimeNone:
		attr.Attr_set |= unix.MOUNT_ATTR_NOATIME
	}
	if cfg.NoDirAtime {
		attr.Attr_set |= unix.MOUNT_ATTR_NODIRATIME
	}
	if l.clone, err = l.cloneMount(ancestor, attr); err != nil {
		return fmt.Errorf("upperdir %s: private mount: %w", l.upper.path, err)
	}
	if l.clone < 0 {
		return nil
	}
	if err := reopenBelow(l.clone, upperPath, &l.upper); err != nil {
		return fmt.Errorf("upperdir %w", err)
	}
	if err := reopenBelow(l.clone, workPath, &l.work); err != nil {
		return fmt.Errorf("workdir %w", err)
	}
	return nil
}

// cloneMount gives a detached mount of the directory fd alone, without what is mounted below it; it lives as long as
// the descriptor. -1 and no error: this process may not make one, and the mount goes on without (see layers.private).
func (l *layers) cloneMount(fd int, attr unix.MountAttr) (int, error) {
	if !l.private {
		return -1, nil
	}
	m, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err == nil {
		err = unix.MountSetattr(m, "", unix.AT_EMPTY_PATH, &attr)
		if !privileged() && errors.Is(err, unix.EPERM) {
			// A mount that came from outside keeps its atime flags (mount_namespaces(7)). Of a read-only one, no read changes a time.
			const atimes = unix.MOUNT_ATTR__ATIME | unix.MOUNT_ATTR_NODIRATIME
			attr.Attr_set &^= atimes
			attr.Attr_clr &^= atimes
			err = unix.MountSetattr(m, "", unix.AT_EMPTY_PATH, &attr)
		}
		if err == nil {
			return m, nil
		}
		_ = unix.Close(m) // of no use
	}
	// In a user namespace, mounts that came from outside refuse to be cloned when they hide others (EINVAL). There is no passthrough there to
	// guard against.
	if !privileged() && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL)) {
		l.private = false
		return -1, nil
	}
	if errors.Is(err, unix.EINVAL) {
		return -1, fmt.Errorf("is its mount unbindable? %w", err)
	}
	return -1, err
}

// reopenBelow replaces r's descriptor by one below the clone, and makes sure that it is the same directory still.
func reopenBelow(clone int, rel string, r *layerRoot) error {
	fd, err := openBeneath(clone, rel, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("%s: open below its private mount: %w", r.path, err)
	}
	n, err := rootOf(fd, r.path)
	if err == nil && (n.dev != r.dev || n.ino != r.ino) {
		err = fmt.Errorf("%s was renamed during the mount: %w", r.path, unix.ESTALE)
	}
	if err != nil {
		_ = unix.Close(fd) // O_PATH: nothing to lose
		return err
	}
	old := r.fd
	*r = n
	if err := unix.Close(old); err != nil {
		return fmt.Errorf("%s: close: %w", r.path, err)
	}
	return nil
}

// commonAncestor opens the nearest directory above both a and b, and says where they lie below it.
//
// Errors: EXDEV if a and b are on different mounts.
func commonAncestor(a, b layerRoot) (fd int, pathA, pathB string, err error) {
	upA, err := ancestors(a)
	if err != nil {
		return -1, "", "", err
	}
	defer closeSteps(upA)
	upB, err := ancestors(b)
	if err != nil {
		return -1, "", "", err
	}
	defer closeSteps(upB)

	for i := range upA {
		for j := range upB {
			if upA[i].id != upB[j].id {
				continue
			}
			if pathA, err = lastComponents(a, i); err != nil {
				return -1, "", "", err
			}
			if pathB, err = lastComponents(b, j); err != nil {
				return -1, "", "", err
			}
			fd, err = unix.FcntlInt(uintptr(upA[i].fd), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				return -1, "", "", fmt.Errorf("%s: dup: %w", a.path, err)
			}
			return fd, pathA, pathB, nil
		}
	}
	return -1, "", "", fmt.Errorf("workdir %s is not on the same mount as upperdir %s: %w", b.path, a.path, unix.EXDEV)
}

// lastComponents is the path of r below the n-th directory above it.
func lastComponents(r layerRoot, n int) (string, error) {
	if n == 0 {
		return ".", nil
	}
	p, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", r.fd))
	if err != nil {
		return "", fmt.Errorf("%s: real path: %w", r.path, err)
	}
	parts := strings.Split(strings.TrimPrefix(p, "/"), "/")
	if len(parts) < n {
		return "", fmt.Errorf("%s: real path %q is shorter than %d: %w", r.path, p, n, unix.ESTALE)
	}
	return strings.Join(parts[len(parts)-n:], "/"), nil
}

// openBeneath opens a path below dir without following a symlink, leaving dir or crossing a mount.
func openBeneath(dir int, path string, flags uint64) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV}
	return ignoringEINTR(func() (int, error) { return unix.Openat2(dir, path, &how) })
}
