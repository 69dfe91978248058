package overlayfuse_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// limited is an upper's file system that runs out of something.
type limited struct {
	name    string
	mkfs    []string // nil: a tmpfs
	mib     int      // its size
	errno   string
	exhaust func(t *testing.T, dir string)
	relieve func(t *testing.T, dir string)
}

var limits = []limited{
	{"ext4", []string{"mkfs.ext4", "-q", "-m", "0"}, 12, "ENOSPC", fill, unfill},
	{"xfs", []string{"mkfs.xfs", "-q"}, 300, "ENOSPC", fill, unfill},
	{"btrfs", []string{"mkfs.btrfs", "-q", "--mixed"}, 64, "ENOSPC", fill, unfill},
	{"tmpfs", nil, 12, "ENOSPC", fill, unfill},
	// Of a subvolume. A limit of users does not hold for who has CAP_SYS_RESOURCE, as the server has, and who mounts the kernel's overlayfs.
	{"quota", []string{"mkfs.btrfs", "-q"}, 300, "EDQUOT",
		func(t *testing.T, dir string) {
			runTool(t, "btrfs", "quota", "enable", dir)
			runTool(t, "btrfs", "qgroup", "limit", "16K", dir) // more is used
		},
		func(t *testing.T, dir string) { runTool(t, "btrfs", "quota", "disable", dir) }}, // to lift the limit would be over it
}

// onSmall makes directories for an upper and a workdir on a file system of its own, which it gives.
func (s *script) onSmall(t *testing.T, l limited) (small string) {
	t.Helper()
	small = filepath.Join(s.dir, "small")
	mountSmall(t, small, l)
	for _, d := range []string{"small/u", "small/w"} {
		if got := s.mustDo(t, "mkdir", d); got != "" {
			t.Fatalf("mkdir %s: %s", d, got)
		}
	}
	return small
}

