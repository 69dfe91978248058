package fstool

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

var handleOps = map[string]op{
	"handle":   {"HANDLE PATH", (*process).nameToHandle},
	"byhandle": {"FD HANDLE MOUNT FLAGS", (*process).openByHandle},
	"getflags": {"PATH", getflags},
	"setflags": {"PATH FLAGS", setflags},
}

func (p *process) nameToHandle(a []string) (string, error) {
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, a[1], 0)
	if err != nil {
		return "", err
	}
	p.handles[a[0]] = h
	return "", nil
}

func (p *process) openByHandle(a []string) (string, error) {
	h, ok := p.handles[a[1]]
	if !ok {
		return "", badRequest("no handle " + a[1])
	}
	how, err := flags(a[3], openFlags)
	if err != nil {
		return "", err
	}
	mnt, err := unix.Open(a[2], unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	fd, err := unix.OpenByHandleAt(mnt, h, how|unix.O_CLOEXEC)
	if cerr := unix.Close(mnt); cerr != nil {
		return "", cerr
	}
	if err != nil {
		return "", err
	}
	return "", p.keep(a[0], fd)
}

// fileFlags are the flags of FS_IOC_GETFLAGS that scripts speak of; the others (extents, inline data) are the layer's own business.
var fileFlags = []struct {
	name string
	bit  uint32
}{{"immutable", 0x10}, {"append", 0x20}, {"nodump", 0x40}, {"noatime", 0x80}, {"sync", 0x8}}

func getflags(_ *process, a []string) (string, error) {
	all, err := ioctlFlags(a[0])
	if err != nil {
		return "", err
	}
	var out []string
	for _, f := range fileFlags {
		if all&f.bit != 0 {
			out = append(out, f.name)
		}
	}
	return strings.Join(out, ","), nil
}

func ioctlFlags(path string) (uint32, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	all, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	return all, err
}

// setflags makes these flags the only ones (of those that scripts speak of); "" is none.
func setflags(_ *process, a []string) (string, error) {
	all, err := ioctlFlags(a[0])
	if err != nil {
		return "", err
	}
	for _, f := range fileFlags {
		all &^= f.bit
	}
	for _, name := range strings.FieldsFunc(a[1], func(r rune) bool { return r == ',' }) {
		found := false
		for _, f := range fileFlags {
			if f.name == name {
				all |= f.bit
				found = true
			}
		}
		if !found {
			return "", badRequest("unknown flag " + name)
		}
	}
	fd, err := unix.Open(a[0], unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	err = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(all))
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	if err != nil {
		return "", fmt.Errorf("set flags: %w", err)
	}
	return "", nil
}
