package powercut_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	"hard": {"hard", lowerLink},
}

// lowerLink is a second name that hard has in the lower already.
const lowerLink = "hard2"

// flushedSize is the size of each in bytes.
const flushedSize = 300 << 10

func flushedLower(name string) []byte {
	return bytes.Repeat([]byte(name+"\n"), flushedSize/len(name))[:flushedSize]
}

// flushedWant is what it shows once it was changed, with its mode.
func flushedWant(name string) ([]byte, os.FileMode) {
	data, mode := flushedLower(name), os.FileMode(0o600)
	switch name {
	case "part1", "part2", "part3", "late", "hard":
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
	err := errors.Join(write("part1"), write("part2"), write("part3"), write("hard"),
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

// pending are the names in an upper that lack data of the lower.
func pending(upper string) (names []string, err error) {
	for _, all := range flushed {
		for _, n := range all {
			switch _, errMark := unix.Lgetxattr(filepath.Join(upper, n), "trusted.overlay.metacopy", nil); {
			case errMark == nil:
				names = append(names, n)
			case !errors.Is(errMark, unix.ENODATA) && !errors.Is(errMark, unix.ENOENT):
				err = errors.Join(err, fmt.Errorf("%s: metacopy mark: %w", n, errMark))
			}
		}
	}
	slices.Sort(names)
	return names, err
}

// attributesOnly are the names of which no data was written: those that a flush may leave metacopy.
var attributesOnly = []string{"d/link", "d/moved", "linked", "mode1", "mode2"}

// checkLayer looks at a flushed upper without us: a plain one as a directory that nobody knows of, one whose metacopy was kept as the top
// layer of the kernel's overlayfs.
func (h *host) checkLayer(disk string, keepMetacopy bool) error {
	upper := filepath.Join(disk, "upper")
	left, err := pending(upper)
	if err != nil {
		return err
	}
	var want []string
	if keepMetacopy {
		want = attributesOnly
	}
	if !slices.Equal(left, want) {
		return fmt.Errorf("metacopy after the flush: %v, want %v: %w", left, want, unix.EUCLEAN)
	}
	if !keepMetacopy {
		return checkFlushed(upper, "")
	}
	dir := filepath.Join(h.dir, "kernel")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	layers := fmt.Sprintf("lowerdir=%s:%s,metacopy=on,redirect_dir=follow", upper, filepath.Join(disk, "lower"))
	if err := unix.Mount("overlay", dir, "overlay", unix.MS_RDONLY, layers); err != nil {
		return errors.Join(fmt.Errorf("mount the kernel's overlayfs, %s: %w", layers, err), os.Remove(dir))
	}
	err = checkFlushed(dir, "")
	return errors.Join(err, unmount(dir), os.Remove(dir))
}

// flushCut is one flush that is cut.
type flushCut struct {
	after        time.Duration // its begin
	keepMetacopy bool

	took    time.Duration // the flush; set by cutFlush
	pending int           // names that lacked data when it was cut; set by cutFlush
}

// TestCutInAFlush cuts the power while an upper is flushed and right after: what was there is there, and after the flush it is a layer for
// anybody; with --keep-metacopy, for who follows that.
func TestCutInAFlush(t *testing.T) {
	needRoot(t)
	c := theBinary(t)
	if !c.fsck {
		t.Skip("the kernel's overlayfs has no flush")
	}
	for i, fstype := range fileSystems() {
		t.Run(fstype, func(t *testing.T) {
			h := newHost(t, fstype)
			r := rand.New(rand.NewPCG(h.seed, uint64(i)))
			took := 20 * time.Millisecond // a first guess; then what the last one took
			for n := range max(4, count(t, envCuts, 24)/6) {
				f := flushCut{after: time.Duration(r.Int64N(int64(took))), keepMetacopy: n%2 == 1}
				if err := h.cutFlush(c, &f); err != nil {
					t.Fatalf("%s=%d, round %d, %v after its begin: %v", envSeed, h.seed, n, f.after, err)
				}
				t.Logf("cut after %v of %v, %d files incomplete, keep-metacopy %t", f.after, f.took, f.pending, f.keepMetacopy)
				took = f.took
			}
		})
	}
}

// cutFlush cuts a flush as f says, and once more at its end.
func (h *host) cutFlush(c command, f *flushCut) (err error) {
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
		return errors.Join(err, os.Link(filepath.Join(disk, "lower", "hard"), filepath.Join(disk, "lower", lowerLink)))
	})
	if err != nil {
		return err
	}
	err = h.withDisk(image, func(disk string) error {
		if err := h.withOverlay(c, disk, "", func(dir string) error { return changeFlushed(disk, dir) }); err != nil {
			return err
		}
		args := []string{"flush", "-o", layerOptions(disk)}
		if f.keepMetacopy {
			args = append(args, "--keep-metacopy")
		}
		flush := exec.Command(c.path, args...)
		var said bytes.Buffer
		flush.Stdout, flush.Stderr = &said, &said
		begin := time.Now()
		if err := flush.Start(); err != nil {
			return err
		}
		time.Sleep(f.after)
		errClone := clone(image, during)
		if err := flush.Wait(); err != nil {
			return fmt.Errorf("flush: %w: %s", err, &said)
		}
		f.took = time.Since(begin)
		return errors.Join(errClone, clone(image, ended))
	})
	if err != nil {
		return err
	}
	return errors.Join(h.checkFlush(c, during, "late", func(disk string) error {
		left, err := pending(filepath.Join(disk, "upper"))
		f.pending = len(left)
		return err
	}), h.checkFlush(c, ended, "", func(disk string) error { return h.checkLayer(disk, f.keepMetacopy) }))
}

// checkFlush looks at a copy; skip is what may be lost, and look sees the disk before anything is mounted with it.
func (h *host) checkFlush(c command, image, skip string, look func(disk string) error) error {
	err := h.withDisk(image, func(disk string) error {
		if err := c.check(disk); err != nil {
			return err
		}
		if err := look(disk); err != nil {
			return err
		}
		return h.withOverlay(c, disk, "", func(dir string) error { return checkFlushed(dir, skip) })
	})
	if err != nil {
		err = fmt.Errorf("%s: %w", filepath.Base(image), err)
	}
	return err
}
