package overlayfuse_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// thinDisk is an ext4 in an image on a file system that has no room for all of it: writes succeed, and are lost when they are written back.
type thinDisk struct {
	t          *testing.T
	host, disk string
}

func newThinDisk(t *testing.T, dir string) *thinDisk {
	t.Helper()
	d := &thinDisk{t, filepath.Join(dir, "host"), filepath.Join(dir, "disk")}
	for _, p := range []string{d.host, d.disk} {
		if err := os.Mkdir(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	image := d.host + "/image"
	for _, words := range [][]string{
		{"mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", d.host}, {"truncate", "-s", "64M", image},
		{"mkfs.ext4", "-q", "-b", "4096", "-O", "^has_journal", "-E", "lazy_itable_init=0", image}, {"mount", "-o", "loop", image, d.disk},
	} {
		runTool(t, words[0], words[1:]...)
		if words[0] == "mount" {
			at := words[len(words)-1]
			t.Cleanup(func() {
				if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
					t.Errorf("unmount %s: %v", at, err)
				}
			})
		}
	}
	return d
}

// exhaust takes the room on the host.
func (d *thinDisk) exhaust() {
	syncTree(d.t, d.disk)
	fill(d.t, d.host)
}

func (d *thinDisk) relieve() { unfill(d.t, d.host) }

// TestLostWritesAreTold: what was written and closed and then lost on the way to the disk, with nobody waiting, is told to who opens the file
// and syncs it next, once; or, if nobody does, to the flush, once, also after an unmount.
func TestLostWritesAreTold(t *testing.T) {
	s, err := newPlainScript(t, "overlayfuse", "lost-writes")
	if err != nil {
		t.Fatal(err)
	}
	d := newThinDisk(t, s.dir)
	do := func(words ...string) string { t.Helper(); return s.mustDo(t, words...) }
	must := func(want string, words ...string) {
		t.Helper()
		if got := do(words...); got != want {
			t.Errorf("%v: got %q, want %q", words, got, want)
		}
	}
	for _, name := range []string{"disk/u", "disk/w"} {
		must("", "mkdir", name)
	}
	must("", "put", "l1/big", "")
	must("", "open", "a", "l1/big", "rw")
	do("fill", "a", "0", "8000000", "a")
	must("", "close", "a")
	m, err := s.parseMount([]string{"-u", "disk/u", "-w", "disk/w", "-o", "drop_after=1s"})
	if err == nil {
		err = s.mount(m)
	}
	if err != nil {
		t.Fatal(err)
	}
	// The upper exists, with all that it needs but the data.
	must("", "open", "w", "m/big", "rw")
	do("fill", "w", "0", "4096", "b")
	must("", "fsync", "w")
	must("", "close", "w")
	lost := filepath.Join(s.dir, "disk/w/lost")
	lose := func() {
		t.Helper()
		must("", "open", "w", "m/big", "rw")
		do("fill", "w", "1000000", "6000000", "c")
		must("", "close", "w")
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			if _, err := os.Stat(lost); err == nil {
				return
			}
			if time.Now().After(end) {
				t.Fatal("nobody has found out that the writes were lost")
			}
		}
	}
	d.exhaust()
	lose()
	must("", "open", "w", "m/big", "rw")
	if got := do("fsync", "w"); got != "ENOSPC" && got != "EIO" {
		t.Errorf("who opened the file after the loss syncs: %q", got)
	}
	must("", "open", "v", "m/big", "rw")
	must("", "fsync", "v")
	must("", "fsync", "w")
	must("", "close", "v")
	must("", "close", "w")
	if _, err := os.Stat(lost); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is kept although somebody was told: %v", err)
	}
	// Two that have it open: both are told. Where the kernel opens without asking, nobody knows how many there are.
	second := "ENOSPC"
	if ioMode() == "writeback" {
		second = ""
	}
	must("", "open", "w", "m/big", "rw")
	must("", "open", "v", "m/big", "rw")
	do("fill", "w", "1000000", "6000000", "d")
	first := do("fsync", "w")
	if first != "ENOSPC" && first != "EIO" {
		t.Errorf("the writer syncs: %q", first)
	}
	if second != "" {
		second = first
	}
	must(second, "fsync", "v")
	must("", "fsync", "w")
	must("", "fsync", "v")
	must("", "close", "v")
	must("", "close", "w")
	lose()
	if m, err = s.umount("m"); err != nil {
		t.Fatal(err)
	}
	d.relieve()
	out, err := exec.Command(serverBinary(), "fsck", "-n", "-o", s.optionsOf(m)).CombinedOutput()
	if !strings.Contains(string(out), "writes were lost") {
		t.Errorf("fsck: %v: %s", err, out)
	}
	if out, err := s.flush(m); err == nil || !strings.Contains(out, `writes were lost`) || !strings.Contains(out, `"/big"`) {
		t.Errorf("the flush: %v: %s", err, out)
	}
	if out, err := s.flush(m); err != nil {
		t.Errorf("the flush once more: %v: %s", err, out)
	}
}

// TestLostStoresAreTold: a store into a mapping that the upper had no room for is told to who syncs the file, once; or, if nobody does, to the
// flush, once, also after an unmount. What was emptied or removed is no loss.
func TestLostStoresAreTold(t *testing.T) {
	s, err := newPlainScript(t, "overlayfuse", "lost-stores")
	if err != nil {
		t.Fatal(err)
	}
	small := s.onSmall(t, limits[0])
	must := func(want string, words ...string) {
		t.Helper()
		if got := s.mustDo(t, words...); got != want {
			t.Errorf("%v: got %q, want %q", words, got, want)
		}
	}
	names := []string{"asked", "emptied", "removed", "silent"}
	for _, name := range names {
		s.filled(t, "l1/"+name, 2_000_000)
	}
	s.mountOnSmall(t)
	for _, name := range names { // partial, and open
		must("", "open", name, "m/"+name, "rw")
		s.mustDo(t, "fill", name, "0", "4096", "b")
		must("", "fsync", name)
		must("", "mmap", name, name, "rw", "shared", "2000000")
	}
	fill(t, small)
	lost := func() bool {
		_, err := os.Stat(filepath.Join(small, "w/lost"))
		return err == nil
	}
	store := func(name string) {
		t.Helper()
		for at := 0; at < 2000000; at += 4096 { // more than the little space that may be left takes
			must("", "store", name, fmt.Sprint(at), "store")
		}
	}
	for name, settle := range map[string]func(){
		"asked":   func() { must("", "fsync", "asked") }, // for msync(2) has told
		"emptied": func() { must("", "truncate", "m/emptied", "0") },
		"removed": func() { must("", "unlink", "m/removed") },
	} {
		store(name)
		must("ENOSPC", "msync", name)
		if !lost() {
			t.Errorf("%s: the loss is not kept", name)
		}
		settle()
		if lost() {
			t.Errorf("%s: the loss is kept although nobody will miss anything", name)
		}
	}
	must("", "close", "silent")
	store("silent")
	must("", "munmap", "silent")
	m, err := s.umount("m")
	if err != nil {
		t.Fatal(err)
	}
	if !lost() {
		t.Error("nobody was told, and the loss is not kept")
	}
	unfill(t, small)
	for _, want := range []string{"writes were lost", ""} {
		if out, err := s.flush(m); (err != nil) != (want != "") || !strings.Contains(out, want) {
			t.Errorf("flush: %v: %s, want %q", err, out, want)
		}
	}
}
