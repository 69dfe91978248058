package overlayfuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// failer fails one call of failCall.
type failer struct {
	mu    sync.Mutex
	left  int // calls until the one that fails; 0: none does
	errno unix.Errno
	call  string // that has failed
}

// newFailer lasts longer than a file system that is opened after it.
func newFailer(t *testing.T) *failer {
	f := new(failer)
	failCall = f.ask
	t.Cleanup(func() { failCall = nil })
	return f
}

func (f *failer) ask(call string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left == 0 {
		return nil
	}
	if f.left--; f.left > 0 {
		return nil
	}
	f.call = call
	return f.errno
}

// during fails the n-th call that do makes, and tells which one it was, "" if there were fewer.
func (f *failer) during(n int, errno unix.Errno, do func() error) (call string, err error) {
	f.mu.Lock()
	f.left, f.errno, f.call = n, errno, ""
	f.mu.Unlock()
	err = do()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left = 0
	return f.call, err
}

const (
	smallSize = 10000   // copied whole at the first write
	largeSize = 150_000 // partial then
	slots     = 96      // directories, of which every n takes two
)

// failedMtime is the modification time of the lower files.
var failedMtime = time.Unix(1_000_000_000, 123_456_789)

// calledOp is something to do to the file f of a directory that has an empty directory e beside it.
type calledOp struct {
	name    string
	size    int
	linked  bool // the lower file has the name h too
	prepare func(x trio) error
	do      func(x trio) error
	then    []func(s shown) shown  // what may be seen while do is under way, and last its end
	later   func(call string) bool // the modification time may be a later one if that call fails
}

// shown is what the file system shows of a directory.
type shown struct {
	f, g, h string // contents; "" for no such file
	mode    uint32
	nlink   uint32
	mtime   time.Time
}

func (s shown) String() string {
	return fmt.Sprintf("f of %d bytes, g of %d, h of %d, mode %o, %d links, %v", len(s.f), len(s.g), len(s.h), s.mode, s.nlink, s.mtime)
}

// trio is what an operation is done to, looked up before it: what a lookup meets is not what is tested.
type trio struct {
	*offline
	p, e, f *inode // f is nil if it is not there
}

func (o *offline) trio(dir string) trio {
	o.t.Helper()
	return trio{o, o.get(dir), o.get(dir + "/e"), o.find(dir, "f")}
}

// find is get for a file that may not be there.
func (o *offline) find(dir, name string) *inode {
	o.t.Helper()
	in, err := o.lookup(o.get(dir), name)
	must(o.t, err)
	return in
}

// show reads through the file system.
func (o *offline) show(dir string) (s shown) {
	o.t.Helper()
	for _, at := range []struct {
		dir, name string
		to        *string
	}{{dir, "f", &s.f}, {dir + "/e", "g", &s.g}, {dir, "h", &s.h}} {
		in := o.find(at.dir, at.name)
		if in == nil {
			continue
		}
		var a fuse.Attr
		must(o.t, o.attr(in, &a))
		p := make([]byte, largeSize+100)
		n, err := o.data(in).ReadAt(p, 0)
		must(o.t, err)
		if uint64(n) != a.Size {
			o.t.Errorf("%s/%s: %d bytes can be read of %d", at.dir, at.name, n, a.Size)
		}
		*at.to = string(p[:n])
		if s.mode != 0 && (s.mode != a.Mode || s.nlink != a.Nlink) {
			o.t.Errorf("%s/%s: mode %o, %d links, of another name %o, %d", at.dir, at.name, a.Mode, a.Nlink, s.mode, s.nlink)
		}
		s.mode, s.nlink, s.mtime = a.Mode, a.Nlink, time.Unix(int64(a.Mtime), int64(a.Mtimensec))
	}
	return s
}

func touchF(x trio) error { return x.copyUp(x.f) }

func writeF(off int64) func(x trio) error {
	return func(x trio) error {
		_, err := x.data(x.f).WriteAt([]byte("written"), off, 0)
		return err
	}
}

func writtenF(off int) func(shown) shown {
	return func(s shown) shown {
		s.f = s.f[:off] + "written" + s.f[off+len("written"):]
		return s
	}
}

// truncateF is one size after the other.
func truncateF(sizes ...uint64) func(x trio) error {
	return func(x trio) error {
		for _, size := range sizes {
			req := &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{Valid: fuse.FATTR_SIZE, Size: size}}
			if err := x.setAttr(x.f, req); err != nil {
				return err
			}
		}
		return nil
	}
}

