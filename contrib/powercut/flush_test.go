package powercut_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// flushed are the files of TestCutInAFlush: the name that each has in the lower, and those that it has in the end. All have data in the
// lower alone when the flush begins.
var flushed = map[string][]string{
	"part1": {"part1"}, "part2": {"part2"}, "part3": {"part3"}, "late": {"late"},
	"mode1": {"mode1"}, "mode2": {"mode2"},
	"moved": {"d/moved"}, "linked": {"linked", "d/link"},
}

// flushedSize is the size of each in bytes.
const flushedSize = 300 << 10

func flushedLower(name string) []byte {
	return bytes.Repeat([]byte(name+"\n"), flushedSize/len(name))[:flushedSize]
}

// flushedWant is what it shows once it was changed, with its mode.
func flushedWant(name string) ([]byte, os.FileMode) {
	data, mode := flushedLower(name), os.FileMode(0o600)
	switch name {
	case "part1", "part2", "part3", "late":
		copy(data[100<<10:], "written")
	case "mode1", "mode2":
		mode = 0o640
	}
	return data, mode
}

// changeFlushed changes the files in the overlay's directory. All but late is on the disk in the end.
func changeFlushed(disk, dir string) error {
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string) error {
		f, err := os.OpenFile(at(name), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt([]byte("written"), 100<<10)
		return errors.Join(err, f.Close())
	}
	err := errors.Join(write("part1"), write("part2"), write("part3"),
		os.Chmod(at("mode1"), 0o640), os.Chmod(at("mode2"), 0o640),
		os.Mkdir(at("d"), 0o755), os.Rename(at("moved"), at("d/moved")), os.Link(at("linked"), at("d/link")))
	if err != nil {
		return err
	}
	fd, err := unix.Open(disk, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(fd), unix.Close(fd), write("late"))
}

// checkFlushed compares the files below a directory with what they must be.
func checkFlushed(dir string, skip string) (err error) {
	for name, names := range flushed {
		want, mode := flushedWant(name)
		for _, n := range names {
			if name == skip {
				continue
			}
			got, errRead := os.ReadFile(filepath.Join(dir, n))
			st, errStat := os.Lstat(filepath.Join(dir, n))
			switch {
			case errRead != nil || errStat != nil:
				err = errors.Join(err, errRead, errStat)
			case !bytes.Equal(got, want) || st.Mode() != mode:
				err = errors.Join(err, fmt.Errorf("%s: mode %v, %d bytes, or their content: %w", n, st.Mode(), len(got), unix.EUCLEAN))
			}
		}
	}
	return err
}

// checkPlain looks at an upper as at a directory that nobody knows of: nothing is missing, and nothing says so.
func checkPlain(upper string) error {
	err := checkFlushed(upper, "")
	for _, names := range flushed {
		for _, n := range names {
			if _, errMark := unix.Lgetxattr(filepath.Join(upper, n), "trusted.overlay.metacopy", nil); !errors.Is(errMark, unix.ENODATA) {
				err = errors.Join(err, fmt.Errorf("%s: metacopy mark: %w", n, errors.Join(errMark, unix.EUCLEAN)))
			}
		}
	}
	return err
}

// TestCutInAFlush cuts the power while an upper is flushed and right after: what was there is there, and after the flush it is a layer for
// anybody.
func TestCutInAFlush(t *testing.T) {
	needRoot(t)
	c := theBinary(t)
	if !c.fsck {
		t.Skip("the kernel's overlayfs has no flush")
	}
	for _, fstype := range fileSystems() {
		t.Run(fstype, func(t *testing.T) {
			h := newHost(t, fstype)
			r := rand.New(rand.NewPCG(h.seed, 0))
			for n := range max(4, count(t, envCuts, 24)/6) {
				if err := h.cutFlush(c, time.Duration(r.IntN(20_000))*time.Microsecond); err != nil {
					t.Fatalf("%s=%d, round %d: %v", envSeed, h.seed, n, err)
				}
			}
		})
	}
}

// cutFlush cuts a flush after some time, and once more at its end.
func (h *host) cutFlush(c command, after time.Duration) (err error) {
	image, during, ended := filepath.Join(h.root, "disk.img"), filepath.Join(h.root, "during.img"), filepath.Join(h.root, "ended.img")
	if err := clone(h.base, image); err != nil {
		return err
	}
	defer func() {
		for _, i := range []string{image, during, ended} {
			err = errors.Join(err, os.Remove(i))
		}
	}()
	err = h.withDisk(image, func(disk string) (err error) {
		for name := range flushed {
			err = errors.Join(err, os.WriteFile(filepath.Join(disk, "lower", name), flushedLower(name), 0o600))
		}
		return err
	})
	if err != nil {
		return err
	}
	err = h.withDisk(image, func(disk string) error {
		if err := h.withOverlay(c, disk, "", func(dir string) error { return changeFlushed(disk, dir) }); err != nil {
			return err
		}
		flush := exec.Command(c.path, "flush", "-o", layerOptions(disk))
		var said bytes.Buffer
		flush.Stdout, flush.Stderr = &said, &said
		if err := flush.Start(); err != nil {
			return err
		}
		time.Sleep(after)
		errClone := clone(image, during)
		if err := flush.Wait(); err != nil {
			return fmt.Errorf("flush: %w: %s", err, &said)
		}
		return errors.Join(errClone, clone(image, ended))
	})
	if err != nil {
		return err
	}
	return errors.Join(h.checkFlush(c, during, "late"), h.checkFlush(c, ended, ""))
}

// checkFlush looks at a copy; skip is what may be lost. If nothing may, the upper is plain.
func (h *host) checkFlush(c command, image, skip string) error {
	err := h.withDisk(image, func(disk string) error {
		if err := c.check(disk); err != nil {
			return err
		}
		if skip == "" {
			if err := checkPlain(filepath.Join(disk, "upper")); err != nil {
				return err
			}
		}
		return h.withOverlay(c, disk, "", func(dir string) error { return checkFlushed(dir, skip) })
	})
	if err != nil {
		err = fmt.Errorf("%s: %w", filepath.Base(image), err)
	}
	return err
}
