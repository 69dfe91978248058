package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Many small files: appending to each, chmod of each, chown -R.

const (
	smallFiles  = 1000
	appendBytes = 100
	treeFile    = 100 << 10 // bytes
	treeDirs    = 100
)

// smallLower holds smallFiles files of 4 to 16 KiB.
func (b *bench) smallLower() (*lower, error) {
	return b.flatOnce("small", func(dir string) error {
		sizes := rand.New(rand.NewPCG(3, 3))
		return makeFiles(dir, smallFiles, func() int64 { return 4<<10 + sizes.Int64N(12<<10+1) })
	})
}

// makeFiles makes n files, named as smallName says.
func makeFiles(dir string, n int, size func() int64) error {
	for i := range n {
		path := filepath.Join(dir, smallName(i))
		if err := errors.Join(writeRandom(path, size(), uint64(i)), age(path)); err != nil {
			return err
		}
	}
	return nil
}

func smallName(i int) string { return fmt.Sprintf("f%05d", i) }

// treeFiles is the number of files in the tree of chown -R.
func (b *bench) treeFiles() int {
	if b.quick {
		return 2000
	}
	return 10000
}

// treeLower holds the directory tree, of treeDirs directories.
func (b *bench) treeLower() (*lower, error) {
	return b.lowerOnce("tree", func(dir string) error {
		for d := range treeDirs {
			sub := filepath.Join(dir, "tree", fmt.Sprintf("d%03d", d))
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return err
			}
			if err := makeFiles(sub, b.treeFiles()/treeDirs, func() int64 { return treeFile }); err != nil {
				return err
			}
		}
		return nil
	})
}

func (b *bench) smalls() []experiment {
	var list []experiment
	for _, op := range []string{"append", "chmod-all"} {
		x := experiment{
			name:     "small-" + op,
			systems:  all,
			deadline: b.within(5 * time.Minute),
			lower:    b.smallLower,
			rows: []row{
				{key: "time", title: fmt.Sprintf("%d small files", smallFiles), must: []bound{against(kernel, 0.1)}},
				{key: "synced", title: "the same, synced"},
				{key: "usage", title: "disk usage of the upper", unit: bytesUnit},
			},
		}
		x.measure = func(m *mounted, _ int) (values, error) {
			v, err := b.worker(x.deadline, m, op, m.root(), m.upper(), fmt.Sprint(smallFiles))
			if err != nil {
				return nil, err
			}
			usage, err := diskUsage(m.upper())
			v["usage"] = float64(usage)
			return v, err
		}
		list = append(list, x)
	}
	return append(list, b.chownTree())
}

func (b *bench) chownTree() experiment {
	x := experiment{
		name:     "chown-tree",
		systems:  all,
		deadline: b.within(10 * time.Minute),
		lower:    b.treeLower,
		rows: []row{
			{
				key: "time", title: fmt.Sprintf("chown -R of %d files of 100 KiB", b.treeFiles()),
				must: []bound{against(kernel, 1)},
			},
			{key: "usage", title: "disk usage of the upper, of the tree's size", unit: percent, must: []bound{atMost(2)}},
		},
	}
	x.measure = func(m *mounted, _ int) (values, error) {
		owner := fmt.Sprintf("%d:%d", newOwner, newOwner)
		t, err := b.timed(x.deadline, m, exec.Command("chown", "-R", owner, filepath.Join(m.root(), "tree")))
		if err != nil {
			return nil, err
		}
		if err := b.settle(); err != nil {
			return nil, err
		}
		usage, err := diskUsage(m.upper())
		return values{"time": t, "usage": 100 * float64(usage) / float64(b.treeFiles()*treeFile)}, err
	}
	return x
}

// timeEach times change of each of the files in a directory. Its arguments: the directory, the upper, how many.
func timeEach(args []string, change func(path string) error) (values, error) {
	n, err := number(args[2])
	if err != nil {
		return nil, err
	}
	paths := make([]string, n)
	for i := range paths {
		paths[i] = filepath.Join(args[0], smallName(i))
	}
	start := time.Now()
	for _, p := range paths {
		if err := change(p); err != nil {
			return nil, err
		}
	}
	v := values{"time": since(start)}
	for _, dir := range args[:2] {
		if err := syncPath(dir, unix.Syncfs); err != nil {
			return nil, err
		}
	}
	v["synced"] = since(start)
	return v, nil
}

func appendOne(path string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_APPEND|unix.O_CLOEXEC, 0)
	if err != nil {
		return named("open", path, err)
	}
	data := make([]byte, appendBytes)
	n, err := unix.Write(fd, data)
	if err == nil && n < len(data) {
		err = unix.ENOSPC
	}
	return named("write", path, errors.Join(err, unix.Close(fd)))
}
