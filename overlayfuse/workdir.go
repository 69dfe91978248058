package overlayfuse

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/copyup"
)

// Names inside a workdir, as the kernel's overlayfs has them.
// Compare: fs/overlayfs/super.c:OVL_WORKDIR_NAME, OVL_INDEXDIR_NAME (Linux 6.18).
const (
	tempDirName     = "work"
	indexDirName    = "index"
	incompatDirName = "incompat" // in work/: an older mount must not go on with this upper
	volatileDirName = "volatile" // in work/incompat/
	bootDirPrefix   = "boot-"    // in work/incompat/volatile/: the boot in which the upper was written
)

// lock keeps every other mount of ours from using r, until close.
//
// Errors: EBUSY if another mount has it.
func (l *layers) lock(role string, r layerRoot) error {
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Openat(r.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return fmt.Errorf("%s %s: open: %w", role, r.path, err)
	}
	_, err = ignoringEINTR(func() (int, error) { return 0, unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	if err == nil {
		l.locks = append(l.locks, fd)
		return nil
	}
	_ = unix.Close(fd) // not locked: nothing to lose
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("%s %s is in use by another mount: %w", role, r.path, unix.EBUSY)
	}
	return fmt.Errorf("%s %s: lock: %w", role, r.path, err)
}

// prepareWork makes work/ and index/ in the workdir, empties work/, and finds out whether the file system can carry an
// upper. Nothing is emptied unless the workdir is locked.
func (l *layers) prepareWork(cfg Config) (err error) {
	if l.temp, err = l.workSubdir(tempDirName); err != nil {
		return err
	}
	if l.index, err = l.workSubdir(indexDirName); err != nil {
		return err
	}
	if err := l.settleVolatile(cfg); err != nil {
		return err
	}
	if err := emptyDir(l.temp.fd, incompatDirName); err != nil {
		return fmt.Errorf("workdir %s: empty %s: %w", l.work.path, tempDirName, err)
	}
	if err := l.probe(); err != nil {
		return err
	}
	if cfg.Volatile {
		return l.markVolatile()
	}
	return nil
}

// workSubdir opens a directory of the workdir, making it first if something else, or nothing, has its name.
func (l *layers) workSubdir(name string) (layerRoot, error) {
	path := l.work.path + "/" + name
	fail := func(what string, err error) (layerRoot, error) {
		return noRoot, fmt.Errorf("workdir %s: %s: %w", path, what, err)
	}
	err := unix.Unlinkat(l.work.fd, name, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EISDIR) {
		return fail("replace", err)
	}
	if err := unix.Mkdirat(l.work.fd, name, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return fail("create", err)
	}
	fd, err := openBeneath(l.work.fd, name, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.EXDEV) {
		return fail("something is mounted on it", unix.EBUSY)
	}
	if err != nil {
		return fail("open", err)
	}
	r, err := rootOf(fd, path)
	if err == nil {
		err = bequeathNothing(fd)
	}
	if err != nil {
		_ = unix.Close(fd) // O_PATH: nothing to lose
		return fail("prepare", err)
	}
	return r, nil
}

// bequeathNothing takes from a directory what objects made in it would inherit: ACLs and the setgid bit. Where nothing is to be done it needs
// no space: btrfs asks for some before it looks.
// Compare: fs/overlayfs/super.c:ovl_workdir_create().
func bequeathNothing(fd int) error {
	for _, acl := range []string{aclDefault, aclAccess} {
		has, err := hasXattr(objectAt{fd, "."}, acl)
		if err == nil && has {
			err = unix.Removexattr(procFD(fd), acl)
		}
		if err != nil && !noXattr(err) {
			return fmt.Errorf("remove %s: %w", acl, err)
		}
	}
	const mode = 0o700
	if st, err := statAt(fd, ""); err == nil && st.Mode&07777 == mode {
		return nil
	}
	return chmodFD(fd, mode)
}

// emptyDir removes everything in dir but the names to keep. Nothing in it is trusted: no symlink is followed and no
// mount entered. What fills a subdirectory is moved up into dir first, so its depth does not matter.
func emptyDir(dir int, keep ...string) error {
	moved := 0
	for {
		names, err := readNames(dir, ".")
		if err != nil {
			return err
		}
		names = slices.DeleteFunc(names, func(n string) bool { return slices.Contains(keep, n) })
		if len(names) == 0 {
			return nil
		}
		for _, name := range names {
			done, err := removeEntry(dir, name)
			if err != nil {
				return err
			}
			if done {
				continue
			}
			inner, err := readNames(dir, name)
			if err != nil {
				return err
			}
			sub, err := openBeneath(dir, name, unix.O_PATH|unix.O_DIRECTORY)
			if err != nil {
				return fmt.Errorf("open %q: %w", name, err)
			}
			err = emptyOrLift(dir, sub, inner, &moved)
			_ = unix.Close(sub) // O_PATH: nothing to lose
			if err != nil {
				return fmt.Errorf("in %q: %w", name, err)
			}
		}
	}
}

// emptyOrLift removes the entries of sub, and moves those that are filled directories to a free name in top.
func emptyOrLift(top, sub int, names []string, moved *int) error {
	for _, name := range names {
		done, err := removeEntry(sub, name)
		if err != nil {
			return err
		}
		for !done {
			*moved++
			err := unix.Renameat2(sub, name, top, fmt.Sprintf("#lifted-%d", *moved), unix.RENAME_NOREPLACE)
			if err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("move %q: %w", name, err)
			}
			done = err == nil
		}
	}
	return nil
}

