package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// The scratch file system. An ext4 that has seen many files come and go makes new ones slowly, and not evenly so; a new
// one in a file on the same disk does not, and vanishes as a whole.

const (
	imageParent = "/var/tmp"
	imageMost   = 48 << 30 // bytes; sparse
	imageLeast  = 8 << 30
)

// scratch is the directory of a run, and how to be rid of it.
type scratch struct {
	dir    string
	remove func() error
}

// newScratch makes the scratch directory: in parent, or on a new ext4 if parent is "".
func newScratch(parent string) (scratch, error) {
	if parent != "" {
		dir, err := os.MkdirTemp(parent, "bench-")
		return scratch{dir, func() error { return os.RemoveAll(dir) }}, err
	}
	dir, err := os.MkdirTemp(imageParent, "bench-")
	if err != nil {
		return scratch{}, err
	}
	if err := mountImage(dir); err != nil {
		return scratch{}, errors.Join(fmt.Errorf("scratch file system: %w", err), os.Remove(dir))
	}
	return scratch{dir, func() error {
		// Detached it is out of the way, and gone with the last process that uses it.
		err := unix.Unmount(dir, unix.MNT_DETACH)
		return errors.Join(named("unmount", dir, err), os.Remove(dir))
	}}, nil
}

// mountImage mounts a new ext4 on dir. Its file has no name, and its loop device no use but the mount: both go with it.
func mountImage(dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return named("statfs", dir, err)
	}
	size := min(imageMost, int64(fs.Bavail)*fs.Bsize*3/4)
	if size < imageLeast {
		return fmt.Errorf("%s has less than %d GiB free: %w", dir, imageLeast*4/3>>30, unix.ENOSPC)
	}
	image, err := os.Create(filepath.Join(dir, "image"))
	if err != nil {
		return err
	}
	defer func() { _ = image.Close() }() // the loop device has it then
	defer func() { _ = os.Remove(image.Name()) }()
	if err := image.Truncate(size); err != nil {
		return err
	}
	mkfs := exec.Command("mkfs.ext4", "-q", "-F", "-N", "2000000", "-E", "lazy_itable_init=0,lazy_journal_init=0", image.Name())
	if said, err := mkfs.CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s", err, strings.TrimSpace(string(said)))
	}
	device, err := attachLoop(image)
	if err != nil {
		return err
	}
	if err := errors.Join(os.Remove(image.Name()), unix.Mount(device.Name(), dir, "ext4", 0, "")); err != nil {
		return errors.Join(err, device.Close())
	}
	return device.Close()
}

// attachLoop gives image a loop device, which is free again when its last user is gone. Its I/O does not go through the
// page cache of the file system below: what is dropped is cold.
func attachLoop(image *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = control.Close() }() // nothing was written
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("free loop device: %w", err)
		}
		device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{
			Fd:   uint32(image.Fd()),
			Size: 4096, // of a block
			Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO},
		}
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
		if err == nil {
			return device, nil
		}
		_ = device.Close()               // not ours
		if !errors.Is(err, unix.EBUSY) { // another process was quicker
			return nil, fmt.Errorf("loop device %d: %w", n, err)
		}
	}
}
