package overlayfuse

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The mark of a volatile mount is the kernel's, work/incompat/volatile/, with one directory more inside that names the
// boot in which the upper was written:
//
//	WORKDIR/work/incompat/volatile/boot-BOOTID/
//
// While that boot lasts, what was written is at least in the page cache and the upper is sound. In any later boot it
// may have holes, and the upper is refused. The kernel's overlayfs refuses it at once, as it does after its own.
// Compare: fs/overlayfs/super.c:ovl_create_volatile_dirs() (Linux 6.18).

// settleVolatile looks for the mark that an earlier volatile mount left. If it is of this boot, a volatile mount goes
// on under it; any other mount first makes the upper durable and removes it.
//
// Errors: EINVAL if the mark is of another boot or of the kernel's overlayfs, or if the workdir has other such marks.
func (l *layers) settleVolatile(cfg Config) error {
	features, err := readNames(l.temp.fd, incompatDirName)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("workdir %s: incompatible features: %w", l.work.path, err)
	}
	for _, f := range features {
		if f != volatileDirName {
			return fmt.Errorf("upperdir %s uses the feature %q, which is unknown here (%s/%s): %w",
				l.upper.path, f, l.temp.path, incompatDirName, unix.EINVAL)
		}
	}
	if len(features) == 0 {
		return nil
	}
	marks, err := readNames(l.temp.fd, incompatDirName+"/"+volatileDirName)
	if err != nil {
		return fmt.Errorf("workdir %s: volatile mark: %w", l.work.path, err)
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	switch {
	case !slices.Contains(marks, bootDirPrefix+boot):
		return fmt.Errorf("upperdir %s was last written by a volatile mount, perhaps before a crash, so data may be "+
			"missing; discard it, or remove %s/%s/%s to use it as it is: %w",
			l.upper.path, l.temp.path, incompatDirName, volatileDirName, unix.EINVAL)
	case cfg.Volatile:
		return nil
	}
	return l.unmarkVolatile()
}

// markVolatile leaves the mark, durable, before the first change of a volatile mount.
func (l *layers) markVolatile() error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	dir := "."
	for _, name := range []string{incompatDirName, volatileDirName, bootDirPrefix + boot} {
		parent := dir
		dir += "/" + name
		err := unix.Mkdirat(l.temp.fd, dir, 0o700)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err == nil {
			err = syncDir(l.temp.fd, parent)
		}
		if err != nil {
			return fmt.Errorf("workdir %s: volatile mark: %w", l.work.path, err)
		}
	}
	return nil
}

// syncDir writes a directory's entries to disk.
func syncDir(dir int, path string) error {
	fd, err := openBeneath(dir, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }() // read-only: nothing to lose
	return unix.Fsync(fd)
}

// unmarkVolatile makes the whole upper durable, then removes the mark.
func (l *layers) unmarkVolatile() error {
	if err := l.syncUpper(); err != nil {
		return err
	}
	fd, err := openBeneath(l.temp.fd, incompatDirName, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("workdir %s: volatile mark: %w", l.work.path, err)
	}
	err = emptyDir(fd)
	_ = unix.Close(fd) // O_PATH: nothing to lose
	if err != nil {
		return fmt.Errorf("workdir %s: volatile mark: %w", l.work.path, err)
	}
	if err := unix.Unlinkat(l.temp.fd, incompatDirName, unix.AT_REMOVEDIR); err != nil {
		return fmt.Errorf("workdir %s: volatile mark: %w", l.work.path, err)
	}
	return nil
}

// syncUpper writes back the whole file system of the upper (syncfs(2)).
func (l *layers) syncUpper() error {
	fd, err := openBeneath(l.temp.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("workdir %s: open: %w", l.temp.path, err)
	}
	defer func() { _ = unix.Close(fd) }() // read-only: nothing to lose
	if err := unix.Syncfs(fd); err != nil {
		return fmt.Errorf("upperdir %s: syncfs: %w", l.upper.path, err)
	}
	return nil
}

// bootID is the kernel's random number of this boot, random(4).
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
