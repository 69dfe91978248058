package overlayfuse

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// FlushOptions say what a flush leaves and where it shows its progress.
type FlushOptions struct {
	// KeepMetacopy leaves files metacopy of which only metadata was copied up: for an upper whose readers all follow
	// overlay.metacopy, as this file system does and the kernel's overlayfs with metacopy=on.
	KeepMetacopy bool
	// Meter, if set, can be read while the flush runs.
	Meter *FlushMeter
}

// FlushStats is what a flush did.
type FlushStats struct {
	Completed int   `json:"completed"` // metacopy and partial files that got all of their data
	Bytes     int64 `json:"bytes"`     // of data that these did not have, holes included
	Kept      int   `json:"kept"`      // metacopy files that stay so
	Linked    int   `json:"linked"`    // names of hard links that got an upper link
	Synced    int   `json:"synced"`    // files and directories made durable
}

// FlushUpper makes the upper durable and fit to be a lower layer: every name of a copied-up hard link gets its own link, files
// get the data that they lack, and all is synced. No file stays partial. What the kernel still holds of the mount is not
// its business: who mounted it calls syncfs(2) first.
//
// Errors: the first one, EINTR if ctx ended; EIO, once, if writes were lost and nobody was told (lost.go). The mount goes on as before, and a
// later FlushUpper goes on where this one ended.
func (fs *FS) FlushUpper(ctx context.Context, opts FlushOptions) (FlushStats, error) {
	ctx, leave, err := fs.flushes.enter(ctx)
	if err != nil {
		return FlushStats{}, err
	}
	defer leave()
	f := &flusher{fs: fs, ctx: ctx, opts: opts, meter: opts.Meter, queue: flushQueue}
	if fs.readOnly() {
		return f.stats, nil
	}
	if f.meter == nil {
		f.meter = new(FlushMeter)
	}
	begin := time.Now()
	stop := f.meter.logEvery(flushLogInterval, fs.log)
	err = f.run()
	stop()
	if ctx.Err() == nil { // else nobody may be listening
		err = errors.Join(err, fs.lost.take())
	}
	f.meter.enter(FlushIdle)
	log := fs.log.WithFields(logrus.Fields{"completed": f.stats.Completed, "bytes": f.stats.Bytes, "kept": f.stats.Kept,
		"linked": f.stats.Linked, "synced": f.stats.Synced, "took": time.Since(begin).Round(time.Millisecond)})
	if err != nil {
		log.WithError(err).Info("overlay: flush ended early")
		return f.stats, err
	}
	log.Info("overlay: flushed")
	return f.stats, nil
}

// flusher is one call of FlushUpper.
type flusher struct {
	fs    *FS
	ctx   context.Context
	opts  FlushOptions
	meter *FlushMeter
	queue int // the most inodes that wait at once
	stats FlushStats

	unsyncable bool // the upper has objects that fsync(2) can't be called for
}

func (f *flusher) run() error {
	// The names come first: of a file that only the index leads to, the next step would not know.
	f.meter.enter(FlushLinking)
	if err := f.linkNames(); err != nil {
		return err
	}
	if err := f.complete(); err != nil {
		return err
	}
	// Also of a volatile mount: what was risked while it ran is not risked in a layer that others will stand on.
	f.meter.enter(FlushSyncing)
	return f.sync()
}

// interrupted is an error once the context has ended.
func (f *flusher) interrupted() error {
	if f.ctx.Err() != nil {
		return fmt.Errorf("flush: %w (%w)", context.Cause(f.ctx), unix.EINTR)
	}
	return nil
}

// visitor is called with an object, its directory and its name there. into: its entries are to be visited.
type visitor func(in, p *inode, name string) (into bool, err error)

// walk visits every object whose directory visit lets it into. names says which entries of a directory count. The inodes live
// while they are visited.
func (f *flusher) walk(dir *inode, names func(dir *inode) ([]string, error), visit visitor) error {
	all, err := names(dir)
	if err != nil {
		return err
	}
	for _, name := range all {
		if err := f.interrupted(); err != nil {
			return err
		}
		if err := f.visit(dir, name, names, visit); err != nil {
			return err
		}
	}
	return nil
}

func (f *flusher) visit(dir *inode, name string, names func(dir *inode) ([]string, error), visit visitor) error {
	in, err := f.fs.lookup(dir, name)
	if err != nil {
		return fmt.Errorf("flush %s: %w", path.Join(dir.path(), name), err)
	}
	if in == nil {
		return nil
	}
	defer f.fs.tab.forget(in, 1)
	into, err := visit(in, dir, name)
	if err != nil {
		return fmt.Errorf("flush %s: %w", in.path(), err)
	}
	if into && in.isDir() {
		return f.walk(in, names, visit)
	}
	return nil
}

// mergedNames are the names that a directory shows.
func (f *flusher) mergedNames(dir *inode) ([]string, error) {
	es, err := f.fs.list(dir)
	names := make([]string, len(es))
	for i, e := range es {
		names[i] = e.name
	}
	return names, err
}

// upperNames are the names that the upper has in a directory, whiteouts included.
func (f *flusher) upperNames(dir *inode) ([]string, error) {
	if !dir.upper().exists || dir.isDead() {
		return nil, nil
	}
	d, err := f.fs.upperDir(dir)
	if err != nil {
		return nil, err
	}
	defer d.release()
	names, err := listNames(d.fd)
	if err != nil {
		return nil, fmt.Errorf("read upper directory: %w", err)
	}
	return names, nil
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
	err := f.walk(f.fs.root, f.mergedNames, func(in, p *inode, name string) (bool, error) {
		in.mu.RLock()
		link := in.links()
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
	link, hidden := in.links(), false
	for a := range in.aliases {
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
	in.setLinks(linkCount{})
	in.mu.Unlock()
	if err := f.fs.index.remove(link.index); err != nil {
		return err
	}
	return f.fs.removeMark(fd, "nlink")
}
