package powercut_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// killedFiles are the files of TestKilledCommand, so many of each kind.
const killedFiles = 32

// killedSize is the size of each in bytes: more than is copied as a whole.
const killedSize = 160 << 10

// The kinds. Each file is named for its kind and a number.
const (
	killedPart  = "part"  // partial
	killedMode  = "mode"  // metacopy, with a capability
	killedHard  = "hard"  // partial, and reached by its other name, hard2, through the index alone
	killedMoved = "moved" // metacopy, in d, with a redirect
)

// capability is one of version 2 that says nothing.
var capability = []byte("\x00\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")

const (
	capabilityXattr = "security.capability"
	metacopyXattr   = "trusted.overlay.metacopy"
	limitXattr      = "trusted.overlay.limit"
	nlinkXattr      = "trusted.overlay.nlink"
)

// killedLower is the data of one in the lower.
func killedLower(name string) []byte {
	return bytes.Repeat([]byte(name+"\n"), killedSize/len(name))[:killedSize]
}

// eachKilled calls use for every number and joins its errors.
func eachKilled(use func(n string) error) (err error) {
	for n := range killedFiles {
		err = errors.Join(err, use(fmt.Sprintf("%02d", n)))
	}
	return err
}

// makeKilled makes an upper of them, and gives what it shows.
func (h *host) makeKilled(c command, image string) (before state, err error) {
	if err := clone(h.base, image); err != nil {
		return before, err
	}
	old := time.Date(2020, 2, 2, 2, 2, 2, 0, time.UTC)
	err = h.withDisk(image, func(disk string) error {
		return eachKilled(func(n string) (err error) {
			at := func(name string) string { return filepath.Join(disk, "lower", name) }
			for _, kind := range []string{killedPart, killedMode, killedHard, killedMoved} {
				err = errors.Join(err, os.WriteFile(at(kind+n), killedLower(kind+n), 0o600), os.Chtimes(at(kind+n), old, old))
			}
			return errors.Join(err, unix.Setxattr(at(killedMode+n), capabilityXattr, capability, 0), os.Link(at(killedHard+n), at(killedHard+"2"+n)))
		})
	})
	if err != nil {
		return before, err
	}
	err = h.withDisk(image, func(disk string) error {
		return h.withOverlay(c, disk, "", func(dir string) error {
			at := func(name string) string { return filepath.Join(dir, name) }
			return errors.Join(os.Mkdir(at("d"), 0o755), eachKilled(func(n string) error {
				return errors.Join(overwrite(at(killedPart+n), 100<<10, []byte("written")), overwrite(at(killedHard+n), 50<<10, []byte("written")),
					os.Chmod(at(killedMode+n), 0o640), os.Rename(at(killedMoved+n), at("d/"+killedMoved+n)))
			}))
		})
	})
	if err != nil {
		return before, err
	}
	err = h.onCopy(image, func(disk string) (err error) { before, err = h.stateOf(c, disk); return err })
	return before, err
}

var shownXattrs = []string{metacopyXattr, limitXattr, nlinkXattr, "trusted.overlay.was", "trusted.overlay.redirect", "trusted.overlay.origin",
	capabilityXattr}

// show is all that is to be seen of a tree, a line for each name: attributes, modification time, the first name of the same file, the
// overlay's marks and the capability, data. The load's files, which nobody changes here, and directories are left out.
func show(dir string) (lines []string, err error) {
	first := map[uint64]string{}
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && filepath.Dir(path) == dir && strings.HasPrefix(e.Name(), "w") {
			return fs.SkipDir
		}
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("stat %s: %w", name, err)
		}
		if first[st.Ino] == "" {
			first[st.Ino] = name
		}
		line := fmt.Sprintf("%s %o %d links, as %s, %v", name, st.Mode, st.Nlink, first[st.Ino], time.Unix(st.Mtim.Unix()).UTC())
		for _, x := range shownXattrs {
			value := make([]byte, 256)
			switch n, err := unix.Lgetxattr(path, x, value); {
			case err == nil:
				line += fmt.Sprintf(" %s=%q", x, value[:n])
			case !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP):
				return fmt.Errorf("%s of %s: %w", x, name, err)
			}
		}
		if e.Type().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d bytes %x", len(data), sha256.Sum256(data))
		}
		lines = append(lines, line)
		return nil
	})
	return lines, err
}

