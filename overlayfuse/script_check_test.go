package overlayfuse_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/internal/fstool"
)

// finish ends a script, whatever became of it: it unmounts, and returns what is not as it has to be.
func (s *script) finish() error {
	errs := []error{s.stopAgents()}
	for len(s.mounts) > 0 {
		if _, err := s.umount(s.mounts[len(s.mounts)-1].target); err != nil {
			errs = append(errs, err, s.abort())
		}
	}
	errs = append(errs, s.stopAgents())
	for layer := range s.lowers {
		errs = append(errs, s.checkLower(layer))
	}
	return errors.Join(append(errs, leftover(s.dir))...)
}

// abort frees everything that may hang: it detaches every mount, aborting its requests, and kills the servers.
func (s *script) abort() error {
	var errs []error
	for i := len(s.mounts) - 1; i >= 0; i-- {
		target := filepath.Join(s.dir, s.mounts[i].target)
		_ = unix.Unmount(target, unix.MNT_FORCE) // aborts the requests of a FUSE mount; EBUSY is what it says of others
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("detach %s: %w", target, err))
		}
	}
	s.mounts = nil
	return errors.Join(append(errs, killServers(s.server()))...)
}

// recordLower keeps a layer's description, the first time that it is mounted as a lower.
func (s *script) recordLower(layer string) error {
	if _, ok := s.lowers[layer]; ok {
		return nil
	}
	t, err := fstool.Layer(filepath.Join(s.dir, layer))
	if err == nil {
		s.lowers[layer] = t
	}
	return err
}

// checkLower returns an error if a lower layer changed since it was recorded.
func (s *script) checkLower(layer string) error {
	was, ok := s.lowers[layer]
	if !ok {
		return fmt.Errorf("%s was never a lower layer", layer)
	}
	is, err := fstool.Layer(filepath.Join(s.dir, layer))
	if err != nil {
		return err
	}
	if is != was {
		return fmt.Errorf("the lower layer %s changed: was\n%sis\n%s", layer, was, is)
	}
	return nil
}

// leftover returns an error if something is mounted below dir, or a process runs a binary from there.
func leftover(dir string) error {
	var errs []error
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		if f := strings.Fields(lines.Text()); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			errs = append(errs, fmt.Errorf("left mounted: %s", f[4]), unix.Unmount(f[4], unix.MNT_DETACH))
		}
	}
	for _, pid := range processesOf(dir + "/") {
		errs = append(errs, fmt.Errorf("left running: process %d", pid), unix.Kill(pid, unix.SIGKILL))
	}
	return errors.Join(append(errs, mounts.Close())...)
}

// processesOf returns the processes whose binary's path starts with prefix.
func processesOf(prefix string) []int {
	var pids []int
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return nil
	}
	for _, link := range links {
		exe, err := os.Readlink(link)
		if err != nil || !strings.HasPrefix(exe, prefix) {
			continue // gone meanwhile, a kernel thread, or not ours
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link))); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// waitServers waits until no server runs; those that stay on after their last mount went are killed and reported.
func waitServers(binary string) error {
	for end := time.Now().Add(busyTime); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if len(processesOf(binary)) == 0 {
			return nil
		}
	}
	return errors.Join(errors.New("the server runs on after its unmount"), killServers(binary))
}

func killServers(binary string) error {
	var errs []error
	for _, pid := range processesOf(binary) {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// checkServerFiles returns an error if a server holds a regular file of a layer open (with more than O_PATH) although
// nothing is open in the mount. RELEASE is not waited for by close(2): it gets a while.
func (s *script) checkServerFiles() error {
	var open []string
	for end := time.Now().Add(busyTime); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		open = nil
		for _, pid := range processesOf(s.server()) {
			open = append(open, s.openFiles(pid)...)
		}
		if open == nil {
			return nil
		}
	}
	return fmt.Errorf("the server still has open: %s", strings.Join(open, ", "))
}

func (s *script) openFiles(pid int) []string {
	var open []string
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return nil
	}
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil || !strings.HasPrefix(target, s.dir+"/") || strings.HasPrefix(filepath.Base(target), ".log-") {
			continue
		}
		info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, filepath.Base(fd)))
		if err != nil {
			continue // closed meanwhile
		}
		var st unix.Stat_t
		if unix.Stat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		for _, line := range strings.Split(string(info), "\n") {
			if f := strings.Fields(line); len(f) == 2 && f[0] == "flags:" {
				if how, err := strconv.ParseInt(f[1], 8, 64); err == nil && how&unix.O_PATH == 0 {
					open = append(open, target)
				}
			}
		}
	}
	return open
}
