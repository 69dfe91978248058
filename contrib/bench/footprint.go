package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// What the servers have in memory: with many idle mounts of one image, and for each inode that the kernel knows.

const idleMounts = 100

func (b *bench) inodes() int {
	if b.quick {
		return 30_000
	}
	return 100_000
}

// inodesLower holds many small directories of empty files.
func (b *bench) inodesLower() (*lower, error) {
	return b.lowerOnce("inodes", func(dir string) error {
		for i := range b.inodes() / 100 {
			sub := filepath.Join(dir, fmt.Sprintf("d%04d", i))
			if err := os.Mkdir(sub, 0o755); err != nil {
				return err
			}
			for j := range 99 {
				path := filepath.Join(sub, smallName(j))
				if err := unix.Mknod(path, unix.S_IFREG|0o644, 0); err != nil {
					return named("mknod", path, err)
				}
			}
		}
		return nil
	})
}

func (b *bench) footprints() []experiment {
	servers := []system{fuseOverlayfs, ours}
	idle := experiment{
		name:     "memory-idle",
		systems:  servers,
		deadline: b.within(3 * time.Minute),
		rows: []row{{
			key: "rss", title: fmt.Sprintf("resident memory of the servers of %d idle mounts of one image", idleMounts), unit: bytesUnit,
			must: []bound{atMost(30 << 20)},
		}},
	}
	idle.run = func(y system, _ int) (values, error) {
		low, err := b.goTree()
		if err != nil {
			return nil, err
		}
		f, err := b.fleet(y, low, idleMounts, idle.deadline)
		if err != nil {
			return nil, errors.Join(err, b.disband(f))
		}
		time.Sleep(rest) // what only the start needed may go
		rss, err := f.resident()
		return values{"rss": rss}, errors.Join(err, b.disband(f))
	}
	inodes := experiment{
		name:     "memory-inodes",
		systems:  servers,
		deadline: b.within(3 * time.Minute),
		rows: []row{{
			key: "each", title: fmt.Sprintf("growth of the server's resident memory by stat of %d files, for each", b.inodes()), unit: bytesUnit,
			must: []bound{atMost(500)},
		}},
	}
	inodes.run = func(y system, _ int) (values, error) {
		low, err := b.inodesLower()
		if err != nil {
			return nil, err
		}
		f, err := b.fleet(y, low, 1, inodes.deadline)
		if err != nil {
			return nil, errors.Join(err, b.disband(f))
		}
		each, err := b.growth(f, low, inodes.deadline)
		return values{"each": each}, errors.Join(err, b.disband(f))
	}
	return []experiment{idle, inodes}
}

// growth is by how many bytes f's server grows with each object of low that is looked at and stays in the kernel's cache.
func (b *bench) growth(f *fleet, low *lower, deadline time.Duration) (float64, error) {
	time.Sleep(rest)
	before, err := f.resident()
	if err != nil {
		return 0, err
	}
	if _, err := b.worker(deadline, f.mounts[0], "visit", f.points[0], low.dir); err != nil {
		return 0, err
	}
	time.Sleep(rest)
	after, err := f.resident()
	return (after - before) / float64(b.inodes()), err
}

// visit looks at all objects of a tree. Its arguments: the tree, the lower directory that has the same names.
func visit(args []string) (values, error) {
	n, err := namesOf(args[1], args[0])
	if err != nil {
		return nil, err
	}
	return values{}, treePasses["stat"](args[0], n)
}
