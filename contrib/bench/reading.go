package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Reading one big file: of the lower layer, and of the upper.

const (
	ioName    = "data"
	coldPages = 2000   // random reads from the disk
	warmPages = 100000 // random reads and writes in memory
	ioPasses  = 3      // of a whole file in memory, at least, if they do not take mostSeconds
	// What all passes together take, at least, and what is enough of them.
	leastSeconds = 0.2
	mostSeconds  = 1.5
)

func (b *bench) ioSize() int64 {
	if b.quick {
		return 128 << 20
	}
	return 512 << 20
}

func (b *bench) ioLower() (*lower, error) {
	return b.lowerOnce("io", func(dir string) error {
		path := filepath.Join(dir, ioName)
		return errors.Join(writeRandom(path, b.ioSize(), 9), age(path))
	})
}

// readRows are the rows of timeReading.
func readRows(title string, cold []bound) []row {
	warm := []bound{against(kernel, 1.05)}
	return []row{
		{key: "seq-cold", title: title + ", sequential read, cold", must: cold},
		{key: "seq-warm", title: title + ", sequential read, warm", must: warm},
		{key: "rand-cold", title: fmt.Sprintf("%s, %d random 4 KiB reads, cold", title, coldPages), must: cold},
		{key: "rand-warm", title: fmt.Sprintf("%s, %d random 4 KiB reads, warm", title, warmPages), must: warm},
		{key: "mmap-cold", title: title + ", a load from each page of a mapping, cold", must: cold},
		{key: "mmap-warm", title: title + ", the same, warm", must: warm},
	}
}

func (b *bench) fileReads() experiment {
	x := experiment{
		name:     "lower-file",
		systems:  all,
		rounds:   b.everyRound,
		deadline: b.within(3 * time.Minute),
		lower:    b.readOnly(b.ioLower),
		rows:     readRows(fmt.Sprintf("lower file of %s", bytesUnit.format(float64(b.ioSize()))), nil),
	}
	x.measure = func(m *mounted, _ int) (values, error) {
		return b.worker(x.deadline, m, "reading", filepath.Join(m.root(), ioName), b.base)
	}
	return x
}

// timeReading reads a file in all ways. Its arguments: the file, a directory of the scratch file system.
func timeReading(args []string) (values, error) {
	v := values{}
	for _, w := range []struct {
		key        string
		cold, warm func(fd int, size int64) error
	}{
		{"seq", readAll, readAll},
		{"rand", randomReads(coldPages), randomReads(warmPages)},
		{"mmap", touchPages, touchPages},
	} {
		if err := dropCaches(args[1]); err != nil {
			return nil, err
		}
		cold, err := onFile(args[0], unix.O_RDONLY, w.cold)
		if err != nil {
			return nil, err
		}
		if _, err := onFile(args[0], unix.O_RDONLY, readAll); err != nil {
			return nil, err
		}
		warm, err := passes(args[0], unix.O_RDONLY, w.warm)
		if err != nil {
			return nil, err
		}
		v[w.key+"-cold"], v[w.key+"-warm"] = cold, warm
	}
	return v, nil
}

// onFile opens path, does work with it and closes it, and returns the seconds that all that took.
func onFile(path string, flags int, work func(fd int, size int64) error) (float64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, named("stat", path, err)
	}
	start := time.Now()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, named("open", path, err)
	}
	err = errors.Join(work(fd, st.Size), unix.Close(fd))
	return since(start), named("use", path, err)
}

// passes is the median of several onFile.
func passes(path string, flags int, work func(fd int, size int64) error) (float64, error) {
	var all []float64
	for sum := 0.0; sum < leastSeconds || len(all) < ioPasses && sum < mostSeconds; {
		t, err := onFile(path, flags, work)
		if err != nil {
			return 0, err
		}
		all = append(all, t)
		sum += t
	}
	return middle(all), nil
}

func readAll(fd int, size int64) error {
	buffer := make([]byte, chunk)
	for offset := int64(0); offset < size; offset += chunk {
		if err := preadAll(fd, buffer[:min(chunk, size-offset)], offset); err != nil {
			return err
		}
	}
	return nil
}

func randomReads(n int) func(fd int, size int64) error {
	return func(fd int, size int64) error {
		pick := rand.New(rand.NewPCG(8, 8))
		buffer := make([]byte, page)
		for range n {
			if err := preadAll(fd, buffer, pick.Int64N(size/page)*page); err != nil {
				return err
			}
		}
		return nil
	}
}

// touchPages loads a byte of each page of a mapping.
func touchPages(fd int, size int64) error {
	m, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	var sum byte
	for i := 0; i < len(m); i += page {
		sum += m[i]
	}
	runtime.KeepAlive(sum)
	return unix.Munmap(m)
}
