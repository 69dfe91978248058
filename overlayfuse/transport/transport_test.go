package transport

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestManyClients(t *testing.T) {
	s, dirs := mounted(t, 2)
	within(t, time.Minute, "the work", func() {
		var wg sync.WaitGroup
		for c := range 8 {
			wg.Go(func() {
				dir := dirs[c%2]
				for i := range 300 {
					if _, err := stat(fmt.Sprintf("%s/x%d-%d", dir, c, i)); !errors.Is(err, unix.ENOENT) {
						t.Errorf("a missing name: %v", err)
					}
					f, err := os.Open(fmt.Sprintf("%s/f%d", dir, i))
					if err != nil {
						t.Error(err)
						continue
					}
					_ = f.Close()
				}
			})
		}
		wg.Wait()
	})
	for _, dir := range dirs {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Fatal(err)
		}
	}
	s.ends()
}

func TestDataArrivesWhole(t *testing.T) {
	_, dirs := mounted(t, 1)
	f, err := os.OpenFile(dirs[0]+"/data", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for _, size := range []int{1, 4095, 4096, 70_000, 1 << 20, 3<<20 + 5} {
		got := make([]byte, size)
		if _, err := io.ReadFull(io.NewSectionReader(f, 7, int64(size)), got); err != nil {
			t.Fatal(err)
		}
		for i, b := range got {
			if b != pattern(i+7) {
				t.Fatalf("read of %d bytes: byte %d is %#x", size, i, b)
			}
		}
		if _, err := f.WriteAt(got, 7); err != nil { // what is there already
			t.Fatal(err)
		}
	}
}

func TestSlowRequestHoldsNobodyUp(t *testing.T) {
	_, dirs := mounted(t, 1)
	c := self("stat", dirs[0]+"/sleep-600000")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = c.Process.Kill() // it runs still
		_ = c.Wait()         // by the signal
	}()
	time.Sleep(200 * time.Millisecond)
	within(t, 20*time.Second, "200 requests beside a slow one", func() {
		for i := range 200 {
			if _, err := stat(fmt.Sprintf("%s/x%d", dirs[0], i)); !errors.Is(err, unix.ENOENT) {
				t.Error(err)
			}
		}
	})
}

func TestSlowRequestsRunAtTheSameTime(t *testing.T) {
	_, dirs := mounted(t, 1)
	begin := time.Now()
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() { _, _ = stat(fmt.Sprintf("%s/sleep-1000-%d", dirs[0], i)) })
	}
	wg.Wait()
	if took := time.Since(begin); took > 20*time.Second { // one by one they take 40
		t.Errorf("40 requests of 1 s took %v", took)
	}
}

func TestInterrupt(t *testing.T) {
	s, dirs := mounted(t, 1)
	c := self("stat", dirs[0]+"/sleep-600000")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	within(t, 10*time.Second, "the end of a killed client", func() { _ = c.Wait() })
	if err := unix.Unmount(dirs[0], unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	s.ends() // says that no handler runs
}

func TestPanicIsEIO(t *testing.T) {
	s, dirs := mounted(t, 1)
	for range 3 {
		if _, err := stat(dirs[0] + "/panic"); !errors.Is(err, unix.EIO) {
			t.Errorf("a handler that panics: %v", err)
		}
		f, err := os.Open(dirs[0] + "/panic-read")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Read(make([]byte, 10)); !errors.Is(err, unix.EIO) {
			t.Errorf("a reply that panics: %v", err)
		}
		_ = f.Close()
		if _, err := stat(dirs[0] + "/f5"); err != nil {
			t.Errorf("after the panic: %v", err)
		}
	}
	if err := unix.Unmount(dirs[0], unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	s.ends()
	if !strings.Contains(s.stderr.String(), "panic") {
		t.Error("the panics were not logged")
	}
}

func TestUnmountUnderLoad(t *testing.T) {
	s, dirs := mounted(t, 1)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for c := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					_, _ = stat(fmt.Sprintf("%s/x%d-%d", dirs[0], c, i))
					if f, err := os.Open(fmt.Sprintf("%s/f%d", dirs[0], c)); err == nil {
						_ = f.Close()
					}
				}
			}
		})
	}
	time.Sleep(100 * time.Millisecond)
	if err := unix.Unmount(dirs[0], unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	s.ends()
	close(stop)
	wg.Wait()
}

func TestAbortEndsHandlers(t *testing.T) {
	s, dirs := mounted(t, 1)
	var st unix.Stat_t
	if err := unix.Stat(dirs[0], &st); err != nil {
		t.Fatal(err)
	}
	errs := make(chan error, 1)
	go func() {
		_, err := stat(dirs[0] + "/sleep-600000")
		errs <- err
	}()
	time.Sleep(200 * time.Millisecond)
	control := t.TempDir()
	if err := unix.Mount("fusectl", control, "fusectl", 0, ""); err != nil {
		t.Skipf("no fusectl file system: %v", err)
	}
	defer func() { _ = unix.Unmount(control, unix.MNT_DETACH) }()
	if err := os.WriteFile(fmt.Sprintf("%s/%d/abort", control, unix.Minor(st.Dev)), []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-errs:
		if !errors.Is(err, unix.ECONNABORTED) && !errors.Is(err, unix.ENOTCONN) {
			t.Errorf("the request that was aborted: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the client hangs")
	}
	s.ends()
}

func TestNotifications(t *testing.T) {
	s, dirs := mounted(t, 1)
	before, err := stat(dirs[0] + "/f0")
	if err != nil {
		t.Fatal(err)
	}
	first, err := stat(dirs[0] + "/f1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stat(dirs[0] + "/notify"); !errors.Is(err, unix.ENOENT) {
		t.Fatal(err)
	}
	size := before
	for end := time.Now().Add(10 * time.Second); size == before && time.Now().Before(end); time.Sleep(time.Millisecond) {
		if size, err = stat(dirs[0] + "/f0"); err != nil {
			t.Fatal(err)
		}
	}
	if size != before+1 {
		t.Errorf("size after the invalidation is %d, before %d: %s", size, before, s.stderr.String())
	}
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		again, err := stat(dirs[0] + "/f1")
		if err != nil {
			t.Fatal(err)
		}
		if again != first {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the name was not looked up again: %s", s.stderr.String())
		}
	}
}