// removeEntry removes a file or an empty directory. False: it is a directory with something in it.
func removeEntry(dir int, name string) (bool, error) {
	err := unix.Unlinkat(dir, name, 0)
	if errors.Is(err, unix.EISDIR) {
		err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
	}
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return true, nil
	case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST):
		return false, nil
	}
	return false, fmt.Errorf("remove %q: %w", name, err)
}

// readNames lists a directory below dir.
func readNames(dir int, path string) ([]string, error) {
	fd, err := openBeneath(dir, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("open %q: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	names, err := f.Readdirnames(-1)
	return names, errors.Join(err, f.Close())
}

// probe tries what the upper's file system must be able to do, on objects in work/ that are gone afterwards.
//
// Errors: EOPNOTSUPP, naming what is missing.
func (l *layers) probe() error {
	lacks := func(what string, err error) error {
		return fmt.Errorf("upperdir %s: its file system has no %s (%w): %w", l.upper.path, what, err, unix.EOPNOTSUPP)
	}
	fd, err := openBeneath(l.temp.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("workdir %s: open: %w", l.temp.path, err)
	}
	defer func() { _ = unix.Close(fd) }() // read-only: nothing to lose

	name := l.namespace.Prefix() + "opaque"
	err = unix.Fsetxattr(fd, name, []byte("0"), 0)
	if err == nil {
		if err := unix.Fremovexattr(fd, name); err != nil {
			return lacks("way to remove an extended attribute", err)
		}
	} else if !copyup.NoRoom(err) {
		return lacks(strings.SplitN(name, ".", 2)[0]+".* extended attributes", err)
	}
	tmp, err := unix.Openat(fd, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		_ = unix.Close(tmp) // unnamed: nothing to lose
	} else if !copyup.NoRoom(err) {
		return lacks("O_TMPFILE", err)
	}

	const from, to = "#probe-from", "#probe-to"
	err = unix.Mkdirat(fd, from, 0o700)
	if copyup.NoRoom(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("workdir %s: mkdir: %w", l.temp.path, err)
	}
	errRename := unix.Renameat2(fd, from, fd, to, unix.RENAME_WHITEOUT)
	for _, n := range []string{from, to} {
		if _, err := removeEntry(fd, n); err != nil {
			return fmt.Errorf("workdir %s: %w", l.temp.path, err)
		}
	}
	if copyup.NoRoom(errRename) {
		return nil
	}
	if errRename != nil {
		return lacks("RENAME_WHITEOUT", errRename)
	}
	return nil
}
