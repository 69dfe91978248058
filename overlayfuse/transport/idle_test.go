package transport

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// switches is how often the server's threads went to sleep or were preempted so far.
func (s *server) switches() int {
	s.t.Helper()
	tasks := fmt.Sprintf("/proc/%d/task", s.cmd.Process.Pid)
	entries, err := os.ReadDir(tasks)
	if err != nil {
		s.t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		n += statusOf(s.t, tasks+"/"+e.Name(), "voluntary_ctxt_switches")
	}
	return n
}

func TestIdleMountsCostNothing(t *testing.T) {
	const mounts = 100
	s, dirs := mounted(t, mounts)
	for round := range 3 {
		for _, dir := range dirs {
			for i := range 20 {
				if _, err := stat(fmt.Sprintf("%s/x%d-%d", dir, round, i)); !errors.Is(err, unix.ENOENT) {
					t.Fatal(err)
				}
			}
		}
	}
	time.Sleep(time.Second)
	// The runtime keeps the threads that it ever needed, and each mount had one for a while: there must not be one for each.
	if threads := s.status("Threads"); threads > mounts*3/4 {
		t.Errorf("%d threads for %d idle mounts", threads, mounts)
	}
	before := s.switches()
	time.Sleep(2 * time.Second)
	if n := s.switches() - before; n > 20 {
		t.Errorf("%d wake-ups in 2 s without a request", n)
	}
}

// resident are the KiB of memory in the server's buffers, which alone are not for a child: all of its memory would count the race
// detector's shadow of them, which stays.
func (s *server) resident() int {
	s.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	n, rss := 0, 0
	for line := range strings.Lines(string(text)) {
		switch f := strings.Fields(line); f[0] {
		case "Rss:":
			rss, _ = strconv.Atoi(f[1])
		case "VmFlags:": // dc: MADV_DONTFORK
			if slices.Contains(f, "dc") {
				n += rss
			}
		}
	}
	return n
}

func TestIdleServerGivesBackItsBuffers(t *testing.T) {
	const limit = 64 // KiB
	s, dirs := mounted(t, 1)
	f, err := os.Open(dirs[0] + "/data")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	// To look takes as long as a server waits before it gives them back.
	var stop atomic.Bool
	read := make(chan error, 1)
	go func() {
		var err error
		for buf := make([]byte, 1<<20); err == nil && !stop.Load(); {
			_, err = f.ReadAt(buf, 0)
		}
		read <- err
	}()
	most := 0
	for end := time.Now().Add(10 * time.Second); most < 1<<10 && time.Now().Before(end); {
		most = max(most, s.resident())
	}
	stop.Store(true)
	if err := <-read; err != nil {
		t.Fatal(err)
	}
	if most < 1<<10 {
		t.Errorf("%d KiB of buffers at most while 1 MiB is read", most)
	}
	after := most
	for deadline := time.Now().Add(10 * time.Second); after > limit && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
		after = s.resident()
	}
	if after > limit {
		t.Errorf("%d KiB of buffers after reads of 1 MiB", after)
	}
}

func TestTakeover(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount")
	}
	dir := mountDir(t)
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	device := os.NewFile(uintptr(fd), "/dev/fuse")
	if err := unix.Mount("test", dir, "fuse.test", 0, mountData(fd)); err != nil {
		t.Fatal(err)
	}
	first := self("answer")
	first.ExtraFiles = []*os.File{device}
	one, hello := start(t, first)
	if _, err := stat(dir + "/f1"); err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() {
		_, err := stat(dir + "/sleep-600000")
		answered <- err
	}()
	time.Sleep(200 * time.Millisecond)
	if err := one.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	one.exited <- <-one.exited // it was killed

	again := self("resume", hello)
	again.ExtraFiles = []*os.File{device}
	if err := again.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		_ = device.Close()
		if err := again.Wait(); err != nil {
			t.Error(err)
		}
	}()
	select {
	case err := <-answered:
		if !errors.Is(err, unix.ENOENT) {
			t.Errorf("the request that hung: %v", err)
		}
	case <-time.After(10 * time.Second):
		_ = unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH)
		t.Fatal("the request hangs still")
	}
	if _, err := stat(dir + "/f2"); err != nil {
		t.Error(err)
	}
}
