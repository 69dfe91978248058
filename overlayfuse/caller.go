package overlayfuse

import (
	"bufio"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// What a request does not say of its caller, /proc does.

// callerField is a field of /proc/PID/status, "" for a process that can't be seen.
func callerField(pid uint32, field string) string {
	fd, err := unix.Open("/proc/"+strconv.FormatUint(uint64(pid), 10)+"/status", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	f := os.NewFile(uintptr(fd), "status")
	defer func() { _ = f.Close() }() // read-only
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), field+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// callerHas tells whether a process has a capability in its effective set. One that can't be seen has none.
func callerHas(pid uint32, capability uint) bool {
	caps, err := strconv.ParseUint(callerField(pid, "CapEff"), 16, 64)
	return err == nil && caps&(1<<capability) != 0
}

// callerInGroup tells whether gid, as the mount shows it, is among the caller's groups.
func callerInGroup(c fuse.Caller, gid uint32) bool {
	return c.Gid == gid || slices.Contains(strings.Fields(callerField(c.Pid, "Groups")), strconv.FormatUint(uint64(gid), 10))
}
