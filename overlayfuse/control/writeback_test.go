package control

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// writebackSpec is a mount with io=writeback over a lower file "big" of 1 MiB.
func writebackSpec(t *testing.T, p *process, dir string) Spec {
	t.Helper()
	s := testSpec(t, dir, "a")
	s.Options = []string{"io=writeback"}
	if err := os.WriteFile(s.Lower[0]+"/big", bytes.Repeat([]byte("l"), 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	mustMount(t, p, s)
	return s
}

// openWritten opens "big" of a writebackSpec, and writes into it what is not in the upper yet.
func openWritten(t *testing.T, s Spec) *os.File {
	t.Helper()
	f, err := os.OpenFile(s.MountPoint+"/big", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() }) // it may be closed
	if _, err := f.WriteAt([]byte("written"), 1000); err != nil {
		t.Fatal(err)
	}
	return f
}

// wantUpper compares a file of the upper: text at off, and the lower's around it.
func wantUpper(t *testing.T, s Spec, text string, off int) {
	t.Helper()
	want := bytes.Repeat([]byte("l"), 1<<20)
	copy(want[off:], text)
	got, err := os.ReadFile(s.Upper + "/big")
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("upper: %d bytes, %v, want the lower's with %q at %d", len(got), err, text, off)
	}
}

// TestFlushWritesBack: also what an open file and a mapping have not been asked for.
func TestFlushWritesBack(t *testing.T) {
	dir := t.TempDir()
	p := startServer(t, dir)
	s := writebackSpec(t, p, dir)
	f := openWritten(t, s)
	if _, err := os.Lstat(s.Upper + "/big"); !os.IsNotExist(err) {
		t.Fatalf("it was written through: %v", err)
	}
	if _, err := p.client.Flush(testContext(t), s); err != nil {
		t.Fatal(err)
	}
	wantUpper(t, s, "written", 1000)
	m, err := unix.Mmap(int(f.Fd()), 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	copy(m[1000:], "mapped!")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	copy(m[1000:], "MAPPED!")
	if _, err := p.client.Flush(testContext(t), s); err != nil {
		t.Fatal(err)
	}
	wantUpper(t, s, "MAPPED!", 1000)
	if err := unix.Munmap(m); err != nil {
		t.Fatal(err)
	}
	if err := p.client.Unmount(testContext(t), "a", false); err != nil {
		t.Fatal(err)
	}
}

// TestUnmountWritesBack: a file that is open keeps a lazily unmounted mount going, and what it was written is in the upper at the end,
// with the time of the write.
func TestUnmountWritesBack(t *testing.T) {
	dir := t.TempDir()
	p := startServer(t, dir)
	s := writebackSpec(t, p, dir)
	f := openWritten(t, s)
	var shown, stored unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &shown); err != nil {
		t.Fatal(err)
	}
	wantError(t, p.client.Unmount(testContext(t), "a", false), unix.EBUSY, "unmount")
	if err := p.client.Unmount(testContext(t), "a", true); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("after"), 2000); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fstat(int(f.Fd()), &shown); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.client.Flush(testContext(t), s); err != nil {
		t.Fatal(err)
	}
	wantUpper(t, s, "written"+string(bytes.Repeat([]byte("l"), 993))+"after", 1000)
	if err := unix.Stat(s.Upper+"/big", &stored); err != nil || stored.Mtim != shown.Mtim {
		t.Errorf("modification time %v, %v, want %v", stored.Mtim, err, shown.Mtim)
	}
}
