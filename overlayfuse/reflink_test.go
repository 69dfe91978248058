package overlayfuse_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestReflinkOfAMount: the first write to a lower file on the upper's file system shares all other blocks with it, where that can be; if
// the lower is on the disk. One that is not yet is copied up in part, without the wait.
func TestReflinkOfAMount(t *testing.T) {
	for _, l := range limits {
		if l.name != "xfs" && l.name != "btrfs" {
			continue
		}
		t.Run(l.name, func(t *testing.T) {
			disk := filepath.Join(testDir(t, "reflink"), l.name) // which outlives the script, for its look at the lower
			mountSmall(t, disk, l)
			s, err := newPlainScript(t, "overlayfuse", "reflink-"+l.name)
			if err == nil {
				err = os.Symlink(disk, filepath.Join(s.dir, "disk"))
			}
			if err != nil {
				t.Fatal(err)
			}
			for try := range 8 {
				cloned := reflinkOfAMount(t, s, disk, fmt.Sprint(try))
				if len(cloned) == 1 && cloned[0] == "clean" {
					return
				}
				t.Logf("attempt %d: blocks are shared of %q", try, cloned)
				if !slices.Contains(cloned, "clean") {
					break
				}
			}
			t.Error("what is to be written back was not copied, or somebody wrote it back each time")
		})
	}
}

// reflinkOfAMount makes a mount of the folder name of the disk, and gives the files that were cloned by a write to them. The kernel, or
// somebody's sync(2), may write back what is dirty when it likes.
func reflinkOfAMount(t *testing.T, s *script, disk, name string) (cloned []string) {
	t.Helper()
	do := func(words ...string) string { t.Helper(); return s.mustDo(t, words...) }
	at := "disk/" + name
	for _, d := range []string{"", "/l", "/u", "/w"} {
		do("mkdir", at+d)
	}
	for _, file := range []string{"clean", "dirty"} {
		do("open", "a", at+"/l/"+file, "rw,creat")
		do("fill", "a", "0", "1000000", "a")
		if file == "clean" {
			do("fsync", "a")
		}
		do("close", "a")
	}
	m, err := s.parseMount([]string{"-l", at + "/l", "-u", at + "/u", "-w", at + "/w"})
	if err == nil {
		err = s.mount(m)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"dirty", "clean"} {
		do("open", "a", "m/"+file, "rw")
		do("pwrite", "a", "500000", "bbbb")
		do("fsync", "a")
		do("close", "a")
		if got, want := do("runs", "m/"+file), "a500000 b4 a499996"; got != want {
			t.Errorf("%s is %s, want %s", file, got, want)
		}
		out, err := exec.Command("filefrag", "-v", filepath.Join(disk, name, "u", file)).CombinedOutput()
		if err != nil {
			t.Fatalf("filefrag: %v: %s", err, out)
		}
		if strings.Contains(string(out), "shared") {
			cloned = append(cloned, file)
		}
	}
	if _, err := s.umount("m"); err != nil {
		t.Fatal(err)
	}
	return cloned
}
