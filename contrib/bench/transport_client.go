package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// transportOps are what a client does.
var transportOps = []string{"open", "missing", "getattr"}

// transportClient works on a mount: DIRECTORY CLIENTS COUNT PAUSE [here]. Each client does each operation COUNT times; after every
// 20 it pauses for PAUSE µs. With "here" all runs on CPU 0. It gives the latencies in µs, operations per second, and their number.
func transportClient(args []string) (values, error) {
	var n [3]int
	for i := range n {
		var err error
		if n[i], err = strconv.Atoi(args[1+i]); err != nil {
			return nil, err
		}
	}
	if len(args) > 4 {
		var set unix.CPUSet
		set.Set(0)
		if err := pinAll(&set); err != nil {
			return nil, err
		}
	}
	clients, count, pause := n[0], n[1], time.Duration(n[2])*time.Microsecond
	v := values{"operations": float64(clients * count * len(transportOps))}
	start := time.Now()
	for _, op := range transportOps {
		all := make([][]float64, clients)
		errs := make([]error, clients)
		var wg sync.WaitGroup
		for c := range clients {
			wg.Go(func() { all[c], errs[c] = transportLoop(op, args[0], c, count, pause) })
		}
		wg.Wait()
		for _, err := range errs {
			if err != nil {
				return nil, err
			}
		}
		took := slices.Sorted(slices.Values(slices.Concat(all...)))
		sum := 0.0
		for _, t := range took {
			sum += t
		}
		v[op+" mean"] = sum / float64(len(took))
		v[op+" median"] = took[len(took)/2]
		v[op+" p99"] = took[len(took)*99/100]
	}
	v["rate"] = v["operations"] / time.Since(start).Seconds()
	return v, nil
}

// pinAll has all threads of this process run on the CPUs of set, and those that they start.
func pinAll(set *unix.CPUSet) error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range tasks {
		tid, err := strconv.Atoi(t.Name())
		if err == nil {
			err = unix.SchedSetaffinity(tid, set)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// transportLoop does one operation again and again, by raw system calls on a thread of its own, as a C program would.
func transportLoop(op, dir string, client, count int, pause time.Duration) ([]float64, error) {
	runtime.LockOSThread()
	file, err := unix.BytePtrFromString(fmt.Sprintf("%s/f%d", dir, client))
	if err != nil {
		return nil, err
	}
	names := make([]*byte, count)
	for i := range names {
		if names[i], err = unix.BytePtrFromString(fmt.Sprintf("%s/x%d-%d-%d", dir, client, i, time.Now().UnixNano())); err != nil {
			return nil, err
		}
	}
	fd, errno := rawOpen(file)
	if errno != 0 {
		return nil, fmt.Errorf("open f%d: %w", client, errno)
	}
	defer func() { _ = unix.Close(fd) }() // nothing was written
	var empty byte
	var st unix.Statx_t
	took := make([]float64, count)
	for i := range took {
		if pause > 0 && i%20 == 0 {
			time.Sleep(pause)
		}
		start := time.Now()
		switch op {
		case "open":
			var f int
			if f, errno = rawOpen(file); errno == 0 {
				_, _, errno = unix.RawSyscall(unix.SYS_CLOSE, uintptr(f), 0, 0)
			}
		case "missing":
			if _, _, errno = unix.RawSyscall(unix.SYS_ACCESS, uintptr(unsafe.Pointer(names[i])), 0, 0); errno == unix.ENOENT {
				errno = 0
			}
		default:
			_, _, errno = unix.RawSyscall6(unix.SYS_STATX, uintptr(fd), uintptr(unsafe.Pointer(&empty)),
				unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, uintptr(unsafe.Pointer(&st)), 0)
		}
		if errno != 0 {
			return nil, fmt.Errorf("%s: %w", op, errno)
		}
		took[i] = float64(time.Since(start)) / 1e3
	}
	return took, nil
}

func rawOpen(path *byte) (int, unix.Errno) {
	at := unix.AT_FDCWD
	fd, _, errno := unix.RawSyscall6(unix.SYS_OPENAT, uintptr(at), uintptr(unsafe.Pointer(path)), unix.O_RDONLY|unix.O_CLOEXEC, 0, 0, 0)
	return int(fd), errno
}

// burn uses a CPU for a number of seconds, and gives how much work that was.
func burn(args []string) (values, error) {
	seconds, err := strconv.ParseFloat(args[0], 64)
	if err != nil {
		return nil, err
	}
	work, x := 0.0, 1.0
	for start := time.Now(); since(start) < seconds; work++ {
		for range 10_000 {
			x = x*1.0000001 + 1
		}
	}
	return values{"work": work, "x": x}, nil
}
