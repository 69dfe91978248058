package copyup

import "fmt"

// Sync makes what was written to this file durable, and nothing else: fdatasync(2) or fsync(2) of the upper, which costs what
// is dirty of it. Nothing to do while the data is in the lower, or when volatile. A partial file that has everything in the
// upper by then becomes plain.
// Errors: those of fsync(2); what they say about lost data holds here too. Those of a sync in the background are
// reported once as well.
func (f *File) Sync(dataOnly bool) error {
	if err := f.begin(); err != nil {
		return err
	}
	defer f.end()
	s := f.State()
	if f.opts.Volatile || s.onLower() {
		return nil
	}
	full := f.isFull()
	err := f.syncUpper(dataOnly && f.isNamed())
	if err != nil {
		err = f.distrust(err)
	}
	if missed := f.takeSyncErr(); err == nil {
		err = missed
	}
	if err != nil || !full {
		return err
	}
	// That it stays partial is no failure of a sync.
	if err := f.becomeUpper(); err != nil {
		f.logf("copyup: stays partial: %v", err)
	}
	return nil
}

// syncShared makes a partial upper durable for the sake of its marks. Nobody asked for it, so its error is kept for who does.
func (f *File) syncShared() error {
	if f.opts.Volatile {
		return nil
	}
	err := f.syncUpper(false)
	if err != nil {
		err = f.distrust(err)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.syncErr = err
	}
	return err
}

// distrust is called after a failed sync of a partial file, which may have left units that the map has as holes, with clean pages: the
// kernel does not write them again, and the next sync would succeed. The pages are dropped and the map is read again from what was
// written; what was lost reads as the lower.
// Preconditions: the caller has no span.
func (f *File) distrust(cause error) error {
	release, ok, err := f.reserveSpan(wholeSpan())
	if err != nil || !ok {
		return cause
	}
	defer release()
	err = f.withUpper(func(b *backing) error {
		_, err := f.sys.dropCache(b.fd, 0, 0)
		return err
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ext = nil
	if err != nil {
		f.logf("copyup: drop pages after a failed sync: %v", err)
	}
	return cause
}

func (f *File) takeSyncErr() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.syncErr
	f.syncErr = nil
	return err
}

// syncUpper is the call. The first one after a copy-up is for the name and the marks as well.
func (f *File) syncUpper(dataOnly bool) error {
	call := f.sys.fsync
	if dataOnly {
		call = f.sys.fdatasync
	}
	err := f.withUpper(func(b *backing) error { return retryErr(func() error { return call(b.fd) }) })
	if err != nil {
		return fmt.Errorf("copyup: sync: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.named = f.named || !dataOnly
	return nil
}
