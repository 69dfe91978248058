package transport

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The test binary is also the server, and the client that a test kills: a process must not use its own mount.
func TestMain(m *testing.M) {
	switch os.Getenv("TRANSPORT_TEST") {
	case "serve":
		os.Exit(done(serveMounts(os.Args[1:])))
	case "answer": // one answers descriptor 3, until killed
		os.Exit(done(serveFirst()))
	case "resume":
		os.Exit(done(serveAgain(os.Args[1])))
	case "stat":
		var st unix.Stat_t
		os.Exit(done(unix.Stat(os.Args[1], &st)))
	}
	os.Exit(m.Run())
}

func done(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func testOptions() *fuse.MountOptions {
	return &fuse.MountOptions{MaxWrite: 1 << 20, DisableSplice: true, MaxBackground: 64, FsName: "test", Name: "test"}
}

// serveMounts mounts the test's file system on each directory, says "ready" when all answer, and serves until all are unmounted.
func serveMounts(dirs []string) error {
	var wg sync.WaitGroup
	errs := make(chan error, 2*len(dirs))
	for _, dir := range dirs {
		fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := unix.Mount("test", dir, "fuse.test", 0, mountData(fd)); err != nil {
			return err
		}
		fs := newTestFS()
		s, err := New(fs, testOptions(), fd, nil)
		if err == nil {
			err = s.Init()
		}
		if err != nil {
			return err
		}
		fs.server = s
		wg.Go(func() {
			if err := s.Serve(); err != nil {
				errs <- err
			}
			if n := fs.running.Load(); n != 0 {
				errs <- fmt.Errorf("%d handlers still run", n)
			}
		})
	}
	fmt.Println("ready")
	wg.Wait()
	close(errs)
	for err := range errs {
		return err
	}
	return nil
}

func mountData(fd int) string {
	return fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other", fd)
}

// serveFirst answers the INIT of descriptor 3, prints it, and serves.
func serveFirst() error {
	s, err := New(newTestFS(), testOptions(), 3, nil)
	if err == nil {
		err = s.Init()
	}
	if err != nil {
		return err
	}
	fmt.Printf("%x\n", s.Hello())
	return s.Serve()
}

// serveAgain goes on with descriptor 3, as a process that does not keep anybody waiting.
func serveAgain(hello string) error {
	fs := newTestFS()
	fs.hurry = true
	s, err := New(fs, testOptions(), 3, nil)
	if err != nil {
		return err
	}
	var b []byte
	if _, err := fmt.Sscanf(hello, "%x", &b); err != nil {
		return err
	}
	if err := s.Resume(b); err != nil {
		return err
	}
	return s.Serve()
}

// testFS has in its root directory: f0, f1, ... with attributes and names that are cached for ever; data, a file of 4 MiB;
// panic, whose lookup panics; sleep-N, whose lookup takes N milliseconds or is interrupted (sleep-N-... are more of them); panic-read, whose READ panics late.
type testFS struct {
	fuse.RawFileSystem
	server  *Server
	hurry   bool
	running atomic.Int32
	size    atomic.Uint64 // of f0
	lookups atomic.Uint64 // of f1
	mu      sync.Mutex
	data    []byte // guarded by mu
}

const (
	dataNode  = 2
	panicNode = 3
	firstNode = 10 // f0
	dataSize  = 4 << 20
)

func newTestFS() *testFS {
	fs := &testFS{RawFileSystem: fuse.NewDefaultRawFileSystem(), data: make([]byte, dataSize)}
	for i := range fs.data {
		fs.data[i] = pattern(i)
	}
	return fs
}

// pattern is byte i of the data file.
func pattern(i int) byte { return byte(i ^ i>>8 ^ i>>16) }

func (fs *testFS) attr(id uint64, a *fuse.Attr) {
	*a = fuse.Attr{Ino: id, Mode: unix.S_IFREG | 0o644, Nlink: 1, Size: fs.size.Load()}
	switch id {
	case fuse.FUSE_ROOT_ID:
		a.Mode = unix.S_IFDIR | 0o755
	case dataNode, panicNode:
		a.Size = dataSize
	}
}

func (fs *testFS) Lookup(cancel <-chan struct{}, _ *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	fs.running.Add(1)
	defer fs.running.Add(-1)
	kind, arg, _ := strings.Cut(name, "-")
	switch {
	case kind == "sleep":
		arg, _, _ = strings.Cut(arg, "-")
		ms, _ := strconv.Atoi(arg)
		if fs.hurry {
			ms = 0
		}
		select {
		case <-cancel:
			return fuse.EINTR
		case <-time.After(time.Duration(ms) * time.Millisecond):
		}
		return fuse.ENOENT
	case name == "panic":
		_ = fs.data[len(fs.data)] // out of range
	case name == "notify": // an invalidation of f0, whose size has changed
		fs.size.Add(1)
		// Not from this goroutine: the client holds the directory's lock until it has its answer.
		go func() {
			st := fs.server.InodeNotify(firstNode, -1, 0)
			if st == fuse.OK {
				st = fs.server.EntryNotify(fuse.FUSE_ROOT_ID, "f1")
			}
			if st != fuse.OK {
				fmt.Fprintln(os.Stderr, "notify:", st)
			}
		}()
		return fuse.ENOENT
	case name == "data":
		out.NodeId = dataNode
	case name == "panic-read":
		out.NodeId = panicNode
	case kind[0] == 'f':
		n, err := strconv.Atoi(kind[1:])
		if err != nil {
			return fuse.ENOENT
		}
		out.NodeId = firstNode + uint64(n)
	default:
		return fuse.ENOENT
	}
	out.SetEntryTimeout(time.Hour)
	out.SetAttrTimeout(time.Hour)
	fs.attr(out.NodeId, &out.Attr)
	if name == "f1" {
		out.Attr.Size = fs.lookups.Add(1)
	}
	return fuse.OK
}

func (fs *testFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	fs.attr(in.NodeId, &out.Attr)
	out.SetTimeout(time.Hour)
	return fuse.OK
}

func (fs *testFS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	fs.attr(in.NodeId, &out.Attr)
	return fuse.OK
}

func (fs *testFS) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_DIRECT_IO
	return fuse.OK
}

// panics is a result of READ that panics outside the file system.
type panics struct{ fuse.ReadResult }

func (panics) Size() int                            { return 1 }
func (panics) Bytes(b []byte) ([]byte, fuse.Status) { return b[:cap(b)+1], fuse.OK }
func (panics) Done()                                {}

func (fs *testFS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	if in.NodeId == panicNode {
		var none []byte
		return panics{fuse.ReadResultData(none)}, fuse.OK
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	n := copy(buf, fs.data[min(in.Offset, dataSize):])
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (fs *testFS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return uint32(copy(fs.data[min(in.Offset, dataSize):], data)), fuse.OK
}

// mountDir is a new directory for a mount, which is unmounted at the end of the test.
func mountDir(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // may be unmounted already
	return dir
}
