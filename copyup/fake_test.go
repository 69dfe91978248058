package copyup

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// fakeTarget is one file of an overlay without layers: a lower file, and an upper name in the same directory.
// It checks the contract that File has with it, and fails calls on demand.
type fakeTarget struct {
	t          *testing.T
	dir        string
	lowerBytes []byte
	whole      bool                    // uppers are never partial (Options.Unit is 0)
	fail       func(call string) error // nil or an error for this call
	onStage    func()
	dead       bool // Keep refuses
	loose      bool // Options.LooseNames

	mu       sync.Mutex
	opened   []*os.File // everything handed out
	staged   *os.File   // Stage without Commit or Abort yet
	marks    marks      // of the upper: on the disk
	stages   int
	commits  int
	aborts   int
	kept     int
	fresh    bool // the upper was made since the last sync
	quietly  int
	complete int
}

// marks is what the overlay stores with an upper.
type marks struct {
	exists bool
	data   byte // 0: complete, 'm': metacopy, 'p': partial
	limit  int64
	empty  bool // a size of 0 is meant
}

const noLimit = 1 << 62

func newTarget(t *testing.T, lower []byte) *fakeTarget {
	t.Helper()
	return newTargetIn(t, t.TempDir(), lower)
}

func newTargetIn(t *testing.T, dir string, lower []byte) *fakeTarget {
	t.Helper()
	ft := &fakeTarget{t: t, dir: dir, lowerBytes: bytes.Clone(lower), marks: marks{limit: noLimit}}
	if err := os.Remove(ft.path("upper")); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	// A lower that an earlier test in the same directory left is taken as it is: check compares it.
	if _, err := os.Stat(ft.path("lower")); os.IsNotExist(err) {
		if err := os.WriteFile(ft.path("lower"), lower, 0o644); err != nil {
			t.Fatal(err)
		}
		ft.syncLower() // or it is not cloned
	}
	return ft
}

func (ft *fakeTarget) syncLower() {
	ft.t.Helper()
	f, err := os.Open(ft.path("lower"))
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		ft.t.Fatal(err)
	}
}

// metacopy installs an upper without data.
func (ft *fakeTarget) metacopy() {
	ft.t.Helper()
	if err := ft.makeUpper('m'); err != nil {
		ft.t.Fatal(err)
	}
}

func (ft *fakeTarget) makeUpper(data byte) error {
	if err := os.WriteFile(ft.path("upper"), nil, 0o644); err != nil {
		return err
	}
	if err := os.Truncate(ft.path("upper"), int64(len(ft.lowerBytes))); err != nil {
		return err
	}
	ft.marks = marks{exists: true, data: data, limit: noLimit}
	ft.fresh = true
	return nil
}

func (ft *fakeTarget) path(name string) string { return filepath.Join(ft.dir, name) }

func (ft *fakeTarget) call(name string) error {
	if ft.fail == nil {
		return nil
	}
	return ft.fail(name)
}

func (ft *fakeTarget) open(name string, flags int) (*os.File, error) {
	f, err := os.OpenFile(ft.path(name), flags, 0o644)
	if err != nil {
		return nil, err
	}
	ft.mu.Lock()
	defer ft.mu.Unlock()
	ft.opened = append(ft.opened, f)
	return f, nil
}

func (ft *fakeTarget) now() marks {
	ft.mu.Lock()
	defer ft.mu.Unlock()
	return ft.marks
}

// state is what New has to be told.
func (ft *fakeTarget) state() State {
	switch m := ft.now(); {
	case !m.exists || m.data == 'm':
		return Lower
	case m.data == 'p':
		return UpperShared
	}
	return Upper
}

// reopened is state after a crash: an upper that may have lost its size gets it back.
func (ft *fakeTarget) reopened() State {
	ft.t.Helper()
	m := ft.now()
	size := min(m.limit, int64(len(ft.lowerBytes)))
	if st, err := os.Stat(ft.path("upper")); err == nil && st.Size() == 0 && ft.loose && m.data != 0 && !m.empty && size > 0 {
		if err := os.Truncate(ft.path("upper"), size); err != nil {
			ft.t.Fatal(err)
		}
	}
	return ft.state()
}

func (ft *fakeTarget) OpenLower() (*os.File, error) {
	if err := ft.call("OpenLower"); err != nil {
		return nil, err
	}
	return ft.open("lower", os.O_RDONLY)
}

func (ft *fakeTarget) OpenUpper() (*os.File, error) {
	if ft.state() == Lower {
		ft.t.Error("OpenUpper without data in the upper")
	}
	if err := ft.call("OpenUpper"); err != nil {
		return nil, err
	}
	return ft.open("upper", os.O_RDWR)
}

func (ft *fakeTarget) LowerLimit() int64 {
	limit := min(ft.now().limit, int64(len(ft.lowerBytes)))
	if st, err := os.Stat(ft.path("upper")); err == nil && ft.now().data != 0 {
		limit = min(limit, st.Size())
	}
	return limit
}

func (ft *fakeTarget) Stage() (*os.File, error) {
	if err := ft.call("Stage"); err != nil {
		return nil, err
	}
	if ft.onStage != nil {
		ft.onStage()
	}
	ft.mu.Lock()
	if ft.staged != nil || ft.marks.exists && ft.marks.data == 0 {
		ft.t.Error("Stage twice")
	}
	if !ft.marks.exists {
		data := byte('p')
		if ft.whole {
			data = 'm'
		}
		if err := ft.makeUpper(data); err != nil {
			ft.mu.Unlock()
			return nil, err
		}
	}
	ft.mu.Unlock()
	f, err := ft.open("upper", os.O_RDWR)
	if err != nil {
		return nil, err
	}
	ft.mu.Lock()
	defer ft.mu.Unlock()
	ft.staged = f
	ft.stages++
	return f, nil
}

