package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// readServers are the ways to answer a READ with what a file has: copied into the reply, or spliced to it through a pipe.
var readServers = []struct {
	name  string
	serve func(fs fuse.RawFileSystem, dev int) error
}{
	{"go-fuse, copied", func(fs fuse.RawFileSystem, dev int) error { return serveGoFuseOn(fs, dev, transportOptions()) }},
	{"go-fuse, spliced", func(fs fuse.RawFileSystem, dev int) error {
		o := transportOptions()
		o.DisableSplice = false
		return serveGoFuseOn(fs, dev, o)
	}},
	{"ours, copied", func(fs fuse.RawFileSystem, dev int) error { return serveOursOn(fs, dev, nil) }},
}

// readSizes are the bytes of one request.
var readSizes = []int{4 << 10, 128 << 10, 1 << 20}

// readFile is the size in bytes of the file that is read. All of it is in the page cache.
const readFile = 64 << 20

func init() {
	workers["transport-serve-read"] = serveRead
	workers["transport-read"] = transportRead
}

// dataFS has one file more, "data", whose reads all are requests.
type dataFS struct {
	transportFS

	file *os.File
}

const dataNode = 1 << 20

// Lookup finds data as well.
func (fs dataFS) Lookup(cancel <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if name != "data" {
		return fs.transportFS.Lookup(cancel, in, name, out)
	}
	out.NodeId = dataNode
	out.SetEntryTimeout(time.Hour)
	out.Attr = fuse.Attr{Ino: dataNode, Mode: unix.S_IFREG | 0o644, Nlink: 1, Size: readFile}
	out.SetAttrTimeout(time.Hour)
	return fuse.OK
}

// Open keeps the page cache out.
func (dataFS) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH
	return fuse.OK
}

// Read leaves it to the server how the data gets to the reply.
func (fs dataFS) Read(_ <-chan struct{}, in *fuse.ReadIn, _ []byte) (fuse.ReadResult, fuse.Status) {
	return fuse.ReadResultFd(fs.file.Fd(), int64(in.Offset), int(in.Size)), fuse.OK
}

// serveRead is the server: NUMBER MOUNTPOINT FILE.
func serveRead(args []string) (values, error) {
	i, err := strconv.Atoi(args[0])
	if err != nil {
		return nil, err
	}
	f, err := os.Open(args[2])
	if err != nil {
		return nil, err
	}
	dev, err := mountBench(args[1])
	if err != nil {
		return nil, err
	}
	return values{}, readServers[i].serve(dataFS{newTransportFS(), f}, dev)
}

// transportRead reads DIRECTORY/data in requests of SIZE bytes, COUNT times, and gives the µs of one.
func transportRead(args []string) (values, error) {
	size, err := strconv.Atoi(args[1])
	if err != nil {
		return nil, err
	}
	count, err := strconv.Atoi(args[2])
	if err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(args[0], "data"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // nothing was written
	buf := make([]byte, size)
	start := time.Now()
	for i := range count {
		n, err := unix.Pread(int(f.Fd()), buf, int64(i)*int64(size)%readFile)
		if err == nil && n != size {
			err = fmt.Errorf("read %d of %d bytes: %w", n, size, unix.EIO)
		}
		if err != nil {
			return nil, err
		}
	}
	return values{"read": since(start) * 1e6 / float64(count)}, nil
}

// reads measures all readServers in turn.
func (r *transportRun) reads() error {
	data := filepath.Join(r.base, "data")
	if err := os.WriteFile(data, make([]byte, readFile), 0o600); err != nil {
		return err
	}
	for round := range r.rounds {
		for i := range readServers {
			i = (i + round) % len(readServers)
			v, err := r.readsOf(i, data)
			if err != nil {
				return fmt.Errorf("%s: %w", readServers[i].name, err)
			}
			r.samples[readServers[i].name] = append(r.samples[readServers[i].name], v)
		}
	}
	return nil
}

func (r *transportRun) readsOf(i int, data string) (v values, err error) {
	m := &mounted{dir: filepath.Join(r.base, strconv.Itoa(r.serial))}
	r.serial++
	if err := os.MkdirAll(m.root(), 0o755); err != nil {
		return nil, err
	}
	if err := r.serve(m, exec.Command("/proc/self/exe", "-worker", "transport-serve-read", strconv.Itoa(i), m.root(), data)); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.detach()) }()
	v = values{}
	for _, size := range readSizes {
		count := min(r.count, 1<<30/size) // a GiB at most
		before := cpuOf(m)
		w, err := r.worker(time.Minute, m, "transport-read", m.root(), strconv.Itoa(size), strconv.Itoa(count))
		if err != nil {
			return nil, err
		}
		v[fmt.Sprintf("read %d", size)] = w["read"]
		v[fmt.Sprintf("cpu %d", size)] = (cpuOf(m) - before) / float64(count)
	}
	return v, nil
}

// readTable shows medians over the rounds.
func (r *transportRun) readTable() string {
	var s strings.Builder
	s.WriteString("\nRead requests of one client on a file that the server has open and the page cache holds: µs of one / CPU time of the server.\n\n| server |")
	for _, size := range readSizes {
		fmt.Fprintf(&s, " %d KiB |", size>>10)
	}
	s.WriteString("\n|---|" + strings.Repeat("---|", len(readSizes)) + "\n")
	for _, t := range readServers {
		fmt.Fprintf(&s, "| %s |", t.name)
		for _, size := range readSizes {
			fmt.Fprintf(&s, " %.1f / %.1f |", middleOf(r.samples[t.name], fmt.Sprintf("read %d", size)), middleOf(r.samples[t.name], fmt.Sprintf("cpu %d", size)))
		}
		s.WriteString("\n")
	}
	return s.String()
}
