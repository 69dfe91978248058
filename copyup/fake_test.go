package copyup

import (
	"bytes"
	"errors"
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

// injection is what happens to the call that a fakeKernel fails.
type injection struct {
	name string
	err  error // nil: half of what was asked for is done (only pread, pwrite, copy_file_range)
}

var injections = []injection{
	{"EIO", unix.EIO}, {"ENOSPC", unix.ENOSPC}, {"EDQUOT", unix.EDQUOT}, {"EINTR", unix.EINTR}, {"short", nil},
}

// fakeKernel is the kernel, with a record of the calls, failures on demand, no waiting for disks, and a choice of the way
// in which data can be copied.
type fakeKernel struct {
	linux
	way way

	mu     sync.Mutex
	calls  []string
	failAt int // fail the call with this number, from 1; 0: none
	inject injection
	fired  bool
	onCall func(name string)
}

// way is how a copy-up can copy.
type way int

const (
	byClone  way = iota // reflink, emulated by copying
	byRange             // copy_file_range
	byBuffer            // neither
	byZeros             // neither; and no holes can be found or punched
	numWays
)

func (w way) String() string { return [...]string{"clone", "range", "buffer", "zeros"}[w] }

// enter counts a call and gives the error that it must answer, or that it must be short.
func (k *fakeKernel) enter(name string) (short bool, err error) {
	if k.onCall != nil {
		k.onCall(name)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls = append(k.calls, name)
	if k.failAt == 0 || len(k.calls) != k.failAt {
		return false, nil
	}
	k.fired = true
	return k.inject.err == nil, k.inject.err
}

// arm fails the n-th call from now on; 0 disarms.
func (k *fakeKernel) arm(n int, in injection) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls, k.failAt, k.inject, k.fired = nil, n, in, false
}

func (k *fakeKernel) hasFired() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.fired
}

func (k *fakeKernel) count(name string) (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range k.calls {
		if c == name {
			n++
		}
	}
	return n
}

// target gives the fail function of a fakeTarget whose calls count with the system calls.
func (k *fakeKernel) target(call string) error {
	_, err := k.enter(call)
	return err
}

func halve(n int, short bool) int {
	if short {
		return (n + 1) / 2
	}
	return n
}

func (k *fakeKernel) fstat(fd int, st *unix.Stat_t) error {
	if _, err := k.enter("fstat"); err != nil {
		return err
	}
	return k.linux.fstat(fd, st)
}

func (k *fakeKernel) statusFlags(fd int) (int, error) {
	if _, err := k.enter("fcntl"); err != nil {
		return 0, err
	}
	return k.linux.statusFlags(fd)
}

func (k *fakeKernel) pread(fd int, p []byte, off int64) (int, error) {
	short, err := k.enter("pread")
	if err != nil {
		return 0, err
	}
	return k.linux.pread(fd, p[:halve(len(p), short)], off)
}

func (k *fakeKernel) pwrite(fd int, p []byte, off int64, flags int) (int, error) {
	name := "pwrite"
	if flags != 0 {
		name = fmt.Sprintf("pwrite flags %d", flags)
	}
	short, err := k.enter(name)
	if err != nil {
		return 0, err
	}
	return k.linux.pwrite(fd, p[:halve(len(p), short)], off, 0)
}

func (k *fakeKernel) ftruncate(fd int, size int64) error {
	if _, err := k.enter("ftruncate"); err != nil {
		return err
	}
	return k.linux.ftruncate(fd, size)
}

func (k *fakeKernel) fallocate(fd int, mode uint32, off, length int64) error {
	if _, err := k.enter("fallocate"); err != nil {
		return err
	}
	if k.way == byZeros {
		return unix.EOPNOTSUPP
	}
	return k.linux.fallocate(fd, mode, off, length)
}

func (k *fakeKernel) lseek(fd int, off int64, whence int) (int64, error) {
	if _, err := k.enter("lseek"); err != nil {
		return 0, err
	}
	if k.way == byZeros {
		return 0, unix.EINVAL
	}
	return k.linux.lseek(fd, off, whence)
}

func (k *fakeKernel) cloneRange(dst, src int, length int64) error {
	if _, err := k.enter("clone"); err != nil {
		return err
	}
	if k.way != byClone {
		return unix.EOPNOTSUPP
	}
	buf := make([]byte, length)
	if n, err := k.linux.pread(src, buf, 0); err != nil || int64(n) != length {
		return errors.Join(err, fmt.Errorf("clone read %d of %d bytes", n, length))
	}
	_, err := k.linux.pwrite(dst, buf, 0, 0)
	return err
}

func (k *fakeKernel) copyFileRange(src int, srcOff int64, dst int, dstOff int64, length int) (int, error) {
	short, err := k.enter("copy_file_range")
	switch {
	case err != nil:
		return 0, err
	case k.way == byZeros:
		return 0, nil // as some file systems do
	case k.way == byBuffer:
		return 0, unix.EXDEV
	}
	return k.linux.copyFileRange(src, srcOff, dst, dstOff, halve(length, short))
}

func (k *fakeKernel) fsync(int) error {
	_, err := k.enter("fsync")
	return err
}

func (k *fakeKernel) fdatasync(int) error {
	_, err := k.enter("fdatasync")
	return err
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
