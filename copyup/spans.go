package copyup

import (
	"math"
	"sync"
)

// span is a part of a file that one operation has reserved: nobody else makes blocks of it present, or changes its size.
type span struct{ off, end int64 }

// wholeSpan is all of a file, whatever its size.
func wholeSpan() span { return span{0, math.MaxInt64} }

func (s span) meets(o span) bool { return s.off < o.end && o.off < s.end }

// reserveSpan waits until no other reservation meets s, and gives the one that must be released; to do so again is harmless. False:
// the file is no longer partial, so nothing was reserved.
// Errors: EIO if poisoned.
func (f *File) reserveSpan(s span) (release func(), ok bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		switch {
		case f.poison != nil:
			return nil, false, f.poison
		case f.state != UpperShared:
			return nil, false, nil
		}
		if !f.metLocked(s) {
			break
		}
		f.waitLocked()
	}
	held := &s
	f.spans = append(f.spans, held)
	return func() { f.releaseSpan(held) }, true, nil
}

// reserveMapped is reserveSpan for who needs the extent map, which nobody takes away while a span is reserved.
// Errors: those of reserveSpan and of load.
func (f *File) reserveMapped(s span) (release func(), ok bool, err error) {
	for {
		if err := f.load(); err != nil {
			return nil, false, err
		}
		if release, ok, err = f.reserveSpan(s); err != nil || !ok || f.loaded() {
			return release, ok, err
		}
		release() // a sync failed meanwhile: see distrust
	}
}

// +checklocks:f.mu
func (f *File) metLocked(s span) bool {
	for _, o := range f.spans {
		if o.meets(s) {
			return true
		}
	}
	return false
}

func (f *File) releaseSpan(held *span) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, o := range f.spans {
		if o == held {
			f.spans[i] = f.spans[len(f.spans)-1]
			f.spans = f.spans[:len(f.spans)-1]
			break
		}
	}
	f.wakeLocked()
}

// waitLocked waits for wakeLocked.
//
// +checklocks:f.mu
func (f *File) waitLocked() {
	if f.released == nil {
		f.released = sync.NewCond(&f.mu)
	}
	f.released.Wait()
}

// wakeLocked has all who wait look again.
//
// +checklocks:f.mu
func (f *File) wakeLocked() {
	if f.released != nil {
		f.released.Broadcast()
	}
}
