package main

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Writing one big file of the upper layer, then reading it.

func (b *bench) emptyLower() (*lower, error) {
	return b.lowerOnce("empty", func(string) error { return nil })
}

func (b *bench) fileWrites() experiment {
	size := bytesUnit.format(float64(b.ioSize()))
	data := []bound{against(kernel, 1.05)}
	x := experiment{
		name:     "upper-file",
		systems:  all,
		rounds:   b.everyRound,
		deadline: b.within(3 * time.Minute),
		lower:    b.emptyLower,
		rows: slices.Concat([]row{
			{key: "new", title: "write a new file of " + size + ", 1 MiB writes", must: data},
			{key: "again", title: "overwrite it, 1 MiB writes", must: data},
			{key: "rand-write", title: fmt.Sprintf("%d random 4 KiB writes into it", warmPages), must: data},
			{key: "mmap-write", title: "a store into each page of a mapping of it, munmap", must: data},
			{key: "synced", title: "write a new file of " + size + ", fsync", must: data},
		}, readRows("upper file of "+size, data)),
	}
	x.measure = func(m *mounted, _ int) (values, error) {
		return b.worker(x.deadline, m, "writing", m.root(), b.base, fmt.Sprint(b.ioSize()))
	}
	return x
}

// timeWriting writes a file in all ways, then reads it in all. Its arguments: the directory, one of the scratch file system, the
// size.
func timeWriting(args []string) (values, error) {
	size, err := number(args[2])
	if err != nil {
		return nil, err
	}
	path := filepath.Join(args[0], ioName)
	made, err := fill(path, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, size)
	if err != nil {
		return nil, err
	}
	v := values{"new": made.written, "synced": made.synced}
	for _, w := range []struct {
		key  string
		work func(fd int, size int64) error
	}{
		{"again", writeAll},
		{"rand-write", randomWrites},
		{"mmap-write", storePages},
	} {
		// What the one before left dirty is not for this one to wait for.
		if err := syncPath(path, unix.Fsync); err != nil {
			return nil, err
		}
		if v[w.key], err = passes(path, unix.O_RDWR, w.work); err != nil {
			return nil, err
		}
	}
	reads, err := timeReading([]string{path, args[1]})
	for key, t := range reads {
		v[key] = t
	}
	return v, err
}

func writeAll(fd int, size int64) error {
	buffer := make([]byte, chunk)
	for offset := int64(0); offset < size; offset += chunk {
		if err := pwriteAll(fd, buffer[:min(chunk, size-offset)], offset); err != nil {
			return err
		}
	}
	return nil
}

func randomWrites(fd int, size int64) error {
	pick := rand.New(rand.NewPCG(10, 10))
	buffer := make([]byte, page)
	for range warmPages {
		if err := pwriteAll(fd, buffer, pick.Int64N(size/page)*page); err != nil {
			return err
		}
	}
	return nil
}

// storePages stores a byte into each page of a mapping.
func storePages(fd int, size int64) error {
	m, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	for i := 0; i < len(m); i += page {
		m[i]++
	}
	return unix.Munmap(m)
}
