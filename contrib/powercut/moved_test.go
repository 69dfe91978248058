package powercut_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// movedObjects are what the lower directory of TestMovedKeepsAName has: a file's content is its own name.
var movedObjects = []string{"a", "b", "d/f", "l"}

// makeMoved makes them. l is a symlink to its own name.
func makeMoved(dir string) error {
	err := os.MkdirAll(filepath.Join(dir, "d"), 0o755)
	for _, name := range movedObjects {
		path := filepath.Join(dir, name)
		if name == "l" {
			err = errors.Join(err, os.Symlink(name, path))
			continue
		}
		err = errors.Join(err, os.WriteFile(path, []byte(name), 0o600))
	}
	return err
}

// findMoved are the objects that a tree has, under whatever name.
func findMoved(dir string) (found []string, err error) {
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if e.Type() == fs.ModeSymlink {
			text, err := os.Readlink(path)
			found = append(found, text)
			return err
		}
		text, err := os.ReadFile(path)
		if len(text) < 8 { // the base has files of its own
			found = append(found, string(text))
		}
		return err
	})
	return found, err
}

// syncPath is fsync(2).
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// TestMovedKeepsAName moves an object of the lower directory, gives its name to another, syncs only that, and cuts the power:
// nobody removed the first, so it must be there, under its old name or its new one.
func TestMovedKeepsAName(t *testing.T) {
	needRoot(t)
	c := theBinary(t)
	tests := []struct {
		name string
		do   func() error // in the overlay's directory
		more string       // an object that do makes and syncs
	}{
		{"rename over the old name", func() error {
			return errors.Join(os.Rename("a", "n"), os.Rename("b", "a"), syncPath("a"))
		}, ""},
		{"create at the old name", func() error { return errors.Join(os.Rename("a", "n"), writeNew("a", 0), syncPath("a")) }, ""},
		{"written and renamed twice", func() error {
			f, err := os.OpenFile("a", os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteString("a")
			return errors.Join(err, f.Close(), os.Rename("a", "n"), os.Rename("n", "o"), os.Rename("b", "a"), syncPath("a"))
		}, ""},
		{"link and rename over", func() error {
			return errors.Join(os.Link("a", "n"), os.Rename("b", "a"), syncPath("a"))
		}, ""},
		{"link and remove", func() error {
			return errors.Join(os.Link("a", "n"), os.Remove("a"), writeNew("a", 0), syncPath("a"))
		}, ""},
		{"link elsewhere and remove", func() error {
			return errors.Join(os.Link("d/f", "n"), os.Remove("d/f"), syncPath("d"))
		}, ""},
		{"exchange", func() error {
			return errors.Join(unix.Renameat2(unix.AT_FDCWD, "a", unix.AT_FDCWD, "b", unix.RENAME_EXCHANGE), syncPath("a"))
		}, ""},
		{"symlink", func() error { return errors.Join(os.Rename("l", "n"), writeNew("l", 0), syncPath("l")) }, ""},
		{"directory", func() error {
			return errors.Join(os.Rename("d", "n"), os.Mkdir("d", 0o755), writeNew("d/x", 0), syncPath("d/x"))
		}, ""},
		{"out of a directory", func() error { return errors.Join(os.Rename("d/f", "n"), writeNew("d/f", 0), syncPath("d/f")) }, ""},
		{"into new directories", func() error {
			return errors.Join(os.MkdirAll("x/y/z", 0o755), os.Rename("a", "x/y/z/n"), writeNew("a", 0), syncPath("a"))
		}, ""},
		{"synced by the descriptor of an unnamed file", func() (err error) {
			if err := os.MkdirAll("x/y/z", 0o755); err != nil {
				return err
			}
			fd, err := unix.Open("x/y/z", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
			if err != nil {
				return err
			}
			f := os.NewFile(uintptr(fd), "unnamed")
			defer func() { err = errors.Join(err, f.Close()) }()
			if _, err := f.WriteString("linked"); err != nil {
				return err
			}
			if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, "x/y/z/n", unix.AT_SYMLINK_FOLLOW); err != nil {
				return err
			}
			return f.Sync()
		}, "linked"},
	}
	for _, fstype := range fileSystems() {
		h := newHost(t, fstype)
		for _, test := range tests {
			t.Run(fstype+"/"+test.name, func(t *testing.T) {
				do := func(_, dir string) error { return inDir(dir, test.do) }
				err := h.cutAfter(c, makeMoved, do, func(dir string) error {
					found, err := findMoved(dir)
					if test.more != "" && !slices.Contains(found, test.more) {
						t.Errorf("%q was synced and is not there: found %q", test.more, found)
					}
					for _, o := range movedObjects {
						if !slices.Contains(found, o) {
							t.Errorf("%q has no name any more: found %q", o, found)
						}
					}
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// inDir runs do in a directory.
func inDir(dir string, do func() error) (err error) {
	back, err := os.Getwd()
	if err != nil {
		return err
	}
	if err := os.Chdir(dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Chdir(back)) }()
	return do()
}
