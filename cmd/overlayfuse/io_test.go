package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse"
	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/control"
)

// ioMount is a mount with a program in its lower layer.
type ioMount struct {
	t      *testing.T
	dir    string
	client *control.Client
}

func mountForIO(t *testing.T, options ...string) *ioMount {
	t.Helper()
	dir := testDirs(t)
	program, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/l/sleep", program, 0o755); err != nil {
		t.Fatal(err)
	}
	m := &ioMount{t, dir, serving(t, dir)}
	spec := control.Spec{ID: "m", MountPoint: dir + "/m", Lower: []string{dir + "/l"}, Upper: dir + "/u", Work: dir + "/w", Options: options}
	if err := m.client.Mount(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir+"/m", unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return m
}

// want waits until the mount counts so many passthrough and shared opens and split inodes: RELEASE comes late.
func (m *ioMount) want(when string, passthrough, shared, split int) {
	m.t.Helper()
	var got overlayfuse.Inspection
	eventually(m.t, when, func() bool {
		all, err := m.client.Inspect(m.t.Context())
		if err != nil || len(all) != 1 {
			m.t.Fatalf("inspect: %d mounts, %v", len(all), err)
		}
		got = *all[0].FS
		return got.Passthrough == passthrough && got.Shared == shared && got.Split == split
	})
}

func (m *ioMount) open(name string, flags int) *os.File {
	m.t.Helper()
	f, err := os.OpenFile(m.dir+"/m/"+name, flags, 0o644)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = f.Close() }) // it may be closed
	return f
}

func (m *ioMount) close(f *os.File) {
	m.t.Helper()
	if err := f.Close(); err != nil {
		m.t.Error(err)
	}
}

// run starts the program of the lower layer.
func (m *ioMount) run(seconds string) *exec.Cmd {
	m.t.Helper()
	cmd := exec.CommandContext(m.t.Context(), m.dir+"/m/sleep", seconds)
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	return cmd
}

func TestIOModes(t *testing.T) {
	m := mountForIO(t)
	m.want("nothing open", 0, 0, 0)
	lower := m.open("lower", os.O_RDONLY)
	m.want("a lower file is cached", 0, 0, 0)
	f := m.open("new", os.O_RDWR|os.O_CREATE)
	g := m.open("new", os.O_RDONLY)
	m.want("a new file", 2, 0, 0)
	m.close(f)
	m.close(g)
	m.close(lower)
	m.want("all closed", 0, 0, 0)
	f = m.open("lower", os.O_WRONLY|os.O_TRUNC)
	m.want("a lower file that the open truncates", 1, 0, 0)
	m.close(f)

	program := m.run("1000")
	m.want("a program runs", 1, 1, 0)
	reader := m.open("sleep", os.O_RDONLY)
	m.want("and is read", 2, 2, 0)
	if _, err := os.OpenFile(m.dir+"/m/sleep", os.O_RDWR, 0); err == nil {
		t.Error("a running program was opened for writing")
	}
	if err := program.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = program.Wait() // it was killed
	m.want("only the reader is left", 1, 1, 0)
	writer := m.open("sleep", os.O_RDWR)
	m.want("a writer has its own inode", 0, 0, 1)
	if _, err := writer.WriteAt([]byte("changed"), 0); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 7)
	if _, err := reader.ReadAt(buf, 0); err != nil || string(buf) != "changed" {
		t.Errorf("the reader sees %q, %v", buf, err)
	}
}

func TestIOPolicies(t *testing.T) {
	for _, c := range []struct {
		options   []string
		file, run int // passthrough opens of a new file, of a program that runs
		lower     int // of a lower file that is read
	}{
		{[]string{"io=cached"}, 0, 0, 0},
		{[]string{"io=writeback"}, 0, 0, 0},
		{[]string{"io=writeback", "sharing=all"}, 0, 0, 0},
		{[]string{"io=passthrough", "sharing=none"}, 1, 0, 0},
		{[]string{"sharing=exec"}, 1, 1, 0},
		{[]string{"sharing=mapped"}, 1, 1, 1},
		{[]string{"sharing=all"}, 1, 1, 1},
		{[]string{"ro"}, 0, 1, 1},
	} {
		m := mountForIO(t, c.options...)
		if c.options[0] != "ro" {
			f := m.open("new", os.O_RDWR|os.O_CREATE)
			m.want("a new file", c.file, 0, 0)
			m.close(f)
			m.want("closed", 0, 0, 0)
		}
		shared := func(n int) int {
			if c.options[0] == "ro" {
				return 0 // nothing can be written: passthrough, as any file
			}
			return n
		}
		f := m.open("lower", os.O_RDONLY)
		m.want("a lower file", c.lower, shared(c.lower), 0)
		m.close(f)
		m.want("closed", 0, 0, 0)
		program := m.run("1000")
		m.want("a program", c.run, shared(c.run), 0)
		if err := program.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = program.Wait() // it was killed
		m.want("it has ended", 0, 0, 0)
	}
}