func (ft *fakeTarget) unstage(f *os.File, call string) {
	if ft.staged != f {
		ft.t.Errorf("%v of a file that is not staged", call)
	}
	if f.Fd() == ^uintptr(0) {
		ft.t.Errorf("%v of a closed file", call)
	}
	ft.staged = nil
}

func (ft *fakeTarget) Commit(f *os.File, shape Shape) error {
	err := ft.call("Commit")
	ft.mu.Lock()
	defer ft.mu.Unlock()
	ft.unstage(f, "Commit")
	if err != nil {
		ft.aborts++
		return err
	}
	ft.commits++
	ft.marks.data = 0
	if shape.Partial {
		ft.marks.data = 'p'
		if shape.Cut {
			ft.marks.limit = shape.Limit
		}
		if ft.whole {
			ft.t.Error("partial upper on a file system that does not tell data from holes")
		}
	}
	return nil
}

func (ft *fakeTarget) Abort(f *os.File) {
	ft.mu.Lock()
	defer ft.mu.Unlock()
	ft.unstage(f, "Abort")
	ft.aborts++
}

func (ft *fakeTarget) SetLimit(_ *os.File, limit int64) error {
	if err := ft.call("SetLimit"); err != nil {
		return err
	}
	ft.mu.Lock()
	defer ft.mu.Unlock()
	if ft.marks.data != 'p' || limit > ft.marks.limit {
		ft.t.Errorf("SetLimit(%d) of %+v", limit, ft.marks)
	}
	ft.marks.limit = limit
	return nil
}

func (ft *fakeTarget) MeanEmpty(*os.File) error {
	if err := ft.call("MeanEmpty"); err != nil {
		return err
	}
	ft.mu.Lock()
	defer ft.mu.Unlock()
	if ft.marks.data != 'p' || !ft.loose {
		ft.t.Errorf("MeanEmpty of %+v", ft.marks)
	}
	ft.marks.empty = true
	return nil
}

func (ft *fakeTarget) Quietly(_ *os.File, _ bool, fn func() error) error {
	if err := ft.call("Quietly"); err != nil {
		return err
	}
	ft.mu.Lock()
	ft.quietly++
	ft.mu.Unlock()
	return fn()
}

func (ft *fakeTarget) Complete(*os.File) error {
	if err := ft.call("Complete"); err != nil {
		return err
	}
	ft.mu.Lock()
	defer ft.mu.Unlock()
	if ft.marks.data != 'p' {
		ft.t.Errorf("Complete of %+v", ft.marks)
	}
	ft.complete++
	ft.marks.data = 0
	return nil
}

func (ft *fakeTarget) Keep() (func(), bool) {
	ft.mu.Lock()
	defer ft.mu.Unlock()
	if ft.dead {
		return nil, false
	}
	ft.kept++
	return func() {
		ft.mu.Lock()
		defer ft.mu.Unlock()
		ft.kept--
	}, true
}

// check fails the test unless the lower is what it was, the contract was kept, and the marks on the disk agree with state.
// Preconditions: no operation in flight.
func (ft *fakeTarget) check(s State) {
	ft.t.Helper()
	ft.mu.Lock()
	defer ft.mu.Unlock()
	got, err := os.ReadFile(ft.path("lower"))
	if err != nil || !bytes.Equal(got, ft.lowerBytes) {
		ft.t.Errorf("lower changed (%v)", err)
	}
	ft.checkMarksLocked(s)
}

func (ft *fakeTarget) checkMarksLocked(s State) {
	ft.t.Helper()
	if ft.staged != nil || ft.stages != ft.commits+ft.aborts {
		ft.t.Errorf("%d stages, %d commits, %d aborts", ft.stages, ft.commits, ft.aborts)
	}
	done := ft.marks.exists && ft.marks.data == 0
	if (s == Upper) != done || s == UpperShared && ft.marks.data != 'p' {
		ft.t.Errorf("state %v with marks %+v", s, ft.marks)
	}
	st, err := os.Stat(ft.path("upper"))
	switch {
	case (err == nil) != ft.marks.exists:
		ft.t.Errorf("upper: %v, marks %+v", err, ft.marks)
	case err == nil && s.onLower() && st.Size() != int64(len(ft.lowerBytes)):
		ft.t.Errorf("upper without data has size %d, want %d", st.Size(), len(ft.lowerBytes))
	}
}

// checkClosed fails the test if a descriptor that was handed out is still open.
func (ft *fakeTarget) checkClosed() {
	ft.t.Helper()
	ft.mu.Lock()
	defer ft.mu.Unlock()
	for _, f := range ft.opened {
		if f.Fd() != ^uintptr(0) {
			ft.t.Errorf("%v is still open", f.Name())
		}
	}
	ft.opened = nil
}

// pattern gives n bytes that differ from place to place and are never 0.
func pattern(n int, salt byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7+i>>8) ^ salt | 1
	}
	return p
}

// content reads the whole file.
func content(t *testing.T, f *File) []byte {
	t.Helper()
	p, _ := buffers.Get().(*[]byte)
	defer buffers.Put(p)
	n, err := f.ReadAt(*p, 0)
	if err != nil {
		t.Fatalf("read all: %v", err)
	}
	return bytes.Clone((*p)[:n])
}
