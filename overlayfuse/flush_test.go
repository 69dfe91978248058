package overlayfuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/sirupsen/logrus"
	logrustest "github.com/sirupsen/logrus/hooks/test"
	"golang.org/x/sys/unix"
)

// The tests of this file use a file system that is not mounted: what they do to it goes through no kernel.

// offline is a file system over the directories l, u and w of dir, with names of regular files in l made of random bytes.
type offline struct {
	*FS
	t   *testing.T
	dir string
	log *bytes.Buffer

	close func() error // once
}

// newOffline makes the lower files, opens the file system, and closes it with the test.
func newOffline(t *testing.T, files map[string]int) *offline {
	t.Helper()
	dir := tree(t, "l", "u", "w")
	random := rand.NewChaCha8([32]byte{1})
	for name, size := range files {
		data := make([]byte, size)
		_, _ = random.Read(data) // never fails
		if err := os.MkdirAll(filepath.Dir(dir+"/l/"+name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+"/l/"+name, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return openOffline(t, dir)
}

func openOffline(t *testing.T, dir string) *offline {
	t.Helper()
	o := &offline{t: t, dir: dir, log: new(bytes.Buffer)}
	log := logrus.New()
	log.SetOutput(io.MultiWriter(t.Output(), o.log))
	cfg := writableConfig(dir)
	cfg.Log = logrus.NewEntry(log)
	fs, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	o.FS = fs
	o.close = sync.OnceValue(fs.Close)
	t.Cleanup(func() {
		if err := o.close(); err != nil {
			t.Error(err)
		}
	})
	return o
}

// get looks a path up. The inodes stay referenced.
func (o *offline) get(path string) *inode {
	o.t.Helper()
	in := o.root
	for name := range strings.SplitSeq(path, "/") {
		var err error
		if in, err = o.lookup(in, name); err != nil || in == nil {
			o.t.Fatalf("lookup %s: %v, %v", path, in, err)
		}
	}
	return in
}

// touch makes a file metacopy.
func (o *offline) touch(path string) *inode {
	o.t.Helper()
	in := o.get(path)
	if err := o.copyUp(in); err != nil {
		o.t.Fatal(err)
	}
	return in
}

// write makes a file partial.
func (o *offline) write(path, text string, off int64) *inode {
	o.t.Helper()
	in := o.get(path)
	if _, err := o.data(in).WriteAt([]byte(text), off, 0); err != nil {
		o.t.Fatal(err)
	}
	return in
}

// blocks is the space that a file of the upper takes in bytes.
func (o *offline) blocks(path string) int64 {
	o.t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(o.dir+"/u/"+path, &st); err != nil {
		o.t.Fatal(err)
	}
	return st.Blocks * 512
}

func (o *offline) mustFlush(opts FlushOptions) FlushStats {
	o.t.Helper()
	stats, err := o.FlushUpper(context.Background(), opts)
	if err != nil {
		o.t.Fatal(err)
	}
	return stats
}

// wantWhole compares a file of the upper, which must have no marks, with its lower and a change to that.
func (o *offline) wantWhole(path, text string, off int) {
	o.t.Helper()
	want, err := os.ReadFile(o.dir + "/l/" + path)
	if err != nil {
		o.t.Fatal(err)
	}
	copy(want[off:], text)
	got, err := os.ReadFile(o.dir + "/u/" + path)
	if err != nil || !bytes.Equal(got, want) {
		o.t.Errorf("upper %s: %d bytes, %v, want the lower's %d with %q at %d", path, len(got), err, len(want), text, off)
	}
	for _, mark := range []string{metacopyMark, limitMark} {
		if has, err := hasXattr(onHost(o.dir+"/u/"+path), o.prefix+mark); has || err != nil {
			o.t.Errorf("upper %s has %s: %v, %v", path, mark, has, err)
		}
	}
}

func TestFlushCompletesPartialAndMetacopyFiles(t *testing.T) {
	o := newOffline(t, map[string]int{"d/partial": 3<<20 + 5, "d/meta": 1 << 20, "untouched": 1 << 20})
	o.write("d/partial", "written", 1<<20+100)
	o.touch("d/meta")
	if o.blocks("d/partial") > 128<<10 || o.blocks("d/meta") > 128<<10 {
		t.Fatalf("copied before the flush: %d, %d bytes", o.blocks("d/partial"), o.blocks("d/meta"))
	}
	m := new(FlushMeter)
	s := o.mustFlush(FlushOptions{Meter: m})
	o.wantWhole("d/partial", "written", 1<<20+100)
	o.wantWhole("d/meta", "", 0)
	if _, err := os.Lstat(o.dir + "/u/untouched"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what has no upper: %v", err)
	}
	p := m.Read()
	if s.Completed != 2 || s.Kept != 0 || p.Phase != FlushIdle || p.Files != 2 || p.FilesTotal != 2 || p.Bytes != p.BytesTotal || s.Bytes != p.Bytes ||
		p.Synced != 4 || p.SyncTotal != 4 || s.Synced != 4 { // two files, d and the root
		t.Errorf("%+v, %+v", s, p)
	}
	if p.BytesTotal < 4<<20-64<<10 || p.BytesTotal > 4<<20+64<<10 {
		t.Errorf("%d bytes in all, want what was missing", p.BytesTotal)
	}
	if !strings.Contains(o.log.String(), "overlay: flushed") {
		t.Errorf("not in the log: %s", o.log)
	}
	if s := o.mustFlush(FlushOptions{}); s.Completed != 0 {
		t.Errorf("the second flush: %+v", s)
	}
}

// TestFlushThatKeepsMetacopy: but never a partial file, nor a metacopy file that is shorter than its data.
func TestFlushThatKeepsMetacopy(t *testing.T) {
	o := newOffline(t, map[string]int{"meta": 1 << 20, "partial": 1 << 20, "short": 1 << 20})
	o.touch("meta")
	o.touch("short")
	o.write("partial", "x", 0)
	if err := o.close(); err != nil {
		t.Fatal(err)
	}
	// What a crash in a truncation leaves.
	if err := os.Truncate(o.dir+"/u/short", 12345); err != nil {
		t.Fatal(err)
	}
	again := openOffline(t, o.dir)
	s := again.mustFlush(FlushOptions{KeepMetacopy: true})
	if s.Completed != 2 || s.Kept != 1 {
		t.Errorf("%+v, want 2 completed, 1 kept", s)
	}
	again.wantWhole("partial", "x", 0)
	if v, err := getXattr(onHost(o.dir+"/u/meta"), o.prefix+metacopyMark); err != nil || len(v) != 0 || again.blocks("meta") > 4096 {
		t.Errorf("kept: %q, %v, %d bytes", v, err, again.blocks("meta"))
	}
	lower, err := os.ReadFile(o.dir + "/l/short")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(o.dir + "/u/short"); err != nil || !bytes.Equal(got, lower[:12345]) {
		t.Errorf("cut short: %d bytes, %v", len(got), err)
	}
}

// TestFlushOfHardLinks: a file is completed once, under all of its names; also one that only the index leads to.
func TestFlushOfHardLinks(t *testing.T) {
	for _, keep := range []bool{false, true} {
		t.Run(fmt.Sprint("keep=", keep), func(t *testing.T) {
			dir := tree(t, "l", "l/a", "l/b", "l/c", "u", "w")
			data := bytes.Repeat([]byte("0123456789abcdef"), 1<<15)
			if err := os.WriteFile(dir+"/l/a/f", data, 0o644); err != nil {
				t.Fatal(err)
			}
			for _, n := range []string{"b", "c"} {
				if err := os.Link(dir+"/l/a/f", dir+"/l/"+n+"/f"); err != nil {
					t.Fatal(err)
				}
			}
			o := openOffline(t, dir)
			o.touch("a/f")
			if s := o.Unlink(nil, &fuse.InHeader{NodeId: o.get("a").id.Load()}, "f"); !s.Ok() {
				t.Fatal(s)
			}
			s := o.mustFlush(FlushOptions{KeepMetacopy: keep})
			want := FlushStats{Completed: 1, Bytes: int64(len(data)), Linked: 2, Synced: s.Synced}
			if keep {
				want = FlushStats{Kept: 1, Linked: 2, Synced: s.Synced}
			}
			if s != want {
				t.Errorf("%+v, want %+v", s, want)
			}
			var b, c unix.Stat_t
			if err := errors.Join(unix.Lstat(dir+"/u/b/f", &b), unix.Lstat(dir+"/u/c/f", &c)); err != nil || b.Ino != c.Ino {
				t.Errorf("links: %v, %d and %d", err, b.Ino, c.Ino)
			}
			if !keep {
				o.wantWhole("b/f", "", 0)
			}
		})
	}
}

// TestFlushIsCancelledAndGoesOn: at any time, with what was copied kept.
func TestFlushIsCancelledAndGoesOn(t *testing.T) {
	const size = 192 << 20
	o := newOffline(t, map[string]int{"big": size, "small": 4 << 10})
	o.write("big", "x", size/2)
	o.touch("small")
	ctx, cancel := context.WithCancelCause(context.Background())
	cause := errors.New("the caller went away")
	m := new(FlushMeter)
	go func() {
		for m.Read().Bytes < 8<<20 {
			time.Sleep(time.Millisecond)
		}
		cancel(cause)
	}()
	_, err := o.FlushUpper(ctx, FlushOptions{Meter: m})
	if !errors.Is(err, unix.EINTR) || !errors.Is(err, cause) {
		t.Fatalf("cancelled: %v", err)
	}
	p := m.Read()
	if p.Bytes >= size || p.FilesTotal != 2 || p.BytesTotal < size {
		t.Errorf("%+v", p)
	}
	if have := o.blocks("big"); have < p.Bytes {
		t.Errorf("%d bytes were copied, %d are there", p.Bytes, have)
	}
	next := new(FlushMeter)
	o.mustFlush(FlushOptions{Meter: next})
	if q := next.Read(); q.BytesTotal > size-p.Bytes+1<<20 {
		t.Errorf("the next flush copies %d bytes of %d, %d were there", q.BytesTotal, size, p.Bytes)
	}
	o.wantWhole("big", "x", size/2)
	o.wantWhole("small", "", 0)
}

// TestFlushGoesOnBesideAFileThatIsHeld: files are completed in parallel, and the log tells how far it is.
func TestFlushGoesOnBesideAFileThatIsHeld(t *testing.T) {
	names := []string{"a", "b", "c"}
	for _, held := range names { // one of them comes first
		t.Run(held, func(t *testing.T) {
			o := newOffline(t, map[string]int{"a": 5000, "b": 5000, "c": 5000})
			for _, name := range names {
				o.write(name, "x", 100)
			}
			release := sync.OnceFunc(lockAll(o.get(held)))
			defer release()
			m := new(FlushMeter)
			log, lines := logrustest.NewNullLogger()
			defer m.logEvery(time.Millisecond, logrus.NewEntry(log))()
			ended := make(chan error, 1)
			go func() {
				_, err := o.FlushUpper(context.Background(), FlushOptions{Meter: m})
				ended <- err
			}()
			within := func(what string, done func() bool) {
				t.Helper()
				for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
					if time.Now().After(end) {
						t.Fatalf("not: %s; %+v", what, m.Read())
					}
				}
			}
			within("the others are complete", func() bool { return m.Read().Files == 2 })
			within("the log says so", func() bool {
				e := lines.LastEntry()
				return e != nil && e.Message == "overlay: flushing" && e.Data["files"] == int64(2) && e.Data["files_total"] == int64(3)
			})
			release()
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
			for _, name := range names {
				o.wantWhole(name, "x", 100)
			}
		})
	}
}

// TestFlushOfMoreFilesThanTheQueueHolds: it takes another round; the totals are right from the first.
func TestFlushOfMoreFilesThanTheQueueHolds(t *testing.T) {
	files := map[string]int{}
	for i := range 50 {
		files[fmt.Sprintf("d%d/f%d", i%7, i)] = 5000
	}
	o := newOffline(t, files)
	for name := range files {
		o.touch(name)
	}
	f := &flusher{fs: o.FS, ctx: context.Background(), meter: new(FlushMeter), queue: 8}
	if err := f.run(); err != nil {
		t.Fatal(err)
	}
	if p := f.meter.Read(); p.Files != 50 || p.FilesTotal != 50 || p.Bytes != p.BytesTotal || f.stats.Completed != 50 {
		t.Errorf("%+v, %+v", p, f.stats)
	}
	for name := range files {
		o.wantWhole(name, "", 0)
	}
}

// TestFlushLeavesNoInodeBehind: the inodes that it held are gone, as the kernel knows none.
func TestFlushLeavesNoInodeBehind(t *testing.T) {
	o := newOffline(t, map[string]int{"d/a": 1 << 20, "d/b": 1 << 20})
	o.touch("d/a")
	o.write("d/b", "x", 0)
	if err := o.close(); err != nil {
		t.Fatal(err)
	}
	again := openOffline(t, o.dir)
	again.mustFlush(FlushOptions{})
	if i := again.Inspect(); i.Inodes != 1 {
		t.Errorf("%d inodes, want the root alone", i.Inodes)
	}
}

// TestHandlesOfAnEarlierMount: nodeids come again, so the generation, which is in each file handle, must not.
func TestHandlesOfAnEarlierMount(t *testing.T) {
	o := newOffline(t, map[string]int{"f": 10})
	generation := func(o *offline) uint64 {
		var out fuse.EntryOut
		if s := o.Lookup(nil, &fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, "f", &out); !s.Ok() {
			t.Fatal(s)
		}
		return out.Generation
	}
	first := generation(o)
	must(t, o.close())
	if second := generation(openOffline(t, o.dir)); first == 0 || second == 0 || first == second || first>>32 != 0 {
		t.Errorf("generations %d and %d", first, second)
	}
}

func TestInspect(t *testing.T) {
	o := newOffline(t, map[string]int{"d/meta": 1 << 20, "d/partial": 1 << 20, "d/bad": 1 << 20, "plain": 10})
	o.touch("d/meta")
	o.write("d/partial", "x", 0)
	o.get("plain")
	bad := o.get("d/bad")
	i := o.Inspect()
	if i.Inodes != 6 || i.Metacopy != 1 || i.Partial != 1 || i.Handles != 0 || len(i.Poisoned) != 0 {
		t.Errorf("%+v", i)
	}
	if c := i.Counters; c.Partial != 1 || c.Avoided != 1 || c.NotCopied < 1<<20 || c.Poisoned != 0 {
		t.Errorf("%+v", c)
	}
	o.data(bad).Poison(errors.New("upper in doubt"))
	i = o.Inspect()
	if len(i.Poisoned) != 1 || i.Counters.Poisoned != 1 {
		t.Fatalf("%+v", i)
	}
	if p := i.Poisoned[0]; p.Path != "/d/bad" || p.Ino != bad.ino || !strings.Contains(p.Cause, "upper in doubt") {
		t.Errorf("%+v", p)
	}
	if _, err := o.FlushUpper(context.Background(), FlushOptions{KeepMetacopy: true}); err != nil {
		t.Errorf("flush: what is poisoned has no upper yet, so nothing of it is in doubt: %v", err)
	}
}

// TestCountsOfATruncatedFile: nobody copies what is cut off, so it counts as spared by no one; and what an earlier mount spared does not
// take a later one's count below 0.
func TestCountsOfATruncatedFile(t *testing.T) {
	o := newOffline(t, map[string]int{"emptied": 1 << 20, "half": 1 << 20, "later": 1 << 20})
	must(t, o.data(o.get("emptied")).Truncate(0))
	if c := o.Inspect().Counters; c.Avoided != 1 || c.NotCopied != 0 {
		t.Errorf("truncated to 0: %+v", c)
	}
	must(t, o.data(o.get("half")).Truncate(512<<10))
	if c := o.Inspect().Counters; c.Avoided != 1 || c.NotCopied != 512<<10 {
		t.Errorf("truncated to half: %+v", c)
	}
	o.write("later", "x", 0)
	must(t, o.close())
	again := openOffline(t, o.dir)
	must(t, again.data(again.get("later")).Complete(context.Background()))
	if c := again.Inspect().Counters; c.NotCopied != 0 || c.BytesCopied < 1<<20-64<<10 {
		t.Errorf("completed by the next mount: %+v", c)
	}
}

// TestFlushFailsOnAPoisonedFile, whatever its marks say: nobody knows whether they are right.
func TestFlushFailsOnAPoisonedFile(t *testing.T) {
	for _, data := range []string{"partial", "meta", "whole"} {
		t.Run(data, func(t *testing.T) {
			o := newOffline(t, map[string]int{"partial": 1 << 20, "meta": 1 << 20, "whole": 1 << 20})
			o.write("partial", "x", 0)
			o.touch("meta")
			if err := o.data(o.write("whole", "x", 0)).Complete(context.Background()); err != nil {
				t.Fatal(err)
			}
			o.data(o.get(data)).Poison(errors.New("upper in doubt"))
			_, err := o.FlushUpper(context.Background(), FlushOptions{KeepMetacopy: true})
			if !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), "/"+data) {
				t.Error(err)
			}
		})
	}
}