// foreground runs a server of its own on dir/m, logging to dir/log.
func foreground(t *testing.T, dir, options string) *exec.Cmd {
	t.Helper()
	log, err := os.Create(dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	server := exec.Command(command, "-f", "-o", writable(dir)+","+options, dir+"/m")
	server.Stderr = log
	if err := errors.Join(server.Start(), log.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Signal(unix.SIGCONT) // it may have ended
		if err := unix.Unmount(dir+"/m", unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
		if err := server.Wait(); err != nil {
			t.Error(err)
		}
	})
	eventually(t, "the mount", func() bool { return mountLine(t, dir) != "" })
	return server
}

// unserved runs f while the server is stopped and answers nothing.
func unserved(t *testing.T, server *exec.Cmd, f func() error) {
	t.Helper()
	if err := server.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("something was asked of the server, which is stopped")
	}
	if err := server.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// TestWritebackOpensWithoutAsking: the server answers nothing while a file is opened, read from the page cache and closed.
func TestWritebackOpensWithoutAsking(t *testing.T) {
	dir := testDirs(t)
	server := foreground(t, dir, "io=writeback")
	for range 2 { // the first time the server says that it wants not to be asked
		if got, err := os.ReadFile(dir + "/m/lower"); err != nil || string(got) != "hello" {
			t.Fatalf("%q, %v", got, err)
		}
	}
	unserved(t, server, func() error {
		f, err := os.OpenFile(dir+"/m/lower", os.O_RDWR, 0)
		if err != nil {
			return err
		}
		buf := make([]byte, 5)
		_, err = f.ReadAt(buf, 0)
		return errors.Join(err, f.Close())
	})
}

// TestWhatIsKnownIsNotAsked: what was looked up, listed and read once is the kernel's, and a file that was only read is closed without
// asking. A file that is passed through is written as well.
func TestWhatIsKnownIsNotAsked(t *testing.T) {
	dir := testDirs(t)
	if err := errors.Join(os.Symlink("lower", dir+"/l/link"), os.Mkdir(dir+"/l/d", 0o755), os.WriteFile(dir+"/l/d/f", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	server := foreground(t, dir, "io=passthrough")
	at := func(name string) string { return dir + "/m/" + name }
	lower, err := os.Open(at("lower"))
	if err != nil {
		t.Fatal(err)
	}
	upper, err := os.OpenFile(at("new"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = upper.Close() }()
	look := func() error {
		var errs []error
		check := func(ok bool, what string, err error) {
			if !ok || err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", what, errors.Join(err, unix.EINVAL)))
			}
		}
		st, err := os.Stat(at("d/f"))
		check(err == nil && st.Mode() == 0o600, "stat", err)
		_, err = os.Stat(at("d/missing"))
		check(errors.Is(err, os.ErrNotExist), "a missing name", nil)
		link, err := os.Readlink(at("link"))
		check(link == "lower", "readlink", err)
		names, err := os.ReadDir(at("d"))
		check(len(names) == 1, "readdir", err)
		names, err = os.ReadDir(at("."))
		check(len(names) == 4, "readdir of a merged directory", err)
		buf := make([]byte, 5)
		_, err = lower.ReadAt(buf, 0)
		check(string(buf) == "hello", "read", err)
		_, err = upper.WriteAt([]byte("12345"), 0)
		check(true, "write", err)
		_, err = upper.ReadAt(buf, 0)
		check(string(buf) == "12345", "read of an upper", err)
		return errors.Join(errs...)
	}
	for range 3 { // the first listing of a directory is watched (ahead.go), and a listing is kept after the second
		if err := look(); err != nil {
			t.Fatal(err)
		}
	}
	unserved(t, server, func() error { return errors.Join(look(), lower.Close()) })
}

// TestRequestsOfOneOperation: what an open and a create ask for, and nothing else: GETATTR, LOOKUP and GETXATTR are the kernel's own, see
// contrib/bench/results/missed.md.
func TestRequestsOfOneOperation(t *testing.T) {
	dir := testDirs(t)
	foreground(t, dir, "io=passthrough,debug")
	f, err := os.Open(dir + "/m/lower") // the root's attributes are known from here on
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	request := regexp.MustCompile(`msg="rx \d+: (\w+) `)
	var seen int
	asked := func(last string) (names []string) {
		eventually(t, last, func() bool { // nobody waits for it
			log, err := os.ReadFile(dir + "/log")
			if err != nil {
				t.Fatal(err)
			}
			all := request.FindAllStringSubmatch(string(log), -1)
			names = nil
			for _, m := range all[seen:] {
				names = append(names, m[1])
			}
			if n := len(names); n == 0 || names[n-1] != last {
				return false
			}
			seen = len(all)
			return true
		})
		return names
	}
	asked("RELEASE")
	read := func() error {
		f, err := os.Open(dir + "/m/lower")
		if err == nil {
			_, err = f.Read(make([]byte, 9))
			err = errors.Join(err, f.Close())
		}
		return err
	}
	for _, c := range []struct {
		name string
		do   func() error
		want string
	}{
		{"open, read, close", read, "OPEN READ RELEASE"},
		{"the same again", read, "OPEN RELEASE"},
		{"create, write, close", func() error { return os.WriteFile(dir+"/m/new", []byte("data"), 0o600) },
			"LOOKUP CREATE GETXATTR RELEASE"},
		{"the next one", func() error { return os.WriteFile(dir+"/m/next", []byte("data"), 0o600) },
			"GETATTR LOOKUP CREATE GETXATTR RELEASE"},
	} {
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(asked("RELEASE"), " "); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestInspectSaysHowFilesAreReadAndWritten(t *testing.T) {
	for option, want := range map[string]string{"io=auto": "passthrough", "io=cached": "cached", "io=writeback": "writeback"} {
		m := mountForIO(t, option)
		all, err := m.client.Inspect(t.Context())
		if err != nil || len(all) != 1 || all[0].FS.IO != want {
			t.Errorf("%s: %+v, %v", option, all, err)
		}
	}
}

// TestAutoWithoutPassthrough: the kernel takes no files of a file system that is stacked already, as a container's own mount is.
func TestAutoWithoutPassthrough(t *testing.T) {
	m := mountForIO(t)
	outer := m.dir + "/m"
	spec := control.Spec{ID: "inner", MountPoint: outer + "/m", Lower: []string{outer + "/l"}, Upper: outer + "/u", Work: outer + "/w"}
	for _, d := range []string{"l", "u", "w", "m"} {
		if err := os.Mkdir(outer+"/"+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(outer+"/l/f", []byte("lower"), 0o644); err != nil {
		t.Fatal(err)
	}
	// A server of its own: one that opens files of its own mount could wait for itself.
	dir := t.TempDir()
	inner := serving(t, dir)
	must := spec
	must.Options = []string{"io=passthrough"}
	if err := inner.Mount(t.Context(), must); !errors.Is(err, unix.ELOOP) {
		t.Errorf("io=passthrough: %v, want %v", err, unix.ELOOP)
	}
	if err := inner.Mount(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(spec.MountPoint, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	all, err := inner.Inspect(t.Context())
	if err != nil || len(all) != 1 || all[0].FS.IO != "writeback" {
		t.Errorf("%+v, %v, want writeback", all, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if n := strings.Count(string(mounts), " "+spec.MountPoint+" "); err != nil || n != 1 {
		t.Errorf("%d mounts on %s, %v, want 1", n, spec.MountPoint, err)
	}
	f, err := os.OpenFile(spec.MountPoint+"/f", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("UP"), 0); err != nil {
		t.Error(err)
	}
	m.close(f)
	for path, want := range map[string]string{spec.MountPoint + "/f": "UPwer", outer + "/u/f": "UPwer", outer + "/l/f": "lower"} {
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", path, got, err, want)
		}
	}
}

// TestReadahead: the kernel reads ahead as much as one request can carry.
func TestReadahead(t *testing.T) {
	m := mountForIO(t)
	var st unix.Stat_t
	if err := unix.Stat(m.dir+"/m", &st); err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
	if kb, err := os.ReadFile(path); err != nil || string(kb) != "1024\n" {
		t.Errorf("%s: %q, %v", path, kb, err)
	}
}

// TestPagesOfUppersAreDropped: what the mount's own page cache has is not held by the upper file as well.
func TestPagesOfUppersAreDropped(t *testing.T) {
	const size = 8 << 20
	m := mountForIO(t, "io=cached", "drop_after=4s")
	f := m.open("new", os.O_RDWR|os.O_CREATE)
	if _, err := f.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	upper, err := os.Open(m.dir + "/u/new")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = upper.Close() }()
	cached := func(f *os.File) uint64 {
		var c unix.Cachestat_t
		if err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &c, 0); err != nil {
			t.Fatal(err)
		}
		return c.Cache * uint64(os.Getpagesize())
	}
	if n := cached(upper); n < size/2 { // the machine may want some pages for itself
		t.Errorf("%d bytes of the upper are cached after a write of %d", n, size)
	}
	eventually(t, "the upper's pages are dropped", func() bool { return cached(upper) == 0 })
	eventually(t, "they are counted", func() bool {
		all, err := m.client.Inspect(t.Context())
		if err != nil || len(all) != 1 {
			t.Fatalf("%+v, %v", all, err)
		}
		return all[0].FS.Counters.BytesDropped >= size/2
	})
	if n := cached(f); n < size/2 {
		t.Errorf("the mount caches %d bytes", n)
	}
	m.close(f)
}
