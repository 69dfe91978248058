package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// workers are what "bench -worker NAME ARGUMENTS" runs, in a process of its own. Their arguments come from this program.
var workers = map[string]func(args []string) (values, error){
	"stat":          func(args []string) (values, error) { return values{}, statPath(args[0]) },
	"open":          func(args []string) (values, error) { return timeOpen(args[0]) },
	"pwrite":        func(args []string) (values, error) { return timeWrite(args[0]) },
	"chmod":         func(args []string) (values, error) { return timeChange(args[0], chmodOne) },
	"chown":         func(args []string) (values, error) { return timeChange(args[0], chownOne) },
	"append":        func(args []string) (values, error) { return timeEach(args, appendOne) },
	"chmod-all":     func(args []string) (values, error) { return timeEach(args, chmodOne) },
	"random":        timeRandom,
	"random-sparse": timeRandomSparse,
	"overwrite":     timeOverwrite,
	"first":         timeFirstWrites,
	"fsync":         timeSyncs,
	"read":          timeReads,
	"tree":          timeTree,
	"visit":         visit,
	"lookup":        timeLookups,
	"steps":         timeSteps,
	"exec":          timeExec,
	"reading":       timeReading,
	"writing":       timeWriting,
	"names":         timeNames,
	"small-io":      timeSmallIO,
	"fio":           timeFio,
}

// work runs a worker and prints its values as JSON on standard output.
func work(name string, args []string) int {
	debug.SetGCPercent(-1) // it lives for one workload
	f, ok := workers[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "no worker %q\n", name)
		return exitUsage
	}
	v, err := f(args)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(v)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitFailed
	}
	return exitOK
}

// since is the seconds since start.
func since(start time.Time) float64 { return time.Since(start).Seconds() }

func number(s string) (int64, error) { return strconv.ParseInt(s, 10, 64) }

func statPath(path string) error {
	var st unix.Stat_t
	return named("stat", path, unix.Lstat(path, &st))
}

// named wraps an errno with the call and the path.
func named(call, path string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: call, Path: path, Err: err}
}

// pwriteAll writes all of p at offset.
func pwriteAll(fd int, p []byte, offset int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, offset)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("pwrite at %d: %w", offset, err)
		}
		p, offset = p[n:], offset+int64(n)
	}
	return nil
}

// preadAll fills p from offset.
func preadAll(fd int, p []byte, offset int64) error {
	for len(p) > 0 {
		n, err := unix.Pread(fd, p, offset)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = unix.ENODATA
		}
		if err != nil {
			return fmt.Errorf("pread at %d: %w", offset, err)
		}
		p, offset = p[n:], offset+int64(n)
	}
	return nil
}

// syncPath runs f, fsync or syncfs, on a descriptor of path that is not open for writing.
func syncPath(path string, f func(fd int) error) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return named("open", path, err)
	}
	err = f(fd)
	return named("sync", path, errors.Join(err, unix.Close(fd)))
}
