package powercut_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	hostSize = 24 << 30 // sparse
	diskSize = 1280 * mib
)

// mkfs are the commands that make the file systems under test.
var mkfs = map[string][]string{
	"ext4":  {"mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"},
	"xfs":   {"mkfs.xfs", "-q", "-f", "-m", "reflink=1"},
	"btrfs": {"mkfs.btrfs", "-q", "-f"},
}

// makeImage makes a file with an empty file system.
func makeImage(path string, size int64, fstype string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	args := append([]string{}, mkfs[fstype]...)
	if out, err := exec.Command(args[0], append(args[1:], path)...).CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", args, err, out)
	}
	return nil
}

// mountImage mounts a file through a loop device, which is freed by the unmount.
func mountImage(image, dir, fstype string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	loop, err := attach(image)
	if err != nil {
		return fmt.Errorf("loop device for %s: %w", image, err)
	}
	err = unix.Mount(loop.Name(), dir, fstype, 0, "")
	if cerr := loop.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("mount %s (%s) on %s: %w", image, fstype, dir, err)
	}
	return nil
}

// attach gives an image a loop device that lives as long as somebody uses it.
func attach(image string) (*os.File, error) {
	back, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = back.Close() }() // the device has its own reference
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = control.Close() }()
	for range 20 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, err
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(back.Fd())}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		copy(config.Info.File_name[:len(config.Info.File_name)-1], image)
		if err = unix.IoctlLoopConfigure(int(loop.Fd()), &config); err == nil {
			return loop, nil
		}
		_ = loop.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, err
		}
		time.Sleep(20 * time.Millisecond) // somebody else took it
	}
	return nil, unix.EBUSY
}

// unmount takes a mount away, in any case, and says if that was not possible in the usual way.
func unmount(dir string) error {
	var err error
	for range 50 {
		if err = unix.Unmount(dir, 0); !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if err == nil || errors.Is(err, unix.EINVAL) { // EINVAL: it is not mounted
		return nil
	}
	return errors.Join(fmt.Errorf("umount %s: %w", dir, err), unix.Unmount(dir, unix.MNT_DETACH))
}

// clone makes to a copy of a file, at one instant.
func clone(from, to string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err != nil {
		return fmt.Errorf("clone %s: %w", from, err)
	}
	return nil
}

// writeLower makes the lower, upper and work directories on a file system under test.
func writeLower(dir string, seed uint64, files []lowerFile) error {
	for _, d := range []string{"lower", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	for _, l := range files {
		path := filepath.Join(dir, "lower", l.name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := writeLowerFile(path, seed, l); err != nil {
			return err
		}
	}
	return nil
}

func writeLowerFile(path string, seed uint64, l lowerFile) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, lowerMode)
	if err != nil {
		return err
	}
	err = f.Truncate(l.size)
	for _, d := range l.data {
		buf := make([]byte, d.hi-d.lo)
		fill(seed, d.src, d.lo, buf)
		if _, werr := f.WriteAt(buf, d.lo); werr != nil {
			err = errors.Join(err, werr)
		}
	}
	return errors.Join(err, f.Close())
}

// copySparse copies a file with its holes.
func copySparse(from, to string) error {
	if out, err := exec.Command("cp", "--sparse=always", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s: %w\n%s", from, err, out)
	}
	return nil
}
