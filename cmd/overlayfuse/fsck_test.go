package main

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFsckExitCodes: those of fsck(8).
func TestFsckExitCodes(t *testing.T) {
	dir, err := os.MkdirTemp("/var/tmp", "fsck-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	for _, d := range []string{"l", "u", "w"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	options := "lowerdir=" + dir + "/l,upperdir=" + dir + "/u,workdir=" + dir + "/w"
	bad := func(value string) {
		t.Helper()
		path := filepath.Join(dir, "u", "f")
		if err := os.WriteFile(path, make([]byte, 100), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := unix.Setxattr(path, "trusted.overlay.metacopy", []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	run := func(want int, args ...string) {
		t.Helper()
		if got := fsckCommand(args); got != want {
			t.Errorf("fsck %v: exit code %d, want %d", args, got, want)
		}
	}
	run(exitFsckClean, "-o", options)
	run(exitFsckClean, "--help")
	run(exitFsckUsage, "-n", "-y", "-o", options)
	run(exitFsckUsage, "-o", "lowerdir="+dir+"/l")
	run(exitFsckUsage, "-o", options, "more")
	run(exitFsckOperational, "-o", "upperdir="+dir+"/none,workdir="+dir+"/w")
	bad("zz")
	run(exitFsckUncorrected, "-o", options)
	run(exitFsckUncorrected, "-y", "-o", options)
	if err := os.Remove(filepath.Join(dir, "u", "f")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "l", "f"), make([]byte, 100), 0o644); err != nil {
		t.Fatal(err)
	}
	bad("") // data that is nobody's
	run(exitFsckUncorrected, "-o", options)
	run(exitFsckCorrected, "-y", "-o", options)
	run(exitFsckClean, "-o", options)
}
