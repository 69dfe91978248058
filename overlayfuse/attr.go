package overlayfuse

import (
	"fmt"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// attr fills the attributes that the mount shows for in.
func (fs *FS) attr(in *inode, out *fuse.Attr) error {
	st, err := fs.stat(in)
	if err != nil {
		return err
	}
	out.Ino = in.ino
	out.Size = uint64(st.Size)
	out.Blocks = uint64(st.Blocks)
	out.Atime, out.Atimensec = uint64(st.Atim.Sec), uint32(st.Atim.Nsec)
	out.Mtime, out.Mtimensec = uint64(st.Mtim.Sec), uint32(st.Mtim.Nsec)
	out.Ctime, out.Ctimensec = uint64(st.Ctim.Sec), uint32(st.Ctim.Nsec)
	out.Mode = st.Mode
	out.Nlink = fs.nlink(in, uint32(st.Nlink))
	out.Uid, out.Gid = fs.shownUID(st.Uid), fs.shownGID(st.Gid)
	out.Rdev = deviceNumber(st.Rdev)
	out.Blksize = uint32(st.Blksize)
	if dataElsewhere(in) {
		out.Blocks = max(out.Blocks, uint64(in.lower.st.Blocks))
	}
	return nil
}

// deviceNumber is a device number in the 32 bits that FUSE has for it. Compare: include/linux/kdev_t.h:new_encode_dev().
func deviceNumber(dev uint64) uint32 {
	major, minor := unix.Major(dev), unix.Minor(dev)
	return minor&0xff | major<<8 | minor&^0xff<<12
}

// kernelDevice is deviceNumber's inverse. Compare: include/linux/kdev_t.h:new_decode_dev().
func kernelDevice(dev uint32) uint64 {
	return unix.Mkdev(dev&0xfff00>>8, dev&0xff|dev>>12&0xfff00)
}

// dataElsewhere tells that blocks of the file's data belong to a lower object, and its attributes to the upper one.
func dataElsewhere(in *inode) bool {
	if in.typ != unix.S_IFREG || in.lower == nil {
		return false
	}
	u := in.upper()
	return u.exists && u.data != dataHere
}

// nlink is the link count to show for an object that has real links.
func (fs *FS) nlink(in *inode, real uint32) uint32 {
	in.mu.RLock()
	dead, link, upper := in.dead, in.links(), in.up().exists
	in.mu.RUnlock()
	switch {
	case dead && (in.isDir() || !upper): // the lower object has kept its names
		return 0
	case in.isDir() && (in.mergedDir() || fs.cfg.StaticNlink):
		return 1
	case link.index != "":
		return uint32(link.names)
	}
	return real
}

// GetAttr is stat(2).
func (fs *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, s := fs.node(in.NodeId)
	if !s.Ok() {
		return s
	}
	out.SetTimeout(n.attrTime(in.NodeId))
	return fs.fail("getattr", n, fs.attr(n, &out.Attr))
}

// Statx is statx(2) where it asks for more than stat(2) gives: the birth time, which is that of the object the attributes are of.
func (fs *FS) Statx(_ <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	n, s := fs.node(in.NodeId)
	if !s.Ok() {
		return s
	}
	return fs.fail("statx", n, fs.statx(n, out))
}

func (fs *FS) statx(in *inode, out *fuse.StatxOut) error {
	var a fuse.Attr
	if err := fs.attr(in, &a); err != nil {
		return err
	}
	fd, _, err := fs.openPath(in)
	if err != nil {
		return err
	}
	defer closeFD(fd)
	var sx unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &sx); err != nil {
		return fmt.Errorf("statx: %w", err)
	}
	out.FromStatx(&sx)
	out.Mask &= unix.STATX_BASIC_STATS | unix.STATX_BTIME
	out.Ino, out.Nlink, out.Uid, out.Gid, out.Blocks = a.Ino, a.Nlink, a.Uid, a.Gid, a.Blocks
	out.DevMajor, out.DevMinor = 0, 0
	out.SetTimeout(in.attrTime(in.id.Load()))
	return nil
}

