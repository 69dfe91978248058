package overlayfuse

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Owners as the layers store them and as the mount shows them (uidmapping, gidmapping, squash_to_*).

func (fs *FS) shownUID(stored uint32) uint32 {
	if fs.cfg.SquashUID != nil {
		return *fs.cfg.SquashUID
	}
	return shownID(fs.cfg.UIDMap, stored)
}

func (fs *FS) shownGID(stored uint32) uint32 {
	if fs.cfg.SquashGID != nil {
		return *fs.cfg.SquashGID
	}
	return shownID(fs.cfg.GIDMap, stored)
}

// storedOwner is the owner to give to a real object; -1 leaves one as it is. A squashed mount has one owner, so a
// change of it is taken as done.
//
// Errors: EOVERFLOW for an id that the mapping does not know.
func (fs *FS) storedOwner(uid uint32, hasUID bool, gid uint32, hasGID bool) (u, g int, err error) {
	u, g = -1, -1
	if hasUID && fs.cfg.SquashUID == nil {
		id, ok := storedID(fs.cfg.UIDMap, uid)
		if !ok {
			return -1, -1, fmt.Errorf("user %d is not in uidmapping: %w", uid, unix.EOVERFLOW)
		}
		u = int(id)
	}
	if hasGID && fs.cfg.SquashGID == nil {
		id, ok := storedID(fs.cfg.GIDMap, gid)
		if !ok {
			return -1, -1, fmt.Errorf("group %d is not in gidmapping: %w", gid, unix.EOVERFLOW)
		}
		g = int(id)
	}
	return u, g, nil
}
