package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Many names made, changed and removed, in directories of 100.

const (
	namesInDir = 100
	fileBytes  = 200 // of a small new file
)

func (b *bench) names() int {
	if b.quick {
		return 3000
	}
	return 10_000
}

// namesLower holds the files that whiteouts are made of.
func (b *bench) namesLower() (*lower, error) {
	return b.lowerOnce("names", func(dir string) error {
		_, err := createNames(filepath.Join(dir, "lower"), b.names())
		return err
	})
}

func (b *bench) manyNames() []experiment {
	n := b.names()
	x := experiment{
		name:     "names",
		systems:  all,
		rounds:   b.everyRound,
		deadline: b.within(3 * time.Minute),
		lower:    b.namesLower,
		rows: []row{
			{key: "create", title: fmt.Sprintf("%d × create, write of %d bytes, close", n, fileBytes), must: slowNames},
			{key: "rewrite", title: fmt.Sprintf("%d × open, write, close of these", n)},
			{key: "reread", title: fmt.Sprintf("%d × open, read, close of these", n)},
			{key: "rename", title: fmt.Sprintf("%d × rename of these", n), must: slowNames},
			{key: "unlink", title: fmt.Sprintf("%d × unlink of these", n), must: slowNames},
			{key: "mkdir", title: fmt.Sprintf("%d × mkdir", n/3)},
			{key: "rmdir", title: fmt.Sprintf("%d × rmdir", n/3)},
			{key: "whiteout", title: fmt.Sprintf("%d × unlink of lower files", n), must: slowNames},
		},
	}
	x.measure = func(m *mounted, _ int) (values, error) {
		return b.worker(x.deadline, m, "names", m.root(), fmt.Sprint(n))
	}
	return []experiment{x}
}

// nameAt is the path of the i-th file.
func nameAt(dir string, i int) string {
	return filepath.Join(dir, fmt.Sprintf("d%03d", i/namesInDir), smallName(i%namesInDir))
}

// createNames makes n files, and returns how many seconds that took without the directories.
func createNames(dir string, n int) (float64, error) {
	for i := 0; i < n; i += namesInDir {
		if err := os.MkdirAll(filepath.Dir(nameAt(dir, i)), 0o755); err != nil {
			return 0, err
		}
	}
	return eachName(dir, n, func(path string) error {
		return writeSmall(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
	})
}

func writeSmall(path string, flags int) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return named("open", path, err)
	}
	err = pwriteAll(fd, make([]byte, fileBytes), 0)
	return named("write", path, errors.Join(err, unix.Close(fd)))
}

// eachName times f of n files.
func eachName(dir string, n int, f func(path string) error) (float64, error) {
	paths := make([]string, n)
	for i := range paths {
		paths[i] = nameAt(dir, i)
	}
	start := time.Now()
	for _, p := range paths {
		if err := f(p); err != nil {
			return 0, err
		}
	}
	return since(start), nil
}

// timeNames is the worker. Its arguments: a directory, which holds those of the lower in lower, and how many.
func timeNames(args []string) (values, error) {
	count, err := number(args[1])
	if err != nil {
		return nil, err
	}
	n := int(count)
	fresh, dirs := filepath.Join(args[0], "new"), filepath.Join(args[0], "dirs")
	if err := os.Mkdir(dirs, 0o755); err != nil {
		return nil, err
	}
	buffer := make([]byte, page)
	v := values{}
	for _, s := range []struct {
		key string
		do  func() (float64, error)
	}{
		{"create", func() (float64, error) { return createNames(fresh, n) }},
		{"rewrite", func() (float64, error) {
			return eachName(fresh, n, func(p string) error { return writeSmall(p, unix.O_WRONLY) })
		}},
		{"reread", func() (float64, error) {
			return eachName(fresh, n, func(p string) error { return readWhole(p, buffer) })
		}},
		{"rename", func() (float64, error) {
			return eachName(fresh, n, func(p string) error { return named("rename", p, unix.Rename(p, p+"x")) })
		}},
		{"unlink", func() (float64, error) {
			return eachName(fresh, n, func(p string) error { return named("unlink", p, unix.Unlink(p+"x")) })
		}},
		{"mkdir", func() (float64, error) {
			return eachDir(dirs, n/3, func(p string) error { return named("mkdir", p, unix.Mkdir(p, 0o755)) })
		}},
		{"rmdir", func() (float64, error) {
			return eachDir(dirs, n/3, func(p string) error { return named("rmdir", p, unix.Rmdir(p)) })
		}},
		{"whiteout", func() (float64, error) {
			return eachName(filepath.Join(args[0], "lower"), n, func(p string) error { return named("unlink", p, unix.Unlink(p)) })
		}},
	} {
		if v[s.key], err = s.do(); err != nil {
			return nil, err
		}
		if err := syncPath(args[0], unix.Syncfs); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// eachDir times f of n names in one directory.
func eachDir(dir string, n int, f func(path string) error) (float64, error) {
	start := time.Now()
	for i := range n {
		if err := f(filepath.Join(dir, smallName(i))); err != nil {
			return 0, err
		}
	}
	return since(start), nil
}
