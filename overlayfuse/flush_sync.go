package overlayfuse

import (
	"context"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// syncers is how many files a flush syncs at once: journal commits of several files then share one wait.
const syncers = 8

// sync makes every object of the upper durable: files first, then the directories that name them, then what can't be synced by itself.
func (f *flusher) sync() error {
	g, ctx := errgroup.WithContext(f.ctx)
	g.SetLimit(syncers)
	d, err := f.fs.upperDir(f.fs.root)
	if err != nil {
		return err
	}
	defer d.release()
	err = f.syncTree(ctx, g, d.fd)
	if werr := g.Wait(); werr != nil {
		return werr
	}
	if err != nil {
		return err
	}
	if err := f.syncDirs(d.fd); err != nil || !f.unsyncable {
		return err
	}
	if err := f.fs.syncMetadata(); err != nil {
		return fmt.Errorf("sync the attributes of symlinks and special files: %w", err)
	}
	return nil
}

func (f *flusher) syncTree(ctx context.Context, g *errgroup.Group, dir int) error {
	return f.each(dir, func(fd int, name string, st *unix.Stat_t) error {
		if ctx.Err() != nil {
			return fmt.Errorf("flush: %w (%w)", context.Cause(ctx), unix.EINTR)
		}
		mode := st.Mode
		switch {
		case isDir(mode):
			return f.syncTree(ctx, g, fd)
		case isReg(mode):
			file, err := openReal(fd, unix.O_RDONLY)
			if err != nil {
				return fmt.Errorf("%q: %w", name, err)
			}
			f.stats.Synced++
			g.Go(func() error { return f.syncClose(file, name) })
		case !isWhiteout(st): // of which nothing but the name counts
			f.unsyncable = true
		}
		return nil
	})
}

// syncMetadata makes durable what was done before to objects that fsync(2) can't be called for: owner, mode, times and xattrs of symlinks,
// FIFOs, sockets and devices. It writes back no data of others: ext4 and xfs have one journal for all metadata, in order, so the fsync of
// a file that was made just now makes durable what was done before; btrfs commits its transaction. Elsewhere, and on ext4 without a journal,
// all of the file system is written back.
func (fs *FS) syncMetadata() error {
	var err error
	switch fs.layers.upper.fsType {
	case unix.TMPFS_MAGIC:
		return nil
	case unix.EXT4_SUPER_MAGIC:
		if err = fs.hasJournal(); err == nil {
			err = fs.commitJournal()
		}
	case unix.XFS_SUPER_MAGIC:
		err = fs.commitJournal()
	case unix.BTRFS_SUPER_MAGIC:
		err = fs.commitTransaction()
	default:
		err = unix.EOPNOTSUPP
	}
	for _, cannot := range []error{unix.EOPNOTSUPP, unix.ENOTTY, unix.ENODEV, unix.EINVAL, unix.EPERM, unix.EACCES, unix.ENOSPC, unix.EDQUOT} {
		if errors.Is(err, cannot) {
			return fs.layers.syncUpper()
		}
	}
	return err
}

// hasJournal asks ext4, whose magic number ext2's is too.
//
// Errors: ENODEV if it has none; ENOTTY of ext2's own driver; EPERM without CAP_SYS_ADMIN.
// Compare: fs/ext4/ioctl.c:ext4_ioctl_checkpoint() (Linux 6.18).
func (fs *FS) hasJournal() error {
	root, err := openReal(fs.layers.upper.fd, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()              // nothing was written
	const checkpoint, dryRun = 0x4004662b, uint32(4) // EXT4_IOC_CHECKPOINT, EXT4_IOC_CHECKPOINT_FLAG_DRY_RUN of uapi/linux/ext4.h
	flags := dryRun
	return ioctl(int(root.Fd()), checkpoint, unsafe.Pointer(&flags))
}

func (fs *FS) commitJournal() error {
	fd, err := fs.tmpfile(0o600)
	if err != nil {
		return err
	}
	defer closeFD(fd)
	return unix.Fsync(fd)
}

// syncDirs syncs directories from below.
func (f *flusher) syncDirs(dir int) error {
	err := f.each(dir, func(fd int, _ string, st *unix.Stat_t) error {
		if err := f.interrupted(); err != nil {
			return err
		}
		if isDir(st.Mode) {
			return f.syncDirs(fd)
		}
		return nil
	})
	if err != nil {
		return err
	}
	file, err := openReal(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	f.stats.Synced++
	return f.syncClose(file, ".")
}

// syncClose is syncClose with its progress shown.
func (f *flusher) syncClose(file *os.File, name string) error {
	err := syncClose(file, name)
	if err == nil {
		f.meter.synced.Add(1)
	}
	return err
}

// each visits what the entries of a directory of the upper are when they are visited: the mount may change it meanwhile, and what
// it adds is for a later flush.
func (f *flusher) each(dir int, visit func(fd int, name string, st *unix.Stat_t) error) error {
	names, err := listNames(dir)
	if err != nil {
		return fmt.Errorf("read upper directory: %w", err)
	}
	for _, name := range names {
		if err := f.one(dir, name, visit); err != nil {
			return err
		}
	}
	return nil
}

func (f *flusher) one(dir int, name string, visit func(fd int, name string, st *unix.Stat_t) error) error {
	fd, err := openIn(dir, name, unix.O_PATH, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open upper %q: %w", name, err)
	}
	defer closeFD(fd)
	st, err := statAt(fd, "")
	if err != nil {
		return fmt.Errorf("stat upper %q: %w", name, err)
	}
	return visit(fd, name, &st)
}

func syncClose(file *os.File, name string) error {
	if err := file.Sync(); err != nil {
		_ = file.Close() // the cause is the error that is returned
		return fmt.Errorf("sync %q: %w", name, err)
	}
	return file.Close()
}
