package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// The workers of the experiments on a tree: each goes once over all of it.

const (
	direntBytes = 64 << 10
	readBytes   = 64 << 10
	warmPasses  = 5
)

// treeNames are the objects of a tree, below the directory that it is in.
type treeNames struct{ files, dirs, others []string }

func (n treeNames) all() int { return len(n.files) + len(n.dirs) + len(n.others) }

// namesOf lists what is in dir, with paths below root instead.
func namesOf(dir, root string) (n treeNames, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		path = root + path[len(dir):]
		switch {
		case d.IsDir():
			n.dirs = append(n.dirs, path)
		case d.Type().IsRegular():
			n.files = append(n.files, path)
		default:
			n.others = append(n.others, path)
		}
		return nil
	})
	return n, err
}

// timeTree times a pass over a tree, cold and warm, and the median of the warm ones. Its arguments: the pass, the tree, the lower
// directory that has the same names, a directory of the scratch file system.
func timeTree(args []string) (values, error) {
	pass, ok := treePasses[args[0]]
	if !ok {
		return nil, fmt.Errorf("pass %q: %w", args[0], unix.EINVAL)
	}
	root := args[1]
	n, err := namesOf(args[2], root)
	if err != nil {
		return nil, err
	}
	if err := dropCaches(args[3]); err != nil {
		return nil, err
	}
	once := func() (float64, error) {
		start := time.Now()
		err := pass(root, n)
		return since(start), err
	}
	cold, err := once()
	if err != nil {
		return nil, err
	}
	var warm []float64
	for range warmPasses {
		t, err := once()
		if err != nil {
			return nil, err
		}
		warm = append(warm, t)
	}
	return values{"cold": cold, "warm": middle(warm)}, nil
}

var treePasses = map[string]func(root string, n treeNames) error{
	"walk": func(root string, n treeNames) error {
		seen, err := walk(unix.AT_FDCWD, root)
		if err == nil && seen+1 != n.all() {
			err = fmt.Errorf("%d objects below %s, want %d: %w", seen, root, n.all()-1, unix.EUCLEAN)
		}
		return err
	},
	"stat": func(_ string, n treeNames) error {
		for _, list := range [][]string{n.files, n.dirs, n.others} {
			for _, p := range list {
				if err := statPath(p); err != nil {
					return err
				}
			}
		}
		return nil
	},
	"missing": func(_ string, n treeNames) error {
		for _, p := range n.files {
			if err := statPath(p + ".none"); !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("%s.none is there: %w", p, errors.Join(err, unix.EUCLEAN))
			}
		}
		return nil
	},
	"readdir": func(_ string, n treeNames) error {
		buffer := make([]byte, direntBytes)
		for _, p := range n.dirs {
			fd, err := unix.Open(p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return named("open", p, err)
			}
			for got := 1; got > 0 && err == nil; {
				got, err = unix.Getdents(fd, buffer)
			}
			if err = errors.Join(err, unix.Close(fd)); err != nil {
				return named("readdir", p, err)
			}
		}
		return nil
	},
	"read": func(_ string, n treeNames) error {
		buffer := make([]byte, readBytes)
		for _, p := range n.files {
			if err := readWhole(p, buffer); err != nil {
				return err
			}
		}
		return nil
	},
}

// walk lists a directory and all below it, and looks at each object: what find -ls does. It returns how many there are.
func walk(dirfd int, name string) (int, error) {
	fd, err := unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, named("open", name, err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written
	seen := 0
	buffer := make([]byte, direntBytes)
	var names, dirs []string
	for {
		n, err := unix.Getdents(fd, buffer)
		if err != nil {
			return seen, named("readdir", name, err)
		}
		if n == 0 {
			break
		}
		_, _, names = unix.ParseDirent(buffer[:n], -1, names)
	}
	for _, child := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(fd, child, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return seen, named("stat", child, err)
		}
		seen++
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			dirs = append(dirs, child)
		}
	}
	for _, child := range dirs {
		n, err := walk(fd, child)
		seen += n
		if err != nil {
			return seen, err
		}
	}
	return seen, nil
}

// readWhole opens path, reads to its end and closes it.
func readWhole(path string, buffer []byte) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return named("open", path, err)
	}
	for got := 1; got > 0 && err == nil; {
		got, err = unix.Read(fd, buffer)
	}
	return named("read", path, errors.Join(err, unix.Close(fd)))
}
