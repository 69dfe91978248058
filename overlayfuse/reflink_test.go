package overlayfuse_test

import (
	"os"
	"os/exec"
	"path/filepath"
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
			do := func(words ...string) string { t.Helper(); return s.mustDo(t, words...) }
			for _, d := range []string{"l", "u", "w"} {
				do("mkdir", "disk/"+d)
			}
			for _, name := range []string{"clean", "dirty"} {
				do("open", "a", "disk/l/"+name, "rw,creat")
				do("fill", "a", "0", "4000000", "a")
				if name == "clean" {
					do("fsync", "a")
				}
				do("close", "a")
			}
			m, err := s.parseMount([]string{"-l", "disk/l", "-u", "disk/u", "-w", "disk/w"})
			if err == nil {
				err = s.mount(m)
			}
			if err != nil {
				t.Fatal(err)
			}
			for name, shared := range map[string]bool{"clean": true, "dirty": false} {
				do("open", "a", "m/"+name, "rw")
				do("pwrite", "a", "1000000", "bbbb")
				do("fsync", "a")
				do("close", "a")
				if got, want := do("runs", "m/"+name), "a1000000 b4 a2999996"; got != want {
					t.Errorf("%s is %s, want %s", name, got, want)
				}
				out, err := exec.Command("filefrag", "-v", filepath.Join(disk, "u", name)).CombinedOutput()
				if err != nil {
					t.Fatalf("filefrag: %v: %s", err, out)
				}
				if got := strings.Contains(string(out), "shared"); got != shared {
					t.Errorf("%s: blocks are shared: %t, want %t: %s", name, got, shared, out)
				}
			}
			if _, err := s.umount("m"); err != nil {
				t.Fatal(err)
			}
		})
	}
}
