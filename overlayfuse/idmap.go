package overlayfuse

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// overflowID is shown for an id that no mapping knows, as the kernel does.
// Source: kernel.overflowuid(5), default of /proc/sys/fs/overflowuid.
const overflowID = 65534

// IDMap shows Length consecutive ids of the layers, from Host on, as those from Mapped on.
// It is one triple of fuse-overlayfs's uidmapping= and gidmapping=: UID:MAPPED-UID:LEN (fuse-overlayfs(1)).
type IDMap struct {
	Host   uint32 // first id, as stored in the layers
	Mapped uint32 // first id, as the mount shows it
	Length uint32
}

// shownID is the id that the mount shows for one stored in a layer: overflowID if no mapping covers it.
func shownID(maps []IDMap, stored uint32) uint32 {
	if len(maps) == 0 {
		return stored
	}
	for _, m := range maps {
		if stored >= m.Host && stored-m.Host < m.Length {
			return m.Mapped + (stored - m.Host)
		}
	}
	return overflowID
}

// storedID is the id to store in a layer for one that the mount shows. False: no mapping covers it, which is
// EOVERFLOW to the caller, as for an unmapped id in a user namespace.
func storedID(maps []IDMap, shown uint32) (uint32, bool) {
	if len(maps) == 0 {
		return shown, true
	}
	for _, m := range maps {
		if shown >= m.Mapped && shown-m.Mapped < m.Length {
			return m.Host + (shown - m.Mapped), true
		}
	}
	return 0, false
}

// checkIDMaps refuses ranges that are empty, that run past the largest id or that overlap.
func checkIDMaps(name string, maps []IDMap) error {
	const lastID = 1<<32 - 2 // 2^32-1 is "no id", chown(2)
	overlap := func(a, b, la, lb uint32) bool {
		return uint64(a) < uint64(b)+uint64(lb) && uint64(b) < uint64(a)+uint64(la)
	}
	for i, m := range maps {
		if m.Length == 0 {
			return fmt.Errorf("%s: range %d:%d:%d is empty: %w", name, m.Host, m.Mapped, m.Length, unix.EINVAL)
		}
		if uint64(m.Host)+uint64(m.Length)-1 > lastID || uint64(m.Mapped)+uint64(m.Length)-1 > lastID {
			return fmt.Errorf("%s: range %d:%d:%d ends after the last id: %w", name, m.Host, m.Mapped, m.Length, unix.EINVAL)
		}
		for _, o := range maps[:i] {
			if overlap(m.Host, o.Host, m.Length, o.Length) || overlap(m.Mapped, o.Mapped, m.Length, o.Length) {
				return fmt.Errorf("%s: ranges %d:%d:%d and %d:%d:%d overlap: %w", name,
					o.Host, o.Mapped, o.Length, m.Host, m.Mapped, m.Length, unix.EINVAL)
			}
		}
	}
	return nil
}
