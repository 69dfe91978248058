package overlayfuse_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCopyRangeSharesBlocks: where the upper's file system can, copy_file_range(2) between files of the mount shares blocks. FICLONE is
// refused by fs/fuse, which never asks; cp --reflink=auto then does the former.
func TestCopyRangeSharesBlocks(t *testing.T) {
	s, err := newPlainScript(t, "overlayfuse", "copyrange")
	if err != nil {
		t.Fatal(err)
	}
	small := filepath.Join(s.dir, "small")
	mountSmall(t, small, limited{name: "xfs", mkfs: []string{"mkfs.xfs", "-q", "-m", "reflink=1"}, mib: 300})
	for _, d := range []string{small + "/u", small + "/w", s.dir + "/l1"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m, err := s.parseMount([]string{"-u", "small/u", "-w", "small/w"})
	if err == nil {
		err = s.mount(m)
	}
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	open := func(name string) *os.File {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(s.dir, "m", name), os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	from, to := open("from"), open("to")
	if _, err := from.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := from.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlFileClone(int(to.Fd()), int(from.Fd())); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("FICLONE: %v, want %v", err, unix.EOPNOTSUPP)
	}
	for off := int64(0); off < int64(len(data)); {
		in, out := off, off
		n, err := unix.CopyFileRange(int(from.Fd()), &in, int(to.Fd()), &out, len(data)-int(off), 0)
		if err != nil || n == 0 {
			t.Fatalf("%d bytes at %d, %v", n, off, err)
		}
		off += int64(n)
	}
	if err := errors.Join(from.Close(), to.Close()); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(s.dir, "m/to")); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if extents := runTool(t, "filefrag", "-v", small+"/u/to"); !strings.Contains(extents, "shared") {
		t.Errorf("no extent is shared:\n%s", extents)
	}
	if _, err := s.umount("m"); err != nil {
		t.Fatal(err)
	}
}
