package copyup

import "fmt"

// Sync is SyncFor for who keeps no count: a failure in the background is told once to all of these together.
func (f *File) Sync(dataOnly bool) error { return f.SyncFor(dataOnly, &f.told) }

// SyncFor makes what was written to this file durable, and nothing else: fdatasync(2) or fsync(2) of the upper, which costs what
// is dirty of it. Nothing to do while the data is in the lower, or when volatile. A partial file that has everything in the
// upper by then becomes plain.
//
// seen is the caller's: what Failures gave when it opened the file. A sync or writeback that has failed since, for whomever, is told as
// well, once: as a plain file tells each descriptor. So is one before that of which nobody was told
// (Documentation/core-api/errseq.rst).
//
// Errors: those of fsync(2); what they say about lost data holds here too.
func (f *File) SyncFor(dataOnly bool, seen *uint64) error {
	if err := f.begin(); err != nil {
		return err
	}
	defer f.end()
	s := f.State()
	if f.opts.Volatile || s.onLower() {
		return nil
	}
	full := f.fullMap()
	err := f.syncUpper(dataOnly && f.isNamed())
	if err != nil {
		err = f.distrust(err)
	}
	if missed := f.missed(seen); err == nil {
		err = missed
	}
	if err != nil || full == nil {
		return err
	}
	// That it stays partial is no failure of a sync.
	if err := f.becomeUpper(full, span{}); err != nil {
		f.logf("copyup: stays partial: %v", err)
	}
	return nil
}

// Failures counts the syncs and writebacks of the file that have failed and of which somebody was told: what a new user need not hear of.
func (f *File) Failures() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.heard
}

// missed gives the last failure if it is not among those seen, and counts all as seen.
func (f *File) missed(seen *uint64) error {
	err := f.hear(seen)
	if err != nil {
		f.tellLost()
	}
	return err
}

func (f *File) hear(seen *uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if *seen == f.failures {
		return nil
	}
	*seen, f.heard = f.failures, f.failures
	return f.failure
}

// tellLost tells the overlay if there is a failure now of which no user was told, or none any more.
// Preconditions: the caller has no span.
func (f *File) tellLost() {
	if f.opts.Lost == nil {
		return
	}
	f.telling.Lock() // so that what it is told last is how it is
	defer f.telling.Unlock()
	if err, changed := f.unheard(); changed {
		f.opts.Lost(f.target, err)
	}
}

// unheard gives the failure that no user was told of, and whether there being one is news to the overlay.
func (f *File) unheard() (err error, changed bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	lost := f.heard != f.failures
	changed, f.toldLost = lost != f.toldLost, lost
	if lost {
		err = f.failure
	}
	return err, changed
}

// syncShared makes a partial upper durable for the sake of its marks. Nobody asked for it: its error is kept for who does.
func (f *File) syncShared() error {
	if f.opts.Volatile {
		return nil
	}
	err := f.syncUpper(false)
	if err != nil {
		err = f.distrust(err)
		f.tellLost()
	}
	return err
}

// checkWriteback waits for what of the upper is being written back, and reports whether all of it was.
func (f *File) checkWriteback(s span) bool { return f.writeback(f.sys.awaitWriteback, s) }

// writeback makes a call that can tell of failed writeback, and reports whether it told of none. As with syncShared, the error is kept.
func (f *File) writeback(call func(fd int, off, length int64) error, s span) bool {
	err := f.toDisk(func(fd int) error { return call(fd, s.off, s.end-s.off) })
	if err != nil {
		f.logf("copyup: writeback: %v", f.distrust(err))
		f.tellLost()
	}
	return err == nil
}

// toDisk runs a call that tells of failed writeback. The kernel tells one failure to one of those who use a descriptor, and all of a
// file's users share the upper's: so one asks at a time, and until the map is read again all get to know.
func (f *File) toDisk(call func(fd int) error) error {
	f.syncing.Lock()
	defer f.syncing.Unlock()
	asked := false
	err := f.withUpper(func(b *backing) error {
		asked = true
		return retryErr(func() error { return call(b.fd) })
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case err == nil:
		return f.doubt
	case !asked: // the upper could not be opened: nothing is known to be lost
		return err
	}
	err = fmt.Errorf("copyup: sync: %w", err)
	f.doubt, f.failure = err, err
	f.failures++
	return err
}

// inDoubt gives the failure of a sync after which the map was not read again yet.
func (f *File) inDoubt() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.doubt
}

// distrust is called after a failed sync of a partial file, which may have left units that the map has as holes, with clean pages: the
// kernel does not write them again, and the next sync would succeed. The pages are dropped and the map is read again from what was
// written; what was lost reads as the lower.
// Preconditions: the caller has no span.
func (f *File) distrust(cause error) error {
	release, ok, err := f.reserveSpan(wholeSpan())
	if err != nil {
		return cause
	}
	if ok {
		defer release()
		err = f.withUpper(func(b *backing) error {
			_, err := f.sys.dropCache(b.fd, 0, 0)
			return err
		})
		if err != nil {
			f.logf("copyup: drop pages after a failed sync: %v", err)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ext, f.doubt = nil, nil
	return cause
}

// syncUpper is fsync(2) or fdatasync(2). The first one after a copy-up is for the name and the marks as well.
func (f *File) syncUpper(dataOnly bool) error {
	call := f.sys.fsync
	if dataOnly {
		call = f.sys.fdatasync
	}
	if err := f.toDisk(call); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.named = f.named || !dataOnly
	return nil
}
