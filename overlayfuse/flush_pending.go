package overlayfuse

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	// completers is how many files a flush completes at once: each ends with an fsync, and those of several files share a wait.
	completers = 16
	// flushQueue is the most inodes that a flush holds while they wait: 1 to 2 KiB each. Of more, it makes another round.
	flushQueue = 16 << 10
)

// complete copies what files of the upper lack.
func (f *flusher) complete() error {
	f.meter.syncTotal.Add(1) // the root
	for round := 0; ; round++ {
		f.meter.enter(FlushScanning)
		p := &pending{f: f, count: round == 0, seen: map[objKey]struct{}{}}
		err := f.walk(f.fs.root, f.upperNames, p.add)
		if err == nil {
			f.meter.enter(FlushCompleting)
			err = p.complete()
		}
		p.release()
		if err != nil || !p.more {
			return err
		}
	}
}

// pending is what one walk found to lack data.
type pending struct {
	f     *flusher
	count bool                // the totals, also of what finds no room in queue
	queue []lacking           // at most flusher.queue
	more  bool                // there was no room
	seen  map[objKey]struct{} // upper objects: a hard link has several names
}

type lacking struct {
	in    *inode // referenced
	bytes int64
}

// add is a visitor. What the upper does not have lacks nothing.
//
// Errors: EIO for a file that is poisoned.
func (p *pending) add(in, _ *inode, _ string) (into bool, err error) {
	u := in.upper()
	if p.count && u.exists && (in.isDir() || in.typ == unix.S_IFREG) {
		p.f.meter.syncTotal.Add(1)
	}
	if file := in.file.Load(); u.exists && file != nil && file.Err() != nil {
		return false, file.Err() // whatever its marks say
	}
	if !u.exists || u.data == dataHere {
		return u.exists, nil
	}
	if _, ok := p.seen[u.key]; ok {
		return false, nil
	}
	p.seen[u.key] = struct{}{}
	f := p.f
	if f.opts.KeepMetacopy && followable(in, u) {
		if p.count {
			f.stats.Kept++
		}
		return false, nil
	}
	room := len(p.queue) < f.queue
	p.more = p.more || !room
	if !p.count && !room {
		return false, nil
	}
	bytes, err := f.fs.data(in).Missing()
	if err != nil {
		return false, err
	}
	if p.count {
		f.meter.filesTotal.Add(1)
		f.meter.bytesTotal.Add(bytes)
	}
	if room {
		f.fs.tab.ref(in)
		p.queue = append(p.queue, lacking{in, bytes})
	}
	return false, nil
}

// followable tells a metacopy file that every reader of overlay.metacopy shows as we do. Renames and links have given it a
// redirect where its name does not lead to the data (markFollow). The kernel's overlayfs reads as much of the data as there
// is, whatever the size of the metacopy file: one that a truncation has cut short, before a crash, is not for it.
// Compare: fs/overlayfs/file.c:ovl_read_iter() (Linux 6.18).
func followable(in *inode, u upperObj) bool {
	return u.data == dataBelow && in.lower != nil && u.limit == in.lower.st.Size
}

func (p *pending) complete() error {
	g, ctx := errgroup.WithContext(p.f.ctx)
	g.SetLimit(completers)
	for _, l := range p.queue {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error { return p.f.completeOne(ctx, l) })
	}
	err := g.Wait()
	progress := p.f.meter.Read()
	p.f.stats.Completed, p.f.stats.Bytes = int(progress.Files), progress.Bytes
	if err == nil {
		err = p.f.interrupted()
	}
	return err
}

// completeOne completes one file and counts it. One that lost its last name meanwhile is nobody's to miss.
func (f *flusher) completeOne(ctx context.Context, l lacking) error {
	if ctx.Err() != nil { // the cause is another file's error, or the caller's
		return fmt.Errorf("flush: %w (%w)", context.Cause(ctx), unix.EINTR)
	}
	var done, underWay int64
	pace := func(_ context.Context, n int) error {
		f.meter.bytes.Add(underWay)
		done, underWay = done+underWay, int64(n)
		return nil
	}
	if !l.in.isDead() {
		if err := f.fs.data(l.in).CompleteWith(ctx, pace); err != nil && !l.in.isDead() {
			return fmt.Errorf("flush %s: %w", l.in.path(), err)
		}
	}
	f.meter.bytes.Add(l.bytes - done) // also what somebody else completed meanwhile
	f.meter.files.Add(1)
	return nil
}

// release lets go of the inodes.
func (p *pending) release() {
	for _, l := range p.queue {
		p.f.fs.tab.forget(l.in, 1)
	}
	p.queue = nil
}
