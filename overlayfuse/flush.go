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

// FlushStats is what a flush did.
type FlushStats struct {
	Completed int // metacopy files that got their data
	Linked    int // names of hard links that got an upper link
	Synced    int // files and directories made durable
}

// FlushUpper makes the upper complete and durable, fit to be a lower layer for anybody: files without data get it, every name of a
// copied-up hard link gets its own link, and all is synced. What the kernel still holds of the mount is not its business:
// who mounted it calls syncfs(2) first.
//
// Errors: the first one; the mount goes on as before, and a later FlushUpper goes on where this one ended.
func (fs *FS) FlushUpper(ctx context.Context) (FlushStats, error) {
	f := &flusher{fs: fs, ctx: ctx}
	if fs.readOnly() {
		return f.stats, nil
	}
	if err := f.walk(fs.root, f.complete); err != nil {
		return f.stats, err
	}
	if err := f.linkNames(); err != nil {
		return f.stats, err
	}
	// Also of a volatile mount: what was risked while it ran is not risked in a layer that others will stand on.
	return f.stats, f.sync()
}

type flusher struct {
	fs    *FS
	ctx   context.Context
	stats FlushStats
}

// walk visits every object of the mount whose directory visit lets it into. The inodes live while they are visited.
func (f *flusher) walk(dir *inode, visit func(in *inode, p *inode, name string) (into bool, err error)) error {
	es, err := f.fs.list(dir)
	if err != nil {
		return err
	}
	for _, e := range es {
		if err := f.ctx.Err(); err != nil {
			return fmt.Errorf("flush: %w (%w)", err, unix.EINTR)
		}
		if err := f.visit(dir, e.name, visit); err != nil {
			return err
		}
	}
	return nil
}

func (f *flusher) visit(dir *inode, name string, visit func(in *inode, p *inode, name string) (bool, error)) error {
	in, err := f.fs.lookup(dir, name)
	if err != nil {
		return fmt.Errorf("flush %q: %w", name, err)
	}
	if in == nil {
		return nil
	}
	defer f.fs.tab.forget(in, 1)
	into, err := visit(in, dir, name)
	if err != nil {
		return fmt.Errorf("flush %q: %w", name, err)
	}
	if into && in.isDir() {
		return f.walk(in, visit)
	}
	return nil
}

// complete copies the data of a metacopy file. What the upper does not have needs no completion.
func (f *flusher) complete(in, _ *inode, _ string) (bool, error) {
	u := in.upper()
	if !u.exists {
		return false, nil
	}
	if u.data != dataHere {
		if err := f.fs.data(in).Complete(f.ctx); err != nil {
			return false, err
		}
		f.stats.Completed++
	}
	return true, nil
}

// linkNames gives every name of an indexed file its link in the upper. Then the index has nothing more to say of it.
func (f *flusher) linkNames() error {
	if f.fs.index.empty() {
		return nil
	}
	indexed := map[*inode]bool{}
	defer func() {
		for in := range indexed {
			f.fs.tab.forget(in, 1)
		}
	}()
	err := f.walk(f.fs.root, func(in, p *inode, name string) (bool, error) {
		in.mu.RLock()
		link := in.link
		in.mu.RUnlock()
		if link.index == "" {
			return true, nil
		}
		if !indexed[in] {
			indexed[in] = true
			f.fs.tab.ref(in)
		}
		return false, f.linkName(in, p, name)
	})
	if err != nil {
		return err
	}
	for in := range indexed {
		if err := f.dropIndexed(in); err != nil {
			return err
		}
	}
	return nil
}

func (f *flusher) linkName(in, p *inode, name string) error {
	if err := f.fs.copyUp(p); err != nil {
		return err
	}
	defer lockAll(in, p)()
	a, ok := in.findAlias(p, name)
	if !ok || a.upper {
		return nil
	}
	f.stats.Linked++
	return f.fs.linkUp(in, a)
}

// dropIndexed takes a file out of the index if every name that is looked up now leads to the upper by itself. A name that
// came into sight since the walk keeps it there.
func (f *flusher) dropIndexed(in *inode) error {
	defer lockAll(in)()
	in.mu.RLock()
	link, hidden := in.link, false
	for _, a := range in.aliases {
		hidden = hidden || !a.upper
	}
	in.mu.RUnlock()
	if link.index == "" || hidden {
		return nil
	}
	fd, err := f.fs.openUpperPath(in)
	if err != nil {
		return err
	}
	defer closeFD(fd)
	st, err := statAt(fd, "")
	if err != nil {
		return fmt.Errorf("stat upper: %w", err)
	}
	if link.names > int(st.Nlink)-1 {
		return nil // some names are out of sight below: only the index knows how many links there are
	}
	in.mu.Lock()
	in.link = linkCount{}
	in.mu.Unlock()
	if err := f.fs.index.remove(link.index); err != nil {
		return err
	}
	return f.fs.removeMark(fd, "nlink")
}

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
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("flush: %w (%w)", err, unix.EINTR)
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
			g.Go(func() error { return syncClose(file, name) })
		}
		return nil // the others have no data of their own
	})
}

// syncDirs syncs directories from below.
func (f *flusher) syncDirs(dir int) error {
	err := f.each(dir, func(fd int, _ string, mode uint32) error {
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
	return syncClose(file, ".")
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
