package main

import (
	"strconv"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// transportFS answers at once: what it costs is what the transport costs. Its root directory has the files f0, f1, ...;
// their names are cached for ever, their attributes never, and a missing name is not remembered.
type transportFS struct{ fuse.RawFileSystem }

func newTransportFS() transportFS { return transportFS{fuse.NewDefaultRawFileSystem()} }

func transportOptions() *fuse.MountOptions {
	return &fuse.MountOptions{MaxWrite: 1 << 20, DisableSplice: true, MaxBackground: 64, FsName: "bench", Name: "bench"}
}

func (transportFS) attr(id uint64, a *fuse.Attr) time.Duration {
	*a = fuse.Attr{Ino: id, Mode: unix.S_IFREG | 0o644, Nlink: 1}
	if id == fuse.FUSE_ROOT_ID {
		a.Mode = unix.S_IFDIR | 0o755
		return time.Hour
	}
	return 0
}

// Lookup finds the files, and nothing else.
func (fs transportFS) Lookup(_ <-chan struct{}, _ *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	n, err := strconv.Atoi(name[1:])
	if name[0] != 'f' || err != nil {
		return fuse.ENOENT
	}
	out.NodeId = fuse.FUSE_ROOT_ID + 1 + uint64(n)
	out.SetEntryTimeout(time.Hour)
	out.SetAttrTimeout(fs.attr(out.NodeId, &out.Attr))
	return fuse.OK
}

// GetAttr answers at once.
func (fs transportFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.SetTimeout(fs.attr(in.NodeId, &out.Attr))
	return fuse.OK
}

// Open answers as ours does for a file of which nothing is dirty: no FLUSH comes.
func (transportFS) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH
	return fuse.OK
}