// TestFailedCompletionLeavesNothing: a completion that fails notes nothing for the next mount, which would put back times and a capability
// that have changed since.
func TestFailedCompletionLeavesNothing(t *testing.T) {
	o := newOffline(t, map[string]int{"f": 1 << 20})
	upper := o.dir + "/u/f"
	in := o.write("f", "x", 0)
	netRaw := []byte{0, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0} // struct vfs_cap_data of revision 2
	must(t, unix.Setxattr(upper, capabilityXattr, netRaw, 0))
	f, err := os.OpenFile(upper, os.O_RDWR, 0)
	must(t, err)
	err = (&target{in: in}).Quietly(f, true, func() error { return unix.ENOSPC })
	must(t, f.Close())
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond) // a tick of the clock of times
	o.write("f", "new", 100)
	var before, after unix.Stat_t
	must(t, unix.Lstat(upper, &before))
	must(t, o.close())
	openOffline(t, o.dir).get("f")
	must(t, unix.Lstat(upper, &after))
	if before.Mtim != after.Mtim {
		t.Errorf("the next mount has set the modification time %v to %v", before.Mtim, after.Mtim)
	}
	if _, err := unix.Lgetxattr(upper, capabilityXattr, nil); !errors.Is(err, unix.ENODATA) {
		t.Errorf("the file has the capability again that a write has taken away: %v", err)
	}
}
