package control

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
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

// inode is the inode number of what path names.
func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
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

// syncCall is a line of strace of a call that writes back, and what it names if it names a descriptor.
var syncCall = regexp.MustCompile(`\b(fsync|fdatasync|syncfs|sync|sync_file_range|msync)\((?:\d+<([^>]*)>)?`)

// traceSyncs follows the process with strace(1), and returns what it has had written back since that was last asked: paths, each once,
// sorted; the call's name if it names none. The kernel writes back what it likes when it likes, so that pages which are clean say nothing
// of who asked for it.
func traceSyncs(t *testing.T, p *process, dir string) (synced func() []string) {
	t.Helper()
	out := filepath.Join(dir, "trace")
	cmd := exec.Command("strace", "-f", "-y", "-o", out, "-p", strconv.Itoa(p.Process.Pid),
		"-e", "trace=fsync,fdatasync,syncfs,sync,sync_file_range,msync")
	stderr, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM) // it lets go of the process; gone if that has ended
		_ = cmd.Wait()                       // by a signal
	})
	if line, err := bufio.NewReader(stderr).ReadString('\n'); err != nil || !strings.Contains(line, "attached") {
		t.Fatalf("strace: %q, %v", line, err)
	}
	seen := 0
	return func() (paths []string) {
		t.Helper()
		text, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		for _, call := range syncCall.FindAllSubmatch(text[seen:], -1) {
			paths = append(paths, cmp.Or(string(call[2]), string(call[1])))
		}
		seen = len(text)
		slices.Sort(paths)
		return slices.Compact(paths)
	}
}

// TestOthersAreLeftAlone: an fsync is of one file, and a flush of one upper. What is pending elsewhere stays so.
func TestOthersAreLeftAlone(t *testing.T) {
	dir := t.TempDir()
	p := startServer(t, dir)
	const size, wrote = 2 << 20, 1 << 20
	var specs []Spec
	for _, id := range []string{"a", "b"} {
		s := testSpec(t, dir, id)
		s.Options = append(s.Options, "drop_after=0") // nothing is written back for that
		if err := os.Mkdir(s.Lower[0]+"/of-"+id, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"one", "two"} {
			if err := os.WriteFile(s.Lower[0]+"/of-"+id+"/"+name, make([]byte, size), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		mustMount(t, p, s)
		specs = append(specs, s)
	}
	a, b := specs[0], specs[1]
	synced := traceSyncs(t, p, dir)
	for _, s := range specs {
		for _, name := range []string{"one", "two"} {
			f, err := os.OpenFile(s.MountPoint+"/of-"+s.ID+"/"+name, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, err = f.Write(bytes.Repeat([]byte(s.ID), wrote))
			if err = errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	aOne, aTwo := a.Upper+"/of-a/one", a.Upper+"/of-a/two"
	ofB := []string{b.Upper + "/of-b/one", b.Upper + "/of-b/two"}
	check := func(when string, pending, done, want []string) {
		t.Helper()
		got := synced()
		for _, path := range append(slices.Clone(pending), done...) {
			_, err := unix.Lgetxattr(path, "trusted.overlay.metacopy", nil)
			if slices.Contains(pending, path) != (err == nil) {
				t.Errorf("%s: %s: mark %v", when, path, err)
			}
		}
		for _, path := range done {
			if n := dirtyPages(t, path); n > 0 {
				t.Errorf("%s: %s: %d dirty pages", when, path, n)
			}
		}
		for i, path := range got {
			for _, file := range []string{aOne, aTwo} { // an O_TMPFILE keeps its name, which is its inode's, while it is in use
				if strings.HasSuffix(path, fmt.Sprint("/#", inode(t, file))) {
					got[i] = file
				}
			}
			got[i] = strings.TrimPrefix(got[i], filepath.Dir(a.Upper)) // the server's clones of the layers begin at /
		}
		slices.Sort(got)
		if got = slices.Compact(got); !slices.Equal(got, want) {
			t.Errorf("%s: %q was written back, want %q", when, got, want)
		}
	}
	check("written", append(ofB, aOne, aTwo), nil, nil)
	f, err := os.OpenFile(a.MountPoint+"/of-a/one", os.O_RDWR, 0)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	check("synced", append(ofB, aTwo), nil, []string{"/u/of-a/one"})
	if n := dirtyPages(t, aOne); n != 0 {
		t.Errorf("%d dirty pages of a file that was synced", n)
	}
	if s, err := p.client.Flush(testContext(t), a); err != nil || s.Completed != 2 {
		t.Fatalf("%+v, %v, want two files completed", s, err)
	}
	check("flushed", ofB, []string{aOne, aTwo}, []string{"/m", "/u", "/u/of-a", "/u/of-a/one", "/u/of-a/two"})
}