func sizedF(size int) func(shown) shown {
	return func(s shown) shown {
		s.f = (s.f + string(make([]byte, max(0, size-len(s.f)))))[:size]
		return s
	}
}

func chmodF(x trio) error {
	return x.setAttr(x.f, &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{Valid: fuse.FATTR_MODE, Mode: 0o600}})
}

func chmoddedF(s shown) shown { s.mode = unix.S_IFREG | 0o600; return s }

func completeF(x trio) error {
	return x.data(x.f).Complete(context.Background())
}

func linkF(x trio) error { return x.link(x.f, x.e, "g") }

func linkedF(s shown) shown { s.g, s.nlink = s.f, s.nlink+1; return s }

func renameF(x trio) error {
	return x.rename(&side{parent: x.p, name: "f"}, &side{parent: x.e, name: "g"}, 0)
}

func renamedF(s shown) shown { s.f, s.g = "", s.f; return s }

func unchangedF(s shown) shown { return s }

type (
	prepareFunc = func(x trio) error
	stateFuncs  = []func(shown) shown
)

func calledOps() []calledOp {
	var none prepareFunc
	const inLarge = largeSize / 2
	never := func(string) bool { return false }
	written := func(string) bool { return true }
	// A completion puts the time back that its copying has changed. Where that fails it stays: nobody knows later what else has changed it.
	putBack := func(call string) bool { return call == "newfstatat" || call == "utimensat" }
	return []calledOp{
		{"write to a small file", smallSize, false, none, writeF(100), stateFuncs{writtenF(100)}, written},
		{"write to a large file", largeSize, false, none, writeF(inLarge), stateFuncs{writtenF(inLarge)}, written},
		{"write to a metacopy file", largeSize, false, touchF, writeF(inLarge), stateFuncs{writtenF(inLarge)}, written},
		{"chmod", smallSize, false, none, chmodF, stateFuncs{chmoddedF}, never},
		{"chmod of a hard link", smallSize, true, none, chmodF, stateFuncs{chmoddedF}, never},
		{"truncate a small file", smallSize, false, none, truncateF(5000), stateFuncs{sizedF(5000)}, written},
		{"truncate a large file", largeSize, false, none, truncateF(5000, largeSize), stateFuncs{sizedF(5000), sizedF(largeSize)}, written},
		{"truncate a metacopy file", largeSize, false, touchF, truncateF(5000, largeSize), stateFuncs{sizedF(5000), sizedF(largeSize)}, written},
		{"truncate a partial file", largeSize, false, writeF(inLarge), truncateF(5000, largeSize), stateFuncs{sizedF(5000), sizedF(largeSize)}, written},
		{"complete a partial file", largeSize, false, writeF(inLarge), completeF, stateFuncs{unchangedF}, putBack},
		{"complete a metacopy file", smallSize, false, touchF, completeF, stateFuncs{unchangedF}, putBack},
		{"link", smallSize, false, none, linkF, stateFuncs{linkedF}, never},
		{"link a partial file", largeSize, false, writeF(inLarge), linkF, stateFuncs{linkedF}, never},
		{"link a hard link", smallSize, true, none, linkF, stateFuncs{linkedF}, never},
		{"rename a hard link", smallSize, true, none, renameF, stateFuncs{renamedF}, never},
		{"rename", smallSize, false, none, renameF, stateFuncs{renamedF}, never},
	}
}

// TestNthCallFails fails, for every operation, every n and some errors, the n-th system call on a layer. That error comes out, or the
// operation succeeds; what is shown is old or new, and again when the file system is opened anew; and the same operation succeeds when it
// is done again, before that and after.
func TestNthCallFails(t *testing.T) {
	for _, op := range calledOps() {
		for _, errno := range []unix.Errno{unix.EIO, unix.ENOSPC, unix.EDQUOT, unix.EINTR} {
			t.Run(op.name+"/"+unix.ErrnoName(errno), func(t *testing.T) { failEach(t, op, errno) })
		}
	}
}

// outcome is what came of an operation one of whose calls failed.
type outcome struct {
	dir, call string
	failed    bool
	later     bool    // the modification time may be
	states    []shown // that may be shown
}

