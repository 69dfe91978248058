package main

import (
	"errors"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// The first open, write, chmod and chown of one big file of a lower layer.

const (
	bigName    = "big"
	sparseSize = 64 << 30
	// newMode and newOwner are what chmod and chown set.
	newMode  = 0o640
	newOwner = 1000
)

func (b *bench) bigSize() int64 {
	if b.quick {
		return 256 << 20
	}
	return 1 << 30
}

// bigLower holds one big file of random data.
func (b *bench) bigLower() (*lower, error) {
	return b.flatOnce("big", func(dir string) error {
		path := filepath.Join(dir, bigName)
		return errors.Join(writeRandom(path, b.bigSize(), 1), age(path), warm(path))
	})
}

// sparseLower holds one file larger than the disk, nearly all of it a hole.
func (b *bench) sparseLower() (*lower, error) {
	return b.lowerOnce("sparse", func(dir string) error {
		path := filepath.Join(dir, bigName)
		return errors.Join(writeSparse(path, sparseSize), age(path))
	})
}

func (b *bench) latencies() []experiment {
	small := []row{{key: "data", title: "data in the upper", unit: bytesUnit, must: []bound{atMost(0)}}}
	rows := map[string][]row{
		"open": append([]row{{key: "time", title: "open O_RDWR, close", must: []bound{atMost(1e-3)}}}, small...),
		"pwrite": {
			{key: "time", title: "open, first 4 KiB in the middle, close"},
			{key: "pwrite", title: "the pwrite alone", must: []bound{atMost(5e-3)}},
			{key: "allocated", title: "allocated in the upper", unit: bytesUnit, must: []bound{atMost(64 << 10)}},
			{key: "data", title: "data in the upper", unit: bytesUnit},
		},
		"chmod": append([]row{{key: "time", title: "chmod", must: []bound{atMost(1e-3)}}}, small...),
		"chown": append([]row{{key: "time", title: "chown", must: []bound{atMost(1e-3)}}}, small...),
	}
	var list []experiment
	for _, size := range []string{"big", "sparse"} {
		for _, op := range []string{"open", "pwrite", "chmod", "chown"} {
			x := experiment{
				name:     size + "-" + op,
				systems:  overlays,
				rounds:   func(system) int { return b.rounds },
				deadline: b.within(120 * time.Second),
				lower:    b.bigLower,
				rows:     rows[op],
			}
			if size == "sparse" {
				x.lower = b.sparseLower
				if b.quick {
					x.deadline = b.within(15 * time.Second) // fuse-overlayfs reads the holes, too
				}
				x.rounds = func(y system) int {
					if y == ours {
						return b.rounds
					}
					return 1
				}
			}
			x.measure = func(m *mounted, _ int) (values, error) {
				v, err := b.worker(x.deadline, m, op, filepath.Join(m.root(), bigName))
				if err != nil {
					return nil, err
				}
				u, err := statUpper(m, bigName)
				if err != nil {
					return nil, err
				}
				v["data"], v["allocated"] = float64(u.dataBytes), float64(u.allocatedBytes)
				return v, nil
			}
			list = append(list, x)
		}
	}
	return list
}

// timeOpen times opening path for writing and closing it.
func timeOpen(path string) (values, error) {
	if err := statPath(path); err != nil {
		return nil, err
	}
	start := time.Now()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Close(fd)
	}
	return values{"time": since(start)}, named("open", path, err)
}

// timeWrite times a first write in path's middle, and has it reach the upper file.
func timeWrite(path string) (values, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, named("stat", path, err)
	}
	data := make([]byte, 4<<10)
	_, _ = newRandom(2).Read(data) // never fails
	offset := st.Size / 2 &^ 4095
	start := time.Now()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, named("open", path, err)
	}
	opened := time.Now()
	err = pwriteAll(fd, data, offset)
	written := time.Now()
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return nil, named("write", path, err)
	}
	v := values{"time": since(start), "pwrite": written.Sub(opened).Seconds()}
	return v, syncPath(path, unix.Fsync)
}

// timeChange times change of path.
func timeChange(path string, change func(path string) error) (values, error) {
	if err := statPath(path); err != nil {
		return nil, err
	}
	start := time.Now()
	err := change(path)
	return values{"time": since(start)}, err
}

func chmodOne(path string) error { return named("chmod", path, unix.Chmod(path, newMode)) }

func chownOne(path string) error { return named("chown", path, unix.Lchown(path, newOwner, newOwner)) }