// mountOnSmall mounts with those directories.
func (s *script) mountOnSmall(t *testing.T) mountSpec {
	t.Helper()
	m, err := s.parseMount([]string{"-u", "small/u", "-w", "small/w"})
	if err == nil {
		err = s.mount(m)
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// filled makes a file of so many times the letter a.
func (s *script) filled(t *testing.T, name string, n int) {
	t.Helper()
	for _, words := range [][]string{
		{"put", name, ""}, {"open", "a", name, "rw"}, {"fill", "a", "0", fmt.Sprint(n), "a"}, {"close", "a"},
	} {
		if r, err := s.do("", words); err != nil || r.Bad != "" || r.Errno != "" {
			t.Fatalf("%v: %v %s %s", words, err, r.Bad, r.Errno)
		}
	}
}

// TestFullDisk: on an upper without space, or with a quota that is used up, a first write, an append and a write into a
// file that is partial already answer ENOSPC or EDQUOT, what the files showed before stays readable, the lower does not change, and the
// same writes succeed once there is space, also after a new mount.
func TestFullDisk(t *testing.T) {
	for _, l := range limits {
		if l.errno == "EDQUOT" && ioMode() == "writeback" {
			continue // the page cache has EIO for it (mapping_set_error()), and with such a quota no time can be put back
		}
		t.Run(l.name, func(t *testing.T) {
			s, err := newPlainScript(t, "overlayfuse", "full-"+l.name)
			if err != nil {
				t.Fatal(err)
			}
			small := s.onSmall(t, l)
			do := func(want string, words ...string) {
				t.Helper()
				if got := s.mustDo(t, words...); want != "*" && got != want {
					t.Errorf("%v: got %q, want %q", words, got, want)
				}
			}
			s.filled(t, "l1/big", 4_000_000)
			for i := range 3 {
				do("", "put", fmt.Sprintf("l1/f%d", i), strings.Repeat("x", 6000))
			}
			m := s.mountOnSmall(t)
			// One file is partial before the disk is full.
			do("", "open", "w", "m/big", "rw")
			do("*", "fill", "w", "1000000", "10", "b")
			do("", "fsync", "w")
			l.exhaust(t, small)
			small0 := "x6000"
			if ioMode() == "writeback" {
				// The data is taken; fsync tells, or close. It is there until the kernel forgets it.
				small0 = "x6000 m1 o1 r1 e1"
				do("", "fill", "w", "2000000", "500000", "c")
				do(l.errno, "fsync", "w")
				do("a1000000 b10 a999990 c500000 a1500000", "runs", "m/big")
			} else {
				do(l.errno, "fill", "w", "2000000", "500000", "c")
				do("a1000000 b10 a2999990", "runs", "m/big")
			}
			do(l.errno, "append", "m/f0", "more")
			do(small0, "runs", "m/f0")
			l.relieve(t, small)
			do("*", "fill", "w", "2000000", "500000", "c")
			do("", "close", "w")
			do("", "append", "m/f0", "yyyy")
			do("a1000000 b10 a999990 c500000 a1500000", "runs", "m/big")
			do(small0+" y4", "runs", "m/f0")
			if _, err := s.umount("m"); err != nil {
				t.Fatal(err)
			}
			if err := s.mount(m); err != nil {
				t.Fatal(err)
			}
			do("a1000000 b10 a999990 c500000 a1500000", "runs", "m/big")
			do(small0+" y4", "runs", "m/f0")
			if _, err := s.umount("m"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestLittleSpace: a write, a copy-up of a small file and a flush that find space for a part of what they need leave nothing but what was
// there and what was written: no zeros, also for who reads the files at the next mount.
func TestLittleSpace(t *testing.T) {
	for _, l := range []limited{
		{"ext4", []string{"mkfs.ext4", "-q", "-m", "0"}, 24, "ENOSPC", fill, unfill},
		{"ext4_1k", []string{"mkfs.ext4", "-q", "-m", "0", "-b", "1024"}, 24, "ENOSPC", fill, unfill},
		{"xfs", []string{"mkfs.xfs", "-q"}, 300, "ENOSPC", fill, unfill},
		{"btrfs", []string{"mkfs.btrfs", "-q", "--mixed"}, 64, "ENOSPC", fill, unfill},
	} {
		for _, kib := range []int{8, 24, 44} {
			t.Run(fmt.Sprintf("%s/%d", l.name, kib), func(t *testing.T) { littleSpace(t, l, kib) })
		}
	}
}

// littleSpace leaves so many KiB.
func littleSpace(t *testing.T, l limited, kib int) {
	s, err := newPlainScript(t, "overlayfuse", fmt.Sprintf("little-%s-%d", l.name, kib))
	if err != nil {
		t.Fatal(err)
	}
	do := func(words ...string) string { t.Helper(); return s.mustDo(t, words...) }
	small := s.onSmall(t, l)
	content := func(name string, n int, letter string) {
		do("put", "l1/"+name, "")
		do("open", "a", "l1/"+name, "rw")
		do("fill", "a", "0", fmt.Sprint(n), letter)
		do("close", "a")
	}
	content("big", 4_000_000, "a")
	content("little", 100_000, "a")
	content("mode", 400_000, "a")
	s.mountOnSmall(t)
	do("open", "w", "m/big", "rw")
	do("fill", "w", "1000000", "10", "b")
	do("fsync", "w")
	do("chmod", "m/mode", "600")
	spare := filepath.Join(small, "spare")
	if err := errors.Join(os.WriteFile(spare, make([]byte, kib<<10), 0o600), syncFile(spare)); err != nil {
		t.Fatal(err)
	}
	l.exhaust(t, small)
	if err := os.Remove(spare); err != nil {
		t.Fatal(err)
	}
	syncTree(t, small)
	for range 3 { // the first one finds the space
		do("fill", "w", "2000000", "500000", "c")
		do("fsync", "w")
	}
	do("append", "m/little", "bbbbbbbbbb")
	do("close", "w")
	names := map[string]*regexp.Regexp{
		"big":    regexp.MustCompile(`^a1000000 b10 a\d+( [ac]\d+)*$`),
		"little": regexp.MustCompile(`^a100000( b\d+)?$`),
		"mode":   regexp.MustCompile(`^a400000$`),
	}
	look := func(when string) {
		t.Helper()
		for name, want := range names {
			if got := do("runs", "m/"+name); !want.MatchString(got) {
				t.Errorf("%s: %s is %s", when, name, got)
			}
		}
	}
	if ioMode() != "writeback" { // the page cache has what could not be written, until the kernel forgets it
		look("at once")
	}
	m, err := s.umount("m")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := s.flush(m); err == nil || !strings.Contains(out, "no space left") {
		t.Errorf("a flush on the full disk: %v: %s", err, out)
	}
	l.relieve(t, small)
	if out, err := s.flush(m); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if err := s.mount(m); err != nil {
		t.Fatal(err)
	}
	look("flushed")
	if _, err := s.umount("m"); err != nil {
		t.Fatal(err)
	}
}

// TestMountWithoutRoom: a full disk, or a quota that is used up, keeps no upper from being mounted again. What it has is read, writes are
// refused, and once there is room they are not, without another mount.
func TestMountWithoutRoom(t *testing.T) {
	for _, l := range limits {
		if l.mkfs == nil {
			continue // whether a tmpfs has huge pages, and so can carry a partial file, has to be tried
		}
		t.Run(l.name, func(t *testing.T) {
			s, err := newPlainScript(t, "overlayfuse", "no-room-"+l.name)
			if err != nil {
				t.Fatal(err)
			}
			small := s.onSmall(t, l)
			do := func(words ...string) string { t.Helper(); return s.mustDo(t, words...) }
			s.filled(t, "l1/part", 4_000_000)
			s.mountOnSmall(t)
			do("open", "w", "m/part", "rw")
			do("fill", "w", "1000000", "10", "b")
			do("fsync", "w")
			do("close", "w")
			m, err := s.umount("m")
			if err != nil {
				t.Fatal(err)
			}
			l.exhaust(t, small)
			if err := s.mount(m); err != nil {
				t.Fatal(err)
			}
			must := func(want string, words ...string) {
				t.Helper()
				if got := do(words...); got != want {
					t.Errorf("%v: got %q, want %q", words, got, want)
				}
			}
			must("a1000000 b10 a2999990", "runs", "m/part")
			do("open", "w", "m/part", "rw")
			do("fill", "w", "2000000", "500000", "c")
			if got := do("fsync", "w"); got != "" && (ioMode() != "writeback" || got != l.errno && got != "EIO") {
				t.Errorf("fsync: %s", got)
			}
			do("close", "w")
			l.relieve(t, small)
			must("", "open", "w", "m/part", "rw")
			do("fill", "w", "2000000", "500000", "c")
			must("", "fsync", "w")
			must("", "close", "w")
			must("a1000000 b10 a999990 c500000 a1500000", "runs", "m/part")
			if _, err := s.umount("m"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestFlushOverQuota: a flush that the quota stops names it, changes nothing that shows, and goes on once there is room.
func TestFlushOverQuota(t *testing.T) {
	l := limits[slices.IndexFunc(limits, func(l limited) bool { return l.errno == "EDQUOT" })]
	s, err := newPlainScript(t, "overlayfuse", "flush-quota")
	if err != nil {
		t.Fatal(err)
	}
	small := s.onSmall(t, l)
	do := func(words ...string) string { t.Helper(); return s.mustDo(t, words...) }
	for _, name := range []string{"part", "mode"} {
		s.filled(t, "l1/"+name, 4_000_000)
	}
	m, err := s.parseMount([]string{"-u", "small/u", "-w", "small/w"})
	if err != nil {
		t.Fatal(err)
	}
	mounted := func(f func()) {
		t.Helper()
		if err := s.mount(m); err != nil {
			t.Fatal(err)
		}
		f()
		if m, err = s.umount("m"); err != nil {
			t.Fatal(err)
		}
	}
	look := func() {
		t.Helper()
		for name, want := range map[string]string{"part": "a1000000 b10 a2999990", "mode": "a4000000"} {
			if got := do("runs", "m/"+name); got != want {
				t.Errorf("%s is %s, want %s", name, got, want)
			}
		}
	}
	mounted(func() {
		do("open", "w", "m/part", "rw")
		do("fill", "w", "1000000", "10", "b")
		do("fsync", "w")
		do("close", "w")
		do("chmod", "m/mode", "600")
	})
	l.exhaust(t, small)
	if out, err := s.flush(m); err == nil || !strings.Contains(out, "quota exceeded") {
		t.Errorf("over the quota: %v: %s", err, out)
	}
	mounted(look)
	l.relieve(t, small)
	if out, err := s.flush(m); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	mounted(look)
}

// mustDo gives what a request wrote, or the name of its error.
func (s *script) mustDo(t *testing.T, words ...string) string {
	t.Helper()
	r, err := s.do("", words)
	if err != nil || r.Bad != "" {
		t.Fatalf("%v: %v %s", words, err, r.Bad)
	}
	if r.Errno != "" {
		return r.Errno
	}
	return r.Out
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// syncTree is syncfs(2): what was removed is free.
func syncTree(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	if err == nil {
		err = errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// runTool runs a program of util-linux or of a file system, and gives what it wrote.
func runTool(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// mountSmall makes a new file system and mounts it.
func mountSmall(t *testing.T, at string, l limited) {
	t.Helper()
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if l.mkfs == nil {
		runTool(t, "mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%dm", l.mib), "tmpfs", at)
	} else {
		image := at + ".image"
		if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, int64(l.mib)<<20)); err != nil {
			t.Fatal(err)
		}
		runTool(t, l.mkfs[0], append(l.mkfs[1:], image)...)
		runTool(t, "mount", "-o", "loop", image, at)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", at, err)
		}
	})
}

// fill takes all the space that there is. What a file system had set aside for one file may be there for the next.
func fill(t *testing.T, dir string) {
	t.Helper()
	for i := range 20 {
		if !fillFile(t, filepath.Join(dir, fmt.Sprintf("filler%d", i))) {
			return
		}
	}
	t.Fatal("there is always space left")
}

// fillFile tells whether there was any.
func fillFile(t *testing.T, path string) (any bool) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	for n := 1 << 20; n >= 4096; n /= 2 {
		for {
			if _, err := f.Write(make([]byte, n)); err != nil {
				break
			}
			if err := f.Sync(); err != nil {
				break
			}
			any = true
		}
	}
	return any
}

// unfill gives it back.
func unfill(t *testing.T, dir string) {
	t.Helper()
	fillers, err := filepath.Glob(filepath.Join(dir, "filler*"))
	for _, f := range fillers {
		err = errors.Join(err, os.Remove(f))
	}
	if err != nil {
		t.Fatal(err)
	}
}
