package overlayfuse

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sync/errgroup"
)

// newUnasked is a file system whose kernel opens without asking, with n lower files.
func newUnasked(t *testing.T, n int) (*offline, []*inode) {
	t.Helper()
	files := map[string]int{}
	for i := range n {
		files[fmt.Sprint("f", i)] = 10
	}
	o := newOffline(t, files)
	o.writeback = true
	ins := make([]*inode, n)
	for i := range ins {
		ins[i] = o.get(fmt.Sprint("f", i))
	}
	return o, ins
}

func (o *offline) use(in *inode) {
	o.t.Helper()
	if _, s := o.opened(in.id.Load(), 0); !s.Ok() {
		o.t.Fatalf("opened: %v", s)
	}
}

// opens is how many Files are open.
func opens(ins []*inode) (n int) {
	for _, in := range ins {
		if f := in.file.Load(); f != nil {
			all, _ := f.Opens()
			n += all
		}
	}
	return n
}

func TestFilesAreKeptOpenWithinABound(t *testing.T) {
	o, ins := newUnasked(t, filesKept+50)
	for _, in := range ins {
		o.use(in)
		o.use(ins[0]) // used all the time
	}
	if n := o.files.count(); n > filesKept || n != opens(ins) {
		t.Errorf("%d files are kept, %d are open, want %d at most", n, opens(ins), filesKept)
	}
	if all, _ := o.data(ins[0]).Opens(); all != 1 {
		t.Errorf("the file that is used most is open %d times", all)
	}
	// They are closed after they are counted out.
	for end := time.Now().Add(10 * time.Second); o.files.count() > 0 || opens(ins) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d files are kept and %d open for ever", o.files.count(), opens(ins))
		}
	}
	if o.use(ins[1]); opens(ins) != 1 {
		t.Errorf("%d files are open after the next use", opens(ins))
	}
}

// TestFilesOfTheProcessAreBounded: however many mounts it serves.
func TestFilesOfTheProcessAreBounded(t *testing.T) {
	filesOpen.Add(filesKeptAll)
	defer filesOpen.Add(-filesKeptAll)
	o, ins := newUnasked(t, filesKeptFloor+20)
	for _, in := range ins {
		o.use(in)
	}
	if n := o.files.count(); n > filesKeptFloor {
		t.Errorf("%d files are kept, want %d", n, filesKeptFloor)
	}
}

func TestForgottenFileIsClosedAtOnce(t *testing.T) {
	o, ins := newUnasked(t, 1)
	o.use(ins[0])
	f := o.data(ins[0])
	o.Forget(ins[0].id.Load(), 1)
	if all, _ := f.Opens(); all != 0 || o.files.count() != 0 {
		t.Errorf("open %d times, %d kept", all, o.files.count())
	}
}

// TestOpenIsNotAsked: what an OPEN could do is done elsewhere, or lost.
func TestOpenIsNotAsked(t *testing.T) {
	o, ins := newUnasked(t, 1)
	in := fuse.OpenIn{InHeader: fuse.InHeader{NodeId: ins[0].id.Load()}}
	if s := o.Open(nil, &in, &fuse.OpenOut{}); s != fuse.ENOSYS {
		t.Errorf("open: %v", s)
	}
	caps := o.mountOptions()
	if caps.ExtraCapabilities&fuse.CAP_ATOMIC_O_TRUNC != 0 || caps.ExtraCapabilities&fuse.CAP_WRITEBACK_CACHE == 0 {
		t.Errorf("capabilities: %#x", caps.ExtraCapabilities)
	}
	if caps.DisabledCapabilities&fuse.CAP_PASSTHROUGH == 0 || caps.DisabledCapabilities&fuse.CAP_NO_OPEN_SUPPORT != 0 {
		t.Errorf("not capabilities: %#x", caps.DisabledCapabilities)
	}
}

// TestFilesAreReadByManyAtOnce: while they are opened, kept, closed and opened again, each is its own content.
func TestFilesAreReadByManyAtOnce(t *testing.T) {
	filesOpen.Add(filesKeptAll) // few are kept
	defer filesOpen.Add(-filesKeptAll)
	o, ins := newUnasked(t, 3*filesKeptFloor)
	want := make([][]byte, len(ins))
	for i := range ins {
		var err error
		if want[i], err = os.ReadFile(fmt.Sprintf("%s/l/f%d", o.dir, i)); err != nil {
			t.Fatal(err)
		}
	}
	var readers errgroup.Group
	for r := range 8 {
		readers.Go(func() error {
			for n := range 500 {
				i := (n*7 + r*5) % len(ins)
				buf := make([]byte, 20)
				result, s := o.Read(nil, &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: ins[i].id.Load()}, Size: 20}, buf)
				if !s.Ok() {
					return fmt.Errorf("read f%d: %v", i, s)
				}
				if got, _ := result.Bytes(buf); !bytes.Equal(got, want[i]) {
					return fmt.Errorf("f%d is %q, want %q", i, got, want[i])
				}
				if n%100 == 0 {
					o.sweepFiles()
				}
			}
			return nil
		})
	}
	if err := readers.Wait(); err != nil {
		t.Error(err)
	}
}