// withoutLinks leaves the numbers of links out, of which a repair knows the most that there can be.
func withoutLinks(lines []string) (out []string) {
	for _, l := range lines {
		out = append(out, linksShown.ReplaceAllString(l, ""))
	}
	return out
}

var linksShown = regexp.MustCompile(" [0-9]+ links")

// withoutLeftovers leaves out what says nothing of a file that is complete: a kill may leave it, and a repair takes it away.
func withoutLeftovers(lines []string) (out []string) {
	for _, l := range lines {
		if !strings.Contains(l, metacopyXattr) {
			l = leftover.ReplaceAllString(l, "")
		}
		out = append(out, l)
	}
	return out
}

var leftover = regexp.MustCompile(` trusted\.overlay\.(limit|was|redirect|nlink)="(\\.|[^"\\])*"`)

// differ is an error if two shows do.
func differ(what string, got, want []string) (err error) {
	for _, l := range got {
		if !slices.Contains(want, l) {
			err = errors.Join(err, fmt.Errorf("%s: there is %s", what, l))
		}
	}
	for _, l := range want {
		if !slices.Contains(got, l) {
			err = errors.Join(err, fmt.Errorf("%s: there is not %s", what, l))
		}
	}
	return err
}

// state is an upper as the overlay shows it and by itself.
type state struct{ overlay, upper, index []string }

// onCopy calls use with a copy of a disk.
func (h *host) onCopy(image string, use func(disk string) error) error {
	copied := filepath.Join(h.root, "copy.img")
	if err := clone(image, copied); err != nil {
		return err
	}
	return errors.Join(h.withDisk(copied, use), os.Remove(copied))
}

// stateOf leaves the upper as it was but for what a mount does.
func (h *host) stateOf(c command, disk string) (s state, err error) {
	if s.upper, err = show(filepath.Join(disk, "upper")); err != nil {
		return s, err
	}
	if s.index, err = show(filepath.Join(disk, "work/index")); err != nil {
		return s, err
	}
	err = h.withOverlay(c, disk, "", func(dir string) (err error) { s.overlay, err = show(dir); return err })
	return s, err
}

func (s state) differ(want state) error {
	return errors.Join(differ("overlay", s.overlay, want.overlay), differ("upper", withoutLeftovers(s.upper), withoutLeftovers(want.upper)),
		differ("index", s.index, want.index))
}

// killing is a command that changes an upper, and is killed.
type killing struct {
	args  []string                              // before the layers' options
	codes []int                                 // of its end
	left  func(upper string) (n int, err error) // how much there is to do; 0 in the end
}

