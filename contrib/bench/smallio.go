package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Writes of all sizes into a file of the upper layer, and fsync.

const (
	smallIO  = 50_000 // writes of a few bytes, and of a page
	smallLog = 64     // bytes of a line of a log
)

func (b *bench) syncs() int {
	if b.quick {
		return 100
	}
	return 500
}

func (b *bench) smallIOs() experiment {
	data := []bound{against(kernel, 1.05)}
	x := experiment{
		name:     "upper-writes",
		systems:  all,
		rounds:   b.everyRound,
		deadline: b.within(3 * time.Minute),
		lower:    b.emptyLower,
		rows: []row{
			{key: "lines", title: fmt.Sprintf("%d × append of %d bytes", smallIO, smallLog), must: data},
			{key: "pages", title: fmt.Sprintf("%d × append of 4 KiB", smallIO), must: data},
			{key: "direct", title: fmt.Sprintf("%d × O_DIRECT write of 4 KiB", b.syncs()*5), must: data},
			{key: "fsync", title: fmt.Sprintf("%d × append of 4 KiB and fsync", b.syncs()), must: data},
		},
	}
	x.measure = func(m *mounted, _ int) (values, error) {
		return b.worker(x.deadline, m, "small-io", m.root(), fmt.Sprint(b.syncs()))
	}
	return x
}

// timeSmallIO is the worker. Its arguments: a directory, how many writes are synced.
func timeSmallIO(args []string) (values, error) {
	synced, err := number(args[1])
	if err != nil {
		return nil, err
	}
	// O_DIRECT needs an aligned buffer: a mapping is.
	data, err := unix.Mmap(-1, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	v := values{}
	for _, s := range []struct {
		key   string
		n     int
		bytes int
		flags int
		after func(fd int) error
	}{
		{"lines", smallIO, smallLog, unix.O_APPEND, nil},
		{"pages", smallIO, page, unix.O_APPEND, nil},
		{"direct", int(synced) * 5, page, unix.O_DIRECT, nil},
		{"fsync", int(synced), page, unix.O_APPEND, unix.Fsync},
	} {
		path := filepath.Join(args[0], s.key)
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|s.flags, 0o644)
		if err != nil {
			return nil, named("open", path, err)
		}
		start := time.Now()
		for i := 0; i < s.n && err == nil; i++ {
			err = pwriteAll(fd, data[:s.bytes], int64(i*s.bytes))
			if err == nil && s.after != nil {
				err = s.after(fd)
			}
		}
		v[s.key] = since(start)
		err = errors.Join(err, unix.Fsync(fd), unix.Close(fd))
		if err != nil {
			return nil, named("write", path, err)
		}
	}
	return v, nil
}
