package copyup

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// fakeTarget is one file of an overlay without layers: a lower file, and an upper name in the same directory.
// It checks the contract that File has with it, and fails calls on demand.
type fakeTarget struct {
	t          *testing.T
	dir        string
	lowerBytes []byte
	meta       bool // the upper is an installed metacopy file until Commit
	limit      int64
	fail       func(call string) error // nil or an error for this call
	onStage    func()

	mu       sync.Mutex
	opened   []*os.File // everything handed out
	staged   *os.File   // Stage without Commit or Abort yet
	complete bool       // the upper has the data
	stages   int
	commits  int
	aborts   int
}

func newTarget(t *testing.T, lower []byte) *fakeTarget {
	t.Helper()
	return newTargetIn(t, t.TempDir(), lower)
}

func newTargetIn(t *testing.T, dir string, lower []byte) *fakeTarget {
	t.Helper()
	ft := &fakeTarget{t: t, dir: dir, lowerBytes: bytes.Clone(lower), limit: 1 << 62}
	if err := os.Remove(ft.path("upper")); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	// A lower that an earlier test in the same directory left is taken as it is: check compares it.
	if _, err := os.Stat(ft.path("lower")); os.IsNotExist(err) {
		if err := os.WriteFile(ft.path("lower"), lower, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return ft
}

// metacopy installs a metacopy upper.
func (ft *fakeTarget) metacopy() {
	ft.t.Helper()
	ft.meta = true
	if err := os.WriteFile(ft.path("upper"), nil, 0o644); err != nil {
		ft.t.Fatal(err)
	}
	if err := os.Truncate(ft.path("upper"), int64(len(ft.lowerBytes))); err != nil {
		ft.t.Fatal(err)
	}
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

func (ft *fakeTarget) isComplete() bool {
	ft.mu.Lock()
	defer ft.mu.Unlock()
	return ft.complete
}

func (ft *fakeTarget) OpenLower() (*os.File, error) {
	if err := ft.call("OpenLower"); err != nil {
		return nil, err
	}
	return ft.open("lower", os.O_RDONLY)
}

func (ft *fakeTarget) OpenUpper() (*os.File, error) {
	if !ft.isComplete() {
		ft.t.Error("OpenUpper without a complete upper")
	}
	if err := ft.call("OpenUpper"); err != nil {
		return nil, err
	}
	return ft.open("upper", os.O_RDWR)
}

func (ft *fakeTarget) Stage() (*os.File, error) {
	if err := ft.call("Stage"); err != nil {
		return nil, err
	}
	if ft.onStage != nil {
		ft.onStage()
	}
	name, flags := ".", os.O_RDWR|unix.O_TMPFILE
	if ft.meta {
		name, flags = "upper", os.O_RDWR
	}
	f, err := ft.open(name, flags)
	if err != nil {
		return nil, err
	}
	ft.mu.Lock()
	defer ft.mu.Unlock()
	if ft.staged != nil || ft.complete {
		ft.t.Error("Stage twice")
	}
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

func (ft *fakeTarget) Commit(f *os.File) error {
	err := ft.call("Commit")
	ft.mu.Lock()
	defer ft.mu.Unlock()
	ft.unstage(f, "Commit")
	if err == nil && !ft.meta {
		err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, ft.path("upper"), unix.AT_SYMLINK_FOLLOW)
	}
	if err != nil {
		ft.aborts++
		return err
	}
	ft.complete = true
	ft.commits++
	return nil
}

func (ft *fakeTarget) Abort(f *os.File) {
	ft.mu.Lock()
	defer ft.mu.Unlock()
	ft.unstage(f, "Abort")
	ft.aborts++
}

// limited is a fakeTarget that is a Limiter.
type limited struct{ *fakeTarget }

func (l limited) LowerLimit() int64 { return l.limit }

// check fails the test unless the lower is what it was, the contract was kept, and the names on the disk agree with state.
// Preconditions: no operation in flight.
func (ft *fakeTarget) check(s State) {
	ft.t.Helper()
	ft.mu.Lock()
	defer ft.mu.Unlock()
	got, err := os.ReadFile(ft.path("lower"))
	if err != nil || !bytes.Equal(got, ft.lowerBytes) {
		ft.t.Errorf("lower changed (%v)", err)
	}
	if ft.staged != nil || ft.stages != ft.commits+ft.aborts {
		ft.t.Errorf("%d stages, %d commits, %d aborts", ft.stages, ft.commits, ft.aborts)
	}
	if (s == Upper) != ft.complete || ft.commits > 1 {
		ft.t.Errorf("state %v with a complete upper: %v, %d commits", s, ft.complete, ft.commits)
	}
	st, err := os.Stat(ft.path("upper"))
	switch {
	case (err == nil) != (ft.complete || ft.meta):
		ft.t.Errorf("upper: %v, complete %v", err, ft.complete)
	case err == nil && !ft.complete && st.Size() != int64(len(ft.lowerBytes)):
		ft.t.Errorf("metacopy upper has size %d, want %d", st.Size(), len(ft.lowerBytes))
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
	p := make([]byte, 256<<10)
	n, err := f.ReadAt(p, 0)
	if err != nil {
		t.Fatalf("read all: %v", err)
	}
	return p[:n]
}
