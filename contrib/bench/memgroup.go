package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// memoryGroup is a memory cgroup, version 1 or 2. Page cache is charged to the group of who had it read.
type memoryGroup struct {
	dir   string
	cache string // the name in memory.stat
}

// join creates a memory group, in which all FUSE servers are started until leave.
//
// Errors: ENODEV if no memory controller is there.
func (b *bench) join() error {
	name := "overlayfuse-" + filepath.Base(b.base)
	for _, g := range []memoryGroup{
		{"/sys/fs/cgroup/memory", "total_cache"},
		{"/sys/fs/cgroup", "file"},
	} {
		if _, err := os.Stat(filepath.Join(g.dir, "cgroup.procs")); err != nil {
			continue
		}
		g.dir = filepath.Join(g.dir, name)
		if err := os.Mkdir(g.dir, 0o755); err != nil {
			return err
		}
		b.group = &g
		if _, err := g.pageCache(); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", g.dir, unix.ENODEV), b.leave())
		}
		return nil
	}
	return fmt.Errorf("no memory cgroup: %w", unix.ENODEV)
}

// leave removes the group.
//
// Preconditions: all that was started in it has ended.
func (b *bench) leave() error {
	g := b.group
	b.group = nil
	var err error
	for range 50 {
		if err = os.Remove(g.dir); !errors.Is(err, unix.EBUSY) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

// enter has cmd started in the group.
func (g *memoryGroup) enter(cmd *exec.Cmd) {
	script := `echo 0 >"$0" && exec "$@"`
	cmd.Args = append([]string{"sh", "-c", script, filepath.Join(g.dir, "cgroup.procs"), cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
}

// pageCache is the page cache that is charged to the group, in bytes.
func (g *memoryGroup) pageCache() (float64, error) {
	f, err := os.Open(filepath.Join(g.dir, "memory.stat"))
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }() // nothing was written
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), g.cache+" "); ok {
			n, err := number(rest)
			return float64(n), err
		}
	}
	return 0, fmt.Errorf("no %s in %s: %w", g.cache, f.Name(), unix.ENODATA)
}
