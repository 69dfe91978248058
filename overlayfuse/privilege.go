package overlayfuse

import (
	"sync"

	"golang.org/x/sys/unix"
)

// initUserNS is the inode number of the initial user namespace.
// Source: include/uapi/linux/nsfs.h:USER_NS_INIT_INO (Linux 6.18).
const initUserNS = 0xEFFFFFFD

// privileged tells whether the process has CAP_SYS_ADMIN in the initial user namespace: only then are trusted.*
// xattrs, FUSE passthrough and private read-only mounts of any layer to be had.
var privileged = sync.OnceValue(func() bool {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/user", &st); err == nil && st.Ino != initUserNS {
		return false
	}
	return hasCapability(unix.CAP_SYS_ADMIN)
})

// hasCapability looks at the effective set of the process, whatever its user namespace.
func hasCapability(c uint) bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	return data[c/32].Effective&(1<<(c%32)) != 0
}