func failEach(t *testing.T, op calledOp, errno unix.Errno) {
	fail := newFailer(t)
	dir, content := failTree(t, op)
	o := openOffline(t, dir)
	var all []outcome
	for n := 1; ; n++ {
		again, later := fmt.Sprint("d", 2*n-2), fmt.Sprint("d", 2*n-1)
		x, ok := o.failNth(fail, op, again, n, errno)
		if !ok {
			t.Logf("%d calls", n-1)
			break // all were failed
		}
		o.mustSucceed(op, x)
		x.failed = false
		y, _ := o.failNth(fail, op, later, n, errno)
		all = append(all, x, y)
	}
	must(t, o.close())
	o = openOffline(t, dir)
	if left, err := os.ReadDir(dir + "/w/work"); err != nil || len(left) > 0 {
		t.Errorf("in the workdir: %v, %v", left, err)
	}
	for _, x := range all {
		o.wantOneOf(x)
		o.mustSucceed(op, x)
	}
	must(t, o.close())
	checkFailTree(t, dir, content)
}

// failTree is a lower layer for op.
func failTree(t *testing.T, op calledOp) (dir string, content []byte) {
	t.Helper()
	dir = tree(t, "l", "u", "w")
	content = make([]byte, op.size)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(content) // never fails
	for i := range slots {
		d := fmt.Sprint(dir, "/l/d", i)
		must(t, os.MkdirAll(d+"/e", 0o755))
		must(t, os.WriteFile(d+"/f", content, 0o644))
		must(t, os.Chtimes(d+"/f", failedMtime, failedMtime))
		if op.linked {
			must(t, os.Link(d+"/f", d+"/h"))
		}
	}
	return dir, content
}

// checkFailTree compares the lower with what failTree has made, and checks the upper.
func checkFailTree(t *testing.T, dir string, content []byte) {
	t.Helper()
	for i := range slots {
		f := fmt.Sprint(dir, "/l/d", i, "/f")
		got, err := os.ReadFile(f)
		must(t, err)
		st, err := os.Stat(f)
		must(t, err)
		if !bytes.Equal(got, content) || st.Mode() != 0o644 || !st.ModTime().Equal(failedMtime) {
			t.Errorf("lower %s has changed: %v, %v", f, st.Mode(), st.ModTime())
		}
	}
	r, err := Check(context.Background(), writableConfig(dir), CheckOptions{})
	must(t, err)
	for _, f := range r.Findings {
		if f.Severity > SeverityNote {
			t.Errorf("check: %+v", f)
		}
	}
}

// failNth is false if there are fewer than n calls.
func (o *offline) failNth(fail *failer, op calledOp, dir string, n int, errno unix.Errno) (outcome, bool) {
	o.t.Helper()
	if op.prepare != nil {
		must(o.t, op.prepare(o.trio(dir)))
	}
	old := o.show(dir)
	x := outcome{dir: dir, states: []shown{old}}
	for _, then := range op.then {
		x.states = append(x.states, then(x.states[len(x.states)-1]))
	}
	at := o.trio(dir)
	call, err := fail.during(n, errno, func() error { return op.do(at) })
	x.call, x.failed, x.later = fmt.Sprintf("%s: call %d (%s)", dir, n, call), err != nil, op.later(call)
	switch {
	case call == "":
		must(o.t, err)
		return x, false
	case err != nil && !errors.Is(err, errno):
		o.t.Errorf("%s: %v, want %v", x.call, err, errno)
	case err != nil && errno == unix.EINTR && (call == "openat2" || call == "open"):
		o.t.Errorf("%s was not made again: %v", x.call, err)
	}
	o.wantOneOf(x)
	return x, true
}

// wantOneOf compares what is shown with the states of x, of which only the last one is right after a success.
func (o *offline) wantOneOf(x outcome) {
	o.t.Helper()
	states := x.states
	if !x.failed {
		states = states[len(states)-1:]
	}
	got := o.show(x.dir)
	for _, want := range states {
		if x.later && got.mtime.After(want.mtime) {
			want.mtime = got.mtime
		}
		if got == want {
			return
		}
	}
	o.t.Errorf("%s, failed %v: %v, want the last, or of a failure one, of %v", x.call, x.failed, got, x.states)
}

// mustSucceed does again what has failed.
func (o *offline) mustSucceed(op calledOp, x outcome) {
	o.t.Helper()
	if !x.failed {
		return
	}
	if err := op.do(o.trio(x.dir)); err != nil {
		o.t.Errorf("again after %s: %v", x.call, err)
		return
	}
	x.failed, x.call = false, "again after "+x.call
	o.wantOneOf(x)
}
