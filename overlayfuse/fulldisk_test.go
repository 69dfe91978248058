package overlayfuse_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFullDisk: on an upper without space a first write, an append and a write into a file that is partial already answer
// ENOSPC, what the files showed before stays readable, the lower does not change, and the same writes succeed once there is
// space, also after a new mount. On ext4 and on tmpfs.
func TestFullDisk(t *testing.T) {
	for _, fs := range []struct {
		name string
		mkfs []string
	}{{"ext4", []string{"mkfs.ext4", "-q", "-m", "0"}}, {"tmpfs", nil}} {
		t.Run(fs.name, func(t *testing.T) {
			s, err := newPlainScript(t, "overlayfuse", "full-"+fs.name)
			if err != nil {
				t.Fatal(err)
			}
			small := filepath.Join(s.dir, "small")
			mountSmall(t, small, fs.mkfs)
			do := func(want string, words ...string) {
				t.Helper()
				r, err := s.do("", words)
				if err != nil || r.Bad != "" {
					t.Fatalf("%v: %v %s", words, err, r.Bad)
				}
				got := r.Out
				if r.Errno != "" {
					got = r.Errno
				}
				if want != "*" && got != want {
					t.Errorf("%v: got %q, want %q", words, got, want)
				}
			}
			for _, d := range []string{"u", "w"} {
				do("", "mkdir", "small/"+d)
			}
			do("", "put", "l1/big", "")
			do("", "open", "a", "l1/big", "rw")
			do("*", "fill", "a", "0", "4000000", "a")
			do("", "close", "a")
			for i := range 3 {
				do("", "put", fmt.Sprintf("l1/f%d", i), strings.Repeat("x", 6000))
			}
			m, err := s.parseMount([]string{"-u", "small/u", "-w", "small/w"})
			if err == nil {
				err = s.mount(m)
			}
			if err != nil {
				t.Fatal(err)
			}
			// One file is partial before the disk is full.
			do("", "open", "w", "m/big", "rw")
			do("*", "fill", "w", "1000000", "10", "b")
			do("", "fsync", "w")
			fill(t, filepath.Join(small, "filler"))
			small0 := "x6000"
			if ioMode() == "writeback" {
				// The data is taken; fsync tells, or close. It is there until the kernel forgets it.
				small0 = "x6000 m1 o1 r1 e1"
				do("", "fill", "w", "2000000", "500000", "c")
				do("ENOSPC", "fsync", "w")
				do("a1000000 b10 a999990 c500000 a1500000", "runs", "m/big")
			} else {
				do("ENOSPC", "fill", "w", "2000000", "500000", "c")
				do("a1000000 b10 a2999990", "runs", "m/big")
			}
			do("ENOSPC", "append", "m/f0", "more")
			do(small0, "runs", "m/f0")
			if err := os.Remove(filepath.Join(small, "filler")); err != nil {
				t.Fatal(err)
			}
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

// mountSmall mounts a new file system of 12 MiB.
func mountSmall(t *testing.T, at string, mkfs []string) {
	t.Helper()
	run := func(name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
	}
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if mkfs == nil {
		run("mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", at)
	} else {
		image := at + ".image"
		if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 12<<20)); err != nil {
			t.Fatal(err)
		}
		run(mkfs[0], append(mkfs[1:], image)...)
		run("mount", "-o", "loop", image, at)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", at, err)
		}
	})
}

// fill takes all the space that there is.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
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
		}
	}
}
