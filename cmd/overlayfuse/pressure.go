package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse"
)

// scarce is when memory is: tasks have waited for it for 5 % of two seconds. The kernel tells it at most once in that time; a
// shorter one is for the privileged. Source: Documentation/accounting/psi.rst (Linux 6.18).
const scarce = "some 100000 2000000"

// yieldMemory gives up half of what is only kept for speed whenever memory is scarce, as long as the process lives. Where the kernel
// tells nothing of it, all is kept: it is bounded.
func yieldMemory() {
	go func() {
		err := watchPressure(pressureFile(), func() {
			if n := overlayfuse.YieldMemory(); n > 0 {
				debug.FreeOSMemory()
				logrus.WithField("bytes", n).Debug("memory is scarce: listings are given up")
			}
		})
		logrus.WithError(err).Debug("nothing tells when memory is scarce")
	}()
}

// pressureFile tells of memory: that of the process's control group if it is in one, and else of the whole machine.
func pressureFile() string {
	const machine = "/proc/pressure/memory"
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return machine
	}
	for line := range strings.Lines(string(groups)) {
		own, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		if !ok {
			continue
		}
		roots, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
		if err != nil || len(roots) == 0 {
			return machine
		}
		// The root group has such a file as well, of which psi.rst says nothing.
		if path := filepath.Join(roots[0].Mountpoint, own, "memory.pressure"); own != "/" && unix.Access(path, unix.W_OK) == nil {
			return path
		}
	}
	return machine
}

// watchPressure calls give each time that the file tells of scarce memory. It returns with an error only: those of open(2), write(2)
// and poll(2), and ENODEV once the control group is gone.
func watchPressure(path string, give func()) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer func() { _ = unix.Close(fd) }() // nothing to lose
	if _, err := unix.Write(fd, append([]byte(scarce), 0)); err != nil {
		return fmt.Errorf("write %q to %s: %w", scarce, path, err)
	}
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}
		switch _, err := unix.Poll(p, -1); {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("poll %s: %w", path, err)
		case p[0].Revents&unix.POLLERR != 0:
			return fmt.Errorf("poll %s: %w", path, unix.ENODEV)
		default:
			give()
		}
	}
}