// run lets it end by itself.
func (k *killing) run(c command, disk string) error {
	cmd := exec.Command(c.path, append(slices.Clone(k.args), layerOptions(disk))...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil || !slices.Contains(k.codes, cmd.ProcessState.ExitCode()) {
		return fmt.Errorf("%v: %w\n%s", k.args, err, out)
	}
	return nil
}

// runKilled kills it a moment after no more than left is left; killed tells that it had not ended by itself before, and now what is left.
func (k *killing) runKilled(c command, disk string, left int, later time.Duration) (killed bool, now int, err error) {
	cmd := exec.Command(c.path, append(slices.Clone(k.args), layerOptions(disk))...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return false, 0, err
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }() // how it ended is in its ProcessState
	upper := filepath.Join(disk, "upper")
	for deadline := time.Now().Add(serverLimit); ; {
		now, err = k.left(upper)
		if err != nil || now <= left || time.Now().After(deadline) {
			break
		}
		select {
		case <-ended:
		case <-time.After(100 * time.Microsecond):
			continue
		}
		break
	}
	time.Sleep(later)
	_ = cmd.Process.Kill() // it may have ended
	<-ended
	if killed = !cmd.ProcessState.Exited(); !killed && !slices.Contains(k.codes, cmd.ProcessState.ExitCode()) {
		err = errors.Join(err, fmt.Errorf("%v: %v\n%s", k.args, cmd.ProcessState, &said))
	}
	now, errNow := k.left(upper)
	return killed, now, errors.Join(err, errNow)
}

// testKilled kills k in the middle on copies of an image, and compares what its next run leaves with what an undisturbed one does, and the
// overlay with what it showed before. Sound: it shows that at any time.
func (h *host) testKilled(t *testing.T, c command, image string, k *killing, before state, sound bool) {
	r := rand.New(rand.NewPCG(h.seed, 5))
	var after state
	total, began := 0, time.Time{}
	err := h.onCopy(image, func(disk string) (err error) {
		if total, err = k.left(filepath.Join(disk, "upper")); err != nil {
			return err
		}
		began = time.Now()
		if err := k.run(c, disk); err != nil {
			return err
		}
		t.Logf("undisturbed: %v", time.Since(began).Round(time.Millisecond))
		after, err = h.stateOf(c, disk)
		return errors.Join(err, differ("undisturbed", withoutLinks(after.overlay), withoutLinks(before.overlay)))
	})
	if err != nil {
		t.Fatal(err)
	}
	rounds, middle := max(3, count(t, envKills, 6)/2), 0
	for n := range rounds {
		left, later := total*n/rounds, time.Duration(r.IntN(2000))*time.Microsecond
		err := h.onCopy(image, func(disk string) error {
			killed, now, err := k.runKilled(c, disk, left, later)
			if err != nil {
				return err
			}
			t.Logf("killed %t, %d of %d left", killed, now, total)
			if killed && now < total {
				middle++
			}
			if sound && n%2 == 0 { // otherwise no mount comes between the two
				if err := c.check(disk); err != nil {
					return err
				}
				s, err := h.stateOf(c, disk)
				if err := errors.Join(err, c.check(disk), differ("killed", s.overlay, before.overlay)); err != nil {
					return err
				}
			}
			if err := k.run(c, disk); err != nil {
				return err
			}
			if err := c.check(disk); err != nil {
				return err
			}
			s, err := h.stateOf(c, disk)
			return errors.Join(err, s.differ(after))
		})
		if err != nil {
			t.Errorf("%s=%d, round %d, killed %v after %d of %d were left: %v", envSeed, h.seed, n, later, left, total, err)
		}
	}
	if middle == 0 {
		t.Error("it was never killed in the middle")
	}
}

// marked counts the names of these that have a mark.
func marked(upper, xattr string, names ...string) (n int, err error) {
	for _, name := range names {
		switch _, errMark := unix.Lgetxattr(filepath.Join(upper, name), xattr, nil); {
		case errMark == nil:
			n++
		case !errors.Is(errMark, unix.ENODATA):
			err = errors.Join(err, fmt.Errorf("%s of %s: %w", xattr, name, errMark))
		}
	}
	return n, err
}

// flushLeft counts what a flush has to do: data to copy, and links to make of which each lacks data then.
func flushLeft(upper string) (n int, err error) {
	err = eachKilled(func(number string) error {
		names := []string{killedPart + number, killedMode + number, killedHard + number, "d/" + killedMoved + number}
		switch err := unix.Access(filepath.Join(upper, killedHard+"2"+number), unix.F_OK); {
		case err == nil:
			names = append(names, killedHard+"2"+number)
		case errors.Is(err, unix.ENOENT):
			n += 2
		default:
			return err
		}
		have, err := marked(upper, metacopyXattr, names...)
		n += have
		return err
	})
	return n, err
}

// damageKilled damages an upper of them in ways that can be repaired, each kind of file in its own.
func damageKilled(disk string, lostSize bool) error {
	at := func(name string) string { return filepath.Join(disk, "upper", name) }
	quietly := func(name string, damage func(path string) error) error {
		st, err := os.Lstat(at(name))
		if err != nil {
			return err
		}
		return errors.Join(damage(at(name)), os.Chtimes(at(name), time.Time{}, st.ModTime()))
	}
	return eachKilled(func(n string) error {
		whole := killedLower(killedPart + n)
		copy(whole[100<<10:], "written")
		return errors.Join(
			quietly(killedPart+n, func(path string) error { return overwrite(path, 0, whole) }), // complete, and marked partial
			quietly(killedMode+n, func(path string) error { // data of its own
				return errors.Join(overwrite(path, 0, bytes.Repeat([]byte("stale"), killedSize/5)), unix.Setxattr(path, capabilityXattr, capability, 0))
			}),
			quietly("d/"+killedMoved+n, func(path string) error { // a limit that is left over
				if lostSize {
					return os.Truncate(path, 0)
				}
				return unix.Setxattr(path, limitXattr, make([]byte, 8), 0)
			}),
			unix.Setxattr(at(killedHard+n), nlinkXattr, []byte("nonsense"), 0),
			os.WriteFile(filepath.Join(disk, "work/work/#"+n), whole, 0o600)) // unfinished
	})
}

// damageLeft counts what of damageKilled is still there.
func damageLeft(upper string) (n int, err error) {
	err = eachKilled(func(number string) error {
		part, errPart := marked(upper, metacopyXattr, killedPart+number)
		moved, errMoved := marked(upper, limitXattr, "d/"+killedMoved+number)
		var st unix.Stat_t
		errSize := unix.Lstat(filepath.Join(upper, "d/"+killedMoved+number), &st)
		if st.Size == 0 {
			moved++
		}
		nlink := make([]byte, 64)
		size, errNlink := unix.Lgetxattr(filepath.Join(upper, killedHard+number), nlinkXattr, nlink)
		if errNlink == nil && strings.HasPrefix(string(nlink[:size]), "nonsense") {
			n++
		}
		stale := make([]byte, 5)
		f, errMode := os.Open(filepath.Join(upper, killedMode+number))
		if errMode == nil {
			_, errMode = f.ReadAt(stale, 0)
			errMode = errors.Join(errMode, f.Close())
		}
		if string(stale) == "stale" {
			n++
		}
		n += part + moved
		return errors.Join(errPart, errMoved, errSize, errNlink, errMode)
	})
	return n, err
}

// TestKilledCommand kills a flush: the upper is sound and shows what it showed, and the next flush leaves what an undisturbed one does. And a
// repairing fsck: the next one leaves what an undisturbed one does, which shows what there was before the damage.
func TestKilledCommand(t *testing.T) {
	needRoot(t)
	c := theBinary(t)
	if !c.fsck {
		t.Skip("the kernel's overlayfs has no command")
	}
	for _, fstype := range fileSystems() {
		t.Run(fstype, func(t *testing.T) {
			h := newHost(t, fstype)
			image := filepath.Join(h.root, "upper.img")
			before, err := h.makeKilled(c, image)
			if err != nil {
				t.Fatal(err)
			}
			t.Run("flush", func(t *testing.T) {
				h.testKilled(t, c, image, &killing{args: []string{"flush", "-o"}, codes: []int{0}, left: flushLeft}, before, true)
			})
			t.Run("fsck", func(t *testing.T) {
				if err := h.withDisk(image, func(disk string) error { return damageKilled(disk, fstype == "btrfs") }); err != nil {
					t.Fatal(err)
				}
				h.testKilled(t, c, image, &killing{args: []string{"fsck", "-y", "-o"}, codes: []int{0, 1}, left: damageLeft}, before, false)
			})
		})
	}
}
