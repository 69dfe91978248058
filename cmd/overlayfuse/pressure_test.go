package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/control"
)

// controlGroup makes a control group of version 2, and gives it with the groups that a process has to enter to be in it and, of
// memory, to have so much of it.
func controlGroup(t *testing.T, bytes int) (group string, limited []string) {
	t.Helper()
	roots, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil || len(roots) == 0 {
		t.Fatalf("no cgroup2: %v", err)
	}
	root := roots[0].Mountpoint
	name := fmt.Sprintf("ofs-test-%d", os.Getpid())
	makeGroup := func(in string) string {
		dir := filepath.Join(in, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			eventually(t, "the end of "+dir, func() bool { return unix.Rmdir(dir) == nil })
		})
		return dir
	}
	group = makeGroup(root)
	controllers, err := os.ReadFile(root + "/cgroup.controllers")
	if err != nil {
		t.Fatal(err)
	}
	limit := group + "/memory.high"
	limited = []string{group}
	if strings.Contains(string(controllers), "memory") {
		writeTo(t, root+"/cgroup.subtree_control", "+memory")
	} else {
		limited = append(limited, makeGroup("/sys/fs/cgroup/memory"))
		limit = limited[1] + "/memory.limit_in_bytes"
	}
	writeTo(t, limit, fmt.Sprint(bytes))
	return group, limited
}

func writeTo(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0); err != nil {
		t.Fatal(err)
	}
}

// startIn starts a command in control groups until the test ends.
func startIn(t *testing.T, groups []string, name string, args ...string) {
	t.Helper()
	enter := ""
	for _, g := range groups {
		enter += "echo $$ >'" + g + "/cgroup.procs' && "
	}
	cmd := exec.Command("sh", append([]string{"-c", enter + `exec "$0" "$@"`, name}, args...)...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // it was killed
	})
}

// TestListingsYieldToMemory: what a server keeps only to be quick goes while others of the machine are short of memory, and comes again
// when it is needed. The control group that is short says so, too, as long as it is there.
func TestListingsYieldToMemory(t *testing.T) {
	const limit, hogged, names = 48 << 20, 128 << 20, 3000
	dir := testDirs(t)
	for i := range names {
		writeTo(t, fmt.Sprintf("%s/l/name-%d", dir, i), "")
	}
	hog, err := os.Create(dir + "/hog")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = hog.Close() }() // it was synced
	if _, err := hog.Write(bytes.Repeat([]byte("hog"), hogged/3)); err != nil {
		t.Fatal(err)
	}
	if err := hog.Sync(); err != nil {
		t.Fatal(err)
	}
	// Nobody has paid for its pages: who reads it does.
	if err := unix.Fadvise(int(hog.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}

	var told atomic.Int32
	watch := make(chan error, 1)
	t.Cleanup(func() {
		select {
		case err := <-watch:
			if !errors.Is(err, unix.ENODEV) {
				t.Errorf("the control group is gone: %v, want %v", err, unix.ENODEV)
			}
		case <-time.After(10 * time.Second):
			t.Error("the control group is gone, and still watched")
		}
	})
	group, limited := controlGroup(t, limit)
	client := serving(t, dir)
	spec := control.Spec{ID: "m", MountPoint: dir + "/m", Lower: []string{dir + "/l"}, Upper: dir + "/u", Work: dir + "/w"}
	if err := client.Mount(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	listed := func() int64 {
		all, err := client.Inspect(t.Context())
		if err != nil || len(all) != 1 {
			t.Fatalf("%+v, %v", all, err)
		}
		return all[0].FS.ListingBytes
	}
	look := func() {
		if e, err := os.ReadDir(dir + "/m"); err != nil || len(e) != names+1 { // and lower
			t.Fatalf("%d names, %v", len(e), err)
		}
		if _, err := os.Stat(dir + "/m/absent"); !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	look()
	if n := listed(); n < names {
		t.Fatalf("listings of %d bytes are kept", n)
	}

	go func() { watch <- watchPressure([]string{group + "/memory.pressure"}, func() { told.Add(1) }) }()
	for range 2 {
		startIn(t, limited, "sh", "-c", `while :; do cat "$0" >/dev/null; done`, hog.Name())
	}
	eventually(t, "listings are given up", func() bool { return listed() == 0 })
	eventually(t, "the control group tells that memory is scarce", func() bool { return told.Load() > 0 })
	look()
	if _, err := os.Stat(dir + "/m/name-7"); err != nil {
		t.Error(err)
	}
}
