package overlayfuse

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// syncers is how many files a flush syncs at once: journal commits of several files then share one wait.
const syncers = 8

// sync makes every object of the upper durable: files first, then the directories that name them.
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
	return f.syncDirs(d.fd)
}

func (f *flusher) syncTree(ctx context.Context, g *errgroup.Group, dir int) error {
	return f.each(dir, func(fd int, name string, mode uint32) error {
		if ctx.Err() != nil {
			return fmt.Errorf("flush: %w (%w)", context.Cause(ctx), unix.EINTR)
		}
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
		}
		return nil // the others have no data of their own
	})
}

// syncDirs syncs directories from below.
func (f *flusher) syncDirs(dir int) error {
	err := f.each(dir, func(fd int, _ string, mode uint32) error {
		if err := f.interrupted(); err != nil {
			return err
		}
		if isDir(mode) {
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
func (f *flusher) each(dir int, visit func(fd int, name string, mode uint32) error) error {
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

func (f *flusher) one(dir int, name string, visit func(fd int, name string, mode uint32) error) error {
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
	return visit(fd, name, st.Mode)
}

func syncClose(file *os.File, name string) error {
	if err := file.Sync(); err != nil {
		_ = file.Close() // the cause is the error that is returned
		return fmt.Errorf("sync %q: %w", name, err)
	}
	return file.Close()
}
