package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse"
)

// keptUpper is a Spec whose upper was flushed and unmounted with metacopy files kept, and what a reader above must see:
// contents by name, modes of three of them.
func keptUpper(t *testing.T, p *process, dir string) (Spec, map[string]string) {
	t.Helper()
	ctx := testContext(t)
	a := testSpec(t, dir, "a")
	lower := a.Lower[0]
	want := map[string]string{"lower": "from a"}
	for i, name := range []string{"mode", "partial", "d/renamed", "linked", "d/moved/in", "hard1", "gone", "old/dir/f"} {
		text := strings.Repeat(string(rune('a'+i)), 300<<10)
		if err := os.MkdirAll(lower+"/"+name[:strings.LastIndex("/"+name, "/")], 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(lower+"/"+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		want[name] = text
	}
	if err := os.Link(lower+"/hard1", lower+"/d/hard2"); err != nil {
		t.Fatal(err)
	}
	mustMount(t, p, a)
	m := a.MountPoint
	f, err := os.OpenFile(m+"/partial", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("written"), 200<<10)
	if err = errors.Join(err, f.Close(),
		os.Chmod(m+"/mode", 0o600),
		os.Rename(m+"/d/renamed", m+"/name"),
		os.Link(m+"/linked", m+"/d/link"),
		os.Chown(m+"/d/moved/in", 5, 6), os.Rename(m+"/d", m+"/e"),
		os.Chmod(m+"/hard1", 0o640),
		os.Remove(m+"/gone"),
		os.Rename(m+"/old/dir/f", m+"/old/f"), os.Remove(m+"/old/dir"), os.Mkdir(m+"/old/dir", 0o755), os.Rename(m+"/old/f", m+"/old/dir/g"),
	); err != nil {
		t.Fatal(err)
	}
	s, err := p.client.FlushKeepingMetacopy(ctx, a)
	if err != nil || s.Completed != 1 || s.Kept != 6 {
		t.Fatalf("%+v, %v, want the partial file completed and 6 kept", s, err)
	}
	if err := p.client.Unmount(ctx, "a", false); err != nil {
		t.Fatal(err)
	}
	want["partial"] = want["partial"][:200<<10] + "written" + want["partial"][200<<10+7:]
	for from, to := range map[string][]string{"d/renamed": {"name"}, "linked": {"linked", "e/link"}, "d/moved/in": {"e/moved/in"},
		"hard1": {"hard1", "e/hard2"}, "gone": nil, "old/dir/f": {"old/dir/g"}} {
		text := want[from]
		delete(want, from)
		for _, n := range to {
			want[n] = text
		}
	}
	return a, want
}

// checkReader compares a merged tree with what it must be.
func checkReader(t *testing.T, who, m string, want map[string]string) {
	t.Helper()
	for name, text := range want {
		got, err := os.ReadFile(m + "/" + name)
		if err != nil || string(got) != text {
			t.Errorf("%s: %s: %d bytes, %v, want %d", who, name, len(got), err, len(text))
		}
	}
	for name, mode := range map[string]uint32{"mode": 0o600, "hard1": 0o640, "name": 0o644} {
		var st unix.Stat_t
		if err := unix.Lstat(m+"/"+name, &st); err != nil || st.Mode&0o7777 != mode || st.Size != 300<<10 {
			t.Errorf("%s: %s: %v, mode %o, %d bytes", who, name, err, st.Mode, st.Size)
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat(m+"/e/moved/in", &st); err != nil || st.Uid != 5 || st.Gid != 6 {
		t.Errorf("%s: owner %d:%d, %v", who, st.Uid, st.Gid, err)
	}
	for _, gone := range []string{"gone", "d", "old/dir/f", "e/renamed"} {
		if _, err := os.Lstat(m + "/" + gone); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %s: %v", who, gone, err)
		}
	}
}

// TestKeptMetacopyIsFollowedByEveryReader: the kernel's overlayfs above it as a lower layer and as its own upper, and ours.
func TestKeptMetacopyIsFollowedByEveryReader(t *testing.T) {
	dir := t.TempDir()
	p := startServer(t, dir)
	a, want := keptUpper(t, p, dir)
	for _, name := range []string{"mode", "name", "linked", "e/link", "e/moved/in", "hard1", "e/hard2", "old/dir/g"} {
		var st unix.Stat_t
		buf := make([]byte, 16)
		n, err := unix.Lgetxattr(a.Upper+"/"+name, "trusted.overlay.metacopy", buf)
		if err != nil || n != 0 {
			t.Errorf("%s: metacopy %q, %v", name, buf[:max(n, 0)], err)
		}
		if err := unix.Lstat(a.Upper+"/"+name, &st); err != nil || st.Blocks*512 > 8192 {
			t.Errorf("%s: %d blocks, %v", name, st.Blocks, err)
		}
	}
	if _, err := unix.Lgetxattr(a.Upper+"/partial", "trusted.overlay.metacopy", nil); !errors.Is(err, unix.ENODATA) {
		t.Errorf("the partial file is marked: %v", err)
	}
	kernel := func(who, options string) {
		t.Helper()
		if err := unix.Mount("overlay", a.MountPoint, "overlay", 0, options+",metacopy=on,redirect_dir=on"); err != nil {
			t.Fatalf("%s: %v", who, err)
		}
		checkReader(t, who, a.MountPoint, want)
		if err := unix.Unmount(a.MountPoint, 0); err != nil {
			t.Fatal(err)
		}
	}
	kernel("the kernel, as a lower", "lowerdir="+a.Upper+":"+a.Lower[0])
	child := Spec{ID: "child", MountPoint: a.MountPoint, Lower: append([]string{a.Upper}, a.Lower...), Upper: dir + "/cu", Work: dir + "/cw"}
	if err := errors.Join(os.Mkdir(child.Upper, 0o755), os.Mkdir(child.Work, 0o755)); err != nil {
		t.Fatal(err)
	}
	view := child
	view.ID, view.Upper, view.Work = "view", "", ""
	for _, s := range []Spec{view, child} {
		if err := p.client.Mount(testContext(t), s); err != nil {
			t.Fatal(err)
		}
		checkReader(t, "ours, "+s.ID, a.MountPoint, want)
		if s.ID == "child" { // metacopy on metacopy, and a move of one that has a redirect
			if err := errors.Join(os.Chmod(a.MountPoint+"/mode", 0o600), os.Chown(a.MountPoint+"/e/moved/in", 5, 6),
				os.Rename(a.MountPoint+"/name", a.MountPoint+"/again"), os.Rename(a.MountPoint+"/again", a.MountPoint+"/name")); err != nil {
				t.Fatal(err)
			}
			st, err := p.client.FlushKeepingMetacopy(testContext(t), s)
			if err != nil || st.Kept != 3 || st.Completed != 0 {
				t.Errorf("%+v, %v", st, err)
			}
			checkReader(t, "ours, grandchild", a.MountPoint, want)
		}
		if err := p.client.Unmount(testContext(t), s.ID, false); err != nil {
			t.Fatal(err)
		}
	}
	kernel("the kernel, two layers of them", "lowerdir="+child.Upper+":"+a.Upper+":"+a.Lower[0])
	kernel("the kernel, as its upper", "lowerdir="+a.Lower[0]+",upperdir="+a.Upper+",workdir="+a.Work)
}

// TestFlushCanBeWatchedAndCancelled: Inspect answers while it runs; when the client goes, it ends, and the next one goes on.
func TestFlushCanBeWatchedAndCancelled(t *testing.T) {
	dir := t.TempDir()
	p := startServer(t, dir)
	a := testSpec(t, dir, "a")
	const size = 256 << 20
	data := bytes.Repeat([]byte("0123456789abcdef"), size/16)
	if err := os.WriteFile(a.Lower[0]+"/big", data, 0o644); err != nil {
		t.Fatal(err)
	}
	mustMount(t, p, a)
	if err := os.Chmod(a.MountPoint+"/big", 0o600); err != nil {
		t.Fatal(err)
	}
	for _, mounted := range []bool{true, false} {
		if !mounted {
			if err := p.client.Unmount(testContext(t), "a", false); err != nil {
				t.Fatal(err)
			}
		}
		flushing, cancel := context.WithCancel(testContext(t))
		ended := make(chan error, 1)
		go func() {
			_, err := p.client.Flush(flushing, a)
			ended <- err
		}()
		var last Inspection
		for last.Flush == nil || last.Flush.Bytes < 1<<20 {
			all, err := p.client.Inspect(testContext(t), "a")
			if err != nil && !errors.Is(err, ErrNotFound) { // not mounted, not flushed yet
				t.Fatal(err)
			}
			if len(all) == 1 {
				last = all[0]
			}
			time.Sleep(time.Millisecond)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Fatalf("cancelled flush: %v", err)
		}
		if f := last.Flush; f.FilesTotal != 1 || f.Files != 0 || f.BytesTotal > size || f.Bytes >= size || f.Phase == "" {
			t.Errorf("progress: %+v", f)
		}
		if want := map[bool]State{true: Mounted, false: Unmounted}[mounted]; last.State != want || (last.FS != nil) != mounted {
			t.Errorf("%+v, want %s", last, want)
		}
	}
	s, err := p.client.Flush(testContext(t), a)
	if err != nil || s.Completed != 1 || s.Bytes >= size {
		t.Errorf("%+v, %v, want less than the whole file", s, err)
	}
	if got, err := os.ReadFile(a.Upper + "/big"); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestInspectOfManyMounts(t *testing.T) {
	dir := t.TempDir()
	p := startServer(t, dir)
	ctx := testContext(t)
	if all, err := p.client.Inspect(ctx); err != nil || len(all) != 0 {
		t.Errorf("of none: %v, %v", all, err)
	}
	a, b := testSpec(t, dir, "a"), testSpec(t, dir, "b")
	mustMount(t, p, b)
	mustMount(t, p, a)
	if err := os.Chmod(b.MountPoint+"/lower", 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(a.MountPoint+"/lower", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	all, err := p.client.Inspect(ctx)
	if err != nil || len(all) != 2 || all[0].ID != "a" || all[1].ID != "b" {
		t.Fatalf("%+v, %v", all, err)
	}
	opened := 1
	if all[0].FS.IO == overlayfuse.IOWriteback.String() {
		opened = 0 // the kernel does not say
	}
	if i := all[0].FS; i.Handles != opened || int(i.Counters.Deferred) != opened || i.Metacopy != 0 {
		t.Errorf("a: %+v", i)
	}
	if i := all[1].FS; i.Handles != 0 || i.Counters.Avoided != 1 || i.Counters.NotCopied != 6 || i.Metacopy != 1 {
		t.Errorf("b: %+v", i)
	}
	if one, err := p.client.Inspect(ctx, "b"); err != nil || len(one) != 1 || one[0].ID != "b" || one[0].State != Mounted || one[0].Flush != nil {
		t.Errorf("one: %+v, %v", one, err)
	}
	_, err = p.client.Inspect(ctx, "b", "c")
	wantError(t, err, ErrNotFound, "mount c: no such mount")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// dirtyPages is how many pages of a file wait to be written to the disk.
func dirtyPages(t *testing.T, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }() // it was read
	var c unix.Cachestat_t
	if err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &c, 0); err != nil {
		t.Fatal(err)
	}
	return c.Dirty
}

// TestOthersAreLeftAlone: an fsync is of one file, and a flush of one upper. What is pending elsewhere stays so.
//
// The kernel writes back what it likes when others have made enough dirty, or somebody calls sync(2). A file beside the mounts, as old and
// as dirty as theirs, tells: an attempt in which it was written back as well says nothing.
func TestOthersAreLeftAlone(t *testing.T) {
	const attempts, enough = 20, 3
	unasked := 0
	dir := t.TempDir()
	p := startServer(t, dir)
	for try := range attempts {
		beside := filepath.Join(dir, fmt.Sprint("beside", try))
		cleaned := othersAreLeftAlone(t, p, dir, beside, fmt.Sprint(try))
		if cleaned == "" {
			return
		}
		t.Logf("attempt %d: %s", try, cleaned)
		if dirtyPages(t, beside) > 0 { // once may be the kernel on its way through the inodes
			if unasked++; unasked == enough {
				t.Fatal("a file beside the mounts was left dirty")
			}
		}
	}
	t.Error("somebody wrote everything back in each attempt")
}

// othersAreLeftAlone tells what was written back of which nobody asked it. The file beside is written first: it is written back before the
// others if all are.
func othersAreLeftAlone(t *testing.T, p *process, dir, beside, try string) (cleaned string) {
	t.Helper()
	if err := os.WriteFile(beside, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	const size, wrote = 2 << 20, 1 << 20
	var specs []Spec
	for _, id := range []string{"a" + try, "b" + try} {
		s := testSpec(t, dir, id)
		s.Options = append(s.Options, "drop_after=0") // nothing is written back for that
		for _, name := range []string{"one", "two"} {
			if err := os.WriteFile(s.Lower[0]+"/"+name, make([]byte, size), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		mustMount(t, p, s)
		specs = append(specs, s)
	}
	for _, s := range specs {
		for _, name := range []string{"one", "two"} {
			f, err := os.OpenFile(s.MountPoint+"/"+name, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, err = f.Write(bytes.Repeat([]byte(s.ID[:1]), wrote))
			if err = errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	a, b := specs[0], specs[1]
	check := func(when, path string, pending bool) {
		t.Helper()
		_, err := unix.Lgetxattr(path, "trusted.overlay.metacopy", nil)
		if pending != (err == nil) {
			t.Errorf("%s: %s: mark %v, want pending: %v", when, path, err, pending)
		}
		switch dirty := dirtyPages(t, path); {
		case !pending && dirty > 0:
			t.Errorf("%s: %s: %d dirty pages", when, path, dirty)
		case pending && dirty == 0 && cleaned == "":
			cleaned = when + ": " + path + " was written back"
		}
	}
	for _, s := range specs {
		check("written", s.Upper+"/one", true)
		check("written", s.Upper+"/two", true)
	}
	f, err := os.OpenFile(a.MountPoint+"/one", os.O_RDWR, 0)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if n := dirtyPages(t, a.Upper+"/one"); n != 0 {
		t.Errorf("%d dirty pages of a file that was synced", n)
	}
	for _, path := range []string{a.Upper + "/two", b.Upper + "/one", b.Upper + "/two"} {
		check("another file was synced", path, true)
	}
	if s, err := p.client.Flush(testContext(t), a); err != nil || s.Completed != 2 {
		t.Fatalf("%+v, %v, want two files completed", s, err)
	}
	for _, name := range []string{"/one", "/two"} {
		check("flushed", a.Upper+name, false)
		check("another upper was flushed", b.Upper+name, true)
	}
	return cleaned
}
