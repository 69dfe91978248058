package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
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
		err := watchPressure(pressureFiles(), func() {
			if n := overlayfuse.YieldMemory(); n > 0 {
				debug.FreeOSMemory()
				logrus.WithField("bytes", n).Debug("memory is scarce: listings are given up")
			}
		})
		logrus.WithError(err).Debug("nothing tells when memory is scarce")
	}()
}

// pressureFiles tell of memory: that of the whole machine, and of the control group of the process, which may have less.
func pressureFiles() []string {
	files := []string{"/proc/pressure/memory"}
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return files
	}
	roots, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil || len(roots) == 0 {
		return files
	}
	for line := range strings.Lines(string(groups)) {
		if own, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			files = append(files, filepath.Join(roots[0].Mountpoint, own, "memory.pressure"))
		}
	}
	return files
}

// watchPressure calls give each time that one of the files tells of scarce memory. It returns with an error only, when none is left that
// could: those of open(2), write(2) and poll(2), and ENODEV of a control group that is gone.
func watchPressure(files []string, give func()) error {
	var watched []unix.PollFd
	var errs []error
	for _, path := range files {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err == nil {
			if _, err = unix.Write(fd, append([]byte(scarce), 0)); err == nil {
				watched = append(watched, unix.PollFd{Fd: int32(fd), Events: unix.POLLPRI})
				continue
			}
			_ = unix.Close(fd) // nothing to lose
		}
		errs = append(errs, fmt.Errorf("have %s tell of %q: %w", path, scarce, err))
	}
	for len(watched) > 0 {
		if _, err := unix.Poll(watched, -1); err != nil && !errors.Is(err, unix.EINTR) {
			errs = append(errs, fmt.Errorf("poll: %w", err))
			break
		}
		tells := false
		watched = slices.DeleteFunc(watched, func(p unix.PollFd) bool {
			gone := p.Revents&(unix.POLLERR|unix.POLLNVAL) != 0
			tells = tells || !gone && p.Revents != 0
			if gone {
				_ = unix.Close(int(p.Fd)) // nothing to lose
				errs = append(errs, fmt.Errorf("poll: %w", unix.ENODEV))
			}
			return gone
		})
		if tells {
			give()
		}
	}
	for _, p := range watched {
		_ = unix.Close(int(p.Fd)) // nothing to lose
	}
	return errors.Join(errs...)
}