// SetAttr is chmod, chown, truncate and utimens. No data is copied but what a truncation leaves.
func (fs *FS) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, s := fs.node(in.NodeId)
	if !s.Ok() {
		return s
	}
	// The pages and the size that the kernel has of the newest nodeid are cut off by itself alone. All that can write to the file is of that
	// one, so this is truncate(2), which looks the name up again.
	if _, cut := in.GetSize(); cut && in.NodeId != n.id.Load() {
		return fs.fail("setattr", n, unix.ESTALE)
	}
	if in.Valid&(fuse.FATTR_SIZE|fuse.FATTR_MTIME|fuse.FATTR_MTIME_NOW) == fuse.FATTR_MTIME && !fs.opensUnasked() {
		// What was stored in mappings before: written back later, it would change the time. (While a size is set, nothing is written back.)
		fs.writeBackStores(n, 0, 0)
	}
	if err := fs.setAttr(n, in); err != nil {
		return fs.fail("setattr", n, err)
	}
	out.SetTimeout(n.attrTime(in.NodeId))
	return fs.fail("setattr", n, fs.attr(n, &out.Attr))
}

// setAttr applies the parts in the order in which none undoes another: a change of size or owner may take the set-id
// bits away, a mode in the same request is meant as it is.
func (fs *FS) setAttr(in *inode, req *fuse.SetAttrIn) error {
	if fs.readOnly() {
		return unix.EROFS
	}
	if size, ok := req.GetSize(); ok {
		if err := fs.truncate(in, int64(size)); err != nil {
			return err
		}
	}
	if fs.opensUnasked() && in.typ == unix.S_IFREG {
		defer fs.times.lock(in)()
	}
	return fs.onUpper(in, func(fd int) error { return fs.setAttrOf(fd, req) })
}

// setAttrOf is setAttr for all but the size. fd is the upper object.
func (fs *FS) setAttrOf(fd int, req *fuse.SetAttrIn) error {
	if req.Valid&fuse.FATTR_KILL_SUIDGID != 0 {
		if err := fs.killSetID(fd, req.Caller); err != nil {
			return err
		}
	}
	uid, hasUID := req.GetUID()
	gid, hasGID := req.GetGID()
	if hasUID || hasGID {
		u, g, err := fs.storedOwner(uid, hasUID, gid, hasGID)
		if err != nil {
			return err
		}
		if err := chownFD(fd, u, g); err != nil {
			return err
		}
	}
	if mode, ok := req.GetMode(); ok {
		if err := chmodFD(fd, mode); err != nil {
			return err
		}
	}
	return setTimes(fd, req)
}

// setTimes applies the times of a SETATTR.
func setTimes(fd int, req *fuse.SetAttrIn) error {
	if req.Valid&(fuse.FATTR_ATIME|fuse.FATTR_MTIME) == 0 {
		return nil
	}
	pick := func(set, now uint32, sec uint64, nsec uint32) unix.Timespec {
		switch {
		case req.Valid&set == 0:
			return unix.Timespec{Nsec: unix.UTIME_OMIT}
		case req.Valid&now != 0:
			return unix.Timespec{Nsec: unix.UTIME_NOW}
		}
		return unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}
	}
	return timesFD(fd, pick(fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, req.Atime, req.Atimensec),
		pick(fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, req.Mtime, req.Mtimensec))
}

// killSetID takes the set-user-id bit away, and the set-group-id bit of what its group may execute or the caller is
// not in the group of. The caller is known to lack CAP_FSETID.
// Compare: fs/attr.c:setattr_should_drop_suidgid(), setattr_should_drop_sgid().
func (fs *FS) killSetID(fd int, caller fuse.Caller) error {
	st, err := statAt(fd, "")
	if err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if !isReg(st.Mode) {
		return nil
	}
	mode := st.Mode &^ unix.S_ISUID
	if mode&unix.S_ISGID != 0 && (mode&unix.S_IXGRP != 0 || !callerInGroup(caller, fs.shownGID(st.Gid))) {
		mode &^= unix.S_ISGID
	}
	if mode == st.Mode {
		return nil
	}
	return chmodFD(fd, mode)
}
