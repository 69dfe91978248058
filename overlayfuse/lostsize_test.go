package overlayfuse_test

import (
	"path/filepath"
	"testing"
)

// TestUpperThatLostItsSize: a file of the upper whose data is in the lower and whose size is 0. On btrfs a crash leaves that, unless the file
// says that it was truncated; elsewhere it is only ever meant. The kernel's overlayfs shows size 0.
func TestUpperThatLostItsSize(t *testing.T) {
	for _, c := range []struct {
		fs    string
		mkfs  []string
		lost  string // what a file shows that has lost its size
		added string // and after "more" was written to its end
	}{
		{"ext4", []string{"mkfs.ext4", "-q"}, "", "more"},
		{"btrfs", []string{"mkfs.btrfs", "-q", "--mixed"}, "data", "datamore"},
	} {
		t.Run(c.fs, func(t *testing.T) {
			s, err := newPlainScript(t, "overlayfuse", "lost-"+c.fs)
			if err != nil {
				t.Fatal(err)
			}
			do := func(want string, words ...string) {
				t.Helper()
				r, err := s.do("", words)
				if got := r.Out + r.Errno + r.Bad; err != nil || got != want {
					t.Errorf("%v: got %q, want %q (%v)", words, got, want, err)
				}
			}
			mountSmall(t, filepath.Join(s.dir, "small"), limited{mkfs: c.mkfs, mib: 64})
			for _, d := range []string{"u", "w"} {
				do("", "mkdir", "small/"+d)
			}
			for name, mark := range map[string]string{"metacopy": "", "partial": "p", "emptied": "p0"} {
				do("", "put", "l1/"+name, "data")
				do("", "put", "small/u/"+name, "")
				do("", "setxattr", "small/u/"+name, "trusted.overlay.metacopy", mark)
			}
			// A truncation that was killed before it began.
			do("", "put", "l1/before", "data")
			do("", "put", "small/u/before", "")
			do("", "truncate", "small/u/before", "4")
			do("", "setxattr", "small/u/before", "trusted.overlay.metacopy", "p0")
			// One that was, over several blocks: of the lower, nothing shows again when it grows.
			do("", "put", "l1/grown", "")
			do("", "open", "a", "l1/grown", "rw")
			do("", "fill", "a", "0", "20000", "d")
			do("", "close", "a")
			do("", "put", "small/u/grown", "")
			do("", "setxattr", "small/u/grown", "trusted.overlay.metacopy", "p0")
			m, err := s.parseMount([]string{"-u", "small/u", "-w", "small/w"})
			if err == nil {
				err = s.mount(m)
			}
			if err != nil {
				t.Fatal(err)
			}
			do(c.lost, "cat", "m/metacopy")
			do(c.lost, "cat", "m/partial")
			do("", "cat", "m/emptied")
			do("data", "cat", "m/before")
			do("p", "getxattr", "small/u/before", "trusted.overlay.metacopy")
			for _, name := range []string{"metacopy", "partial", "emptied", "before"} {
				do("", "append", "m/"+name, "more")
			}
			do("", "truncate", "m/grown", "16000")
			do("", "append", "m/grown", "more")
			for range 2 { // then as the next mount finds them
				do(c.added, "cat", "m/metacopy")
				do(c.added, "cat", "m/partial")
				do("more", "cat", "m/emptied")
				do(".16000 m1 o1 r1 e1", "runs", "m/grown")
				do("datamore", "cat", "m/before")
				if _, err := s.umount("m"); err != nil {
					t.Fatal(err)
				}
				if err := s.mount(m); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := s.umount("m"); err != nil {
				t.Fatal(err)
			}
		})
	}
}
