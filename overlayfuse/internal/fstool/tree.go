package fstool

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

var treeOps = map[string]op{
	"tree":    {"PATH", func(_ *process, a []string) (string, error) { return Tree(a[0]) }},
	"shape":   {"PATH", shape},
	"sum":     {"PATH", sum},
	"mount":   {"TYPE SOURCE TARGET FLAGS DATA", mount},
	"umount":  {"TARGET", func(_ *process, a []string) (string, error) { return "", unix.Unmount(a[0], 0) }},
	"syncfs":  {"PATH", syncfs},
	"deep":    {"PATH COUNT", deep},
	"catdeep": {"PATH COUNT NAME", catdeep},
}

// Tree describes a directory tree, a line for each object: name, type, mode, owner, size, link count, modification time,
// device, xattrs, and a hash of the content. Two trees are the same if their descriptions are.
func Tree(root string) (string, error) {
	var out strings.Builder
	err := walk(&out, root, ".", describe)
	return out.String(), err
}

// Layer is Tree with the times that only reading and changing set: of a layer that nobody has touched, all stay. But for the access times of
// symlinks, which Layer itself changes.
func Layer(root string) (string, error) {
	var out strings.Builder
	err := walk(&out, root, ".", func(path string) (string, error) {
		times, err := stat(unix.AT_FDCWD, path, 0, []string{"type", "ctime", "atime"})
		if err != nil {
			return "", err
		}
		line, err := describe(path)
		if f := strings.Fields(times); f[0] != "symlink" {
			line += " atime=" + f[2]
		}
		return line + " ctime=" + strings.Fields(times)[1], err
	})
	return out.String(), err
}

// shape is Tree without what two equal trees need not share: times, and the link counts of directories.
func shape(_ *process, a []string) (string, error) {
	var out strings.Builder
	err := walk(&out, a[0], ".", func(path string) (string, error) {
		line, err := describe(path)
		f := strings.Fields(line)
		if err != nil || len(f) < 6 {
			return "", err
		}
		if f[0] == "dir" {
			f[4] = "-"
		}
		return strings.Join(append(f[:5:5], f[6:]...), " "), nil
	})
	return out.String(), err
}

// walk describes rel and what is below it, a line each. It changes no access time.
func walk(out *strings.Builder, root, rel string, describe func(path string) (string, error)) error {
	path := filepath.Join(root, rel)
	line, err := describe(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	fmt.Fprintf(out, "%s %s\n", rel, line)
	if !strings.HasPrefix(line, "dir ") {
		return nil
	}
	dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOATIME, 0)
	if err != nil {
		return err
	}
	below, err := dir.Readdirnames(-1)
	if cerr := dir.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	slices.Sort(below)
	for _, name := range below {
		if err := walk(out, root, filepath.Join(rel, name), describe); err != nil {
			return err
		}
	}
	return nil
}

func describe(path string) (string, error) {
	line, err := stat(unix.AT_FDCWD, path, 0, []string{"type", "mode", "uid", "gid", "nlink", "mtime", "rdev"})
	if err != nil {
		return "", err
	}
	names, err := llistxattr(path)
	if err != nil {
		return "", err
	}
	for _, name := range names {
		v, err := lgetxattr(path, name)
		if err != nil {
			return "", err
		}
		line += " " + name + "=" + hex.EncodeToString(v)
	}
	kind, _, _ := strings.Cut(line, " ")
	switch kind {
	case "file":
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOATIME, 0)
		if err != nil {
			return "", err
		}
		h := sha256.New()
		n, err := io.Copy(h, f)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		return fmt.Sprintf("%s %d %x", line, n, h.Sum(nil)), err
	case "symlink":
		target, err := os.Readlink(path)
		return line + " " + target, err
	default:
		return line, nil
	}
}

// sum answers a short hash of the tree's description.
func sum(_ *process, a []string) (string, error) {
	t, err := Tree(a[0])
	if err != nil {
		return "", err
	}
	h := sha256.Sum256([]byte(t))
	return hex.EncodeToString(h[:8]), nil
}

var mountFlagNames = map[string]int{
	"": 0, "ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC, "noatime": unix.MS_NOATIME,
	"nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME, "strictatime": unix.MS_STRICTATIME, "bind": unix.MS_BIND,
	"remount": unix.MS_REMOUNT,
}

func mount(_ *process, a []string) (string, error) {
	how, err := flags(a[3], mountFlagNames)
	if err != nil {
		return "", err
	}
	return "", unix.Mount(a[1], a[2], a[0], uintptr(how), a[4])
}

func syncfs(_ *process, a []string) (string, error) {
	fd, err := unix.Open(a[0], unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	err = unix.Syncfs(fd)
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	return "", err
}

// deep makes COUNT nested directories "d" below PATH and answers nothing; the path may be longer than PATH_MAX.
func deep(_ *process, a []string) (string, error) {
	return "", descend(a, func(fd int) error { return unix.Mkdirat(fd, "d", 0o755) }, nil)
}

// catdeep answers the content of the file NAME below COUNT directories "d" below PATH; "NAME=TEXT" writes it first.
func catdeep(_ *process, a []string) (string, error) {
	var out string
	name, content, writes := strings.Cut(a[2], "=")
	err := descend(a, nil, func(fd int) error {
		how := unix.O_RDWR | unix.O_CLOEXEC
		if writes {
			how |= unix.O_CREAT | unix.O_TRUNC
		}
		file, err := unix.Openat(fd, name, how, 0o644)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(file), name)
		if writes {
			if _, err := f.WriteAt([]byte(content), 0); err != nil {
				return err
			}
		}
		b, err := io.ReadAll(f)
		out = string(b)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		return err
	})
	return out, err
}

// descend walks COUNT directories "d" down from PATH: before each step it calls each, at the end last.
func descend(a []string, each, last func(fd int) error) error {
	n, err := number(a[1])
	if err != nil {
		return err
	}
	fd, err := unix.Open(a[0], unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }() // read-only: nothing to lose
	for range n {
		if each != nil {
			if err := each(fd); err != nil {
				return err
			}
		}
		next, err := unix.Openat(fd, "d", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := unix.Close(fd); err != nil {
			return err
		}
		fd = next
	}
	if last == nil {
		return nil
	}
	return last(fd)
}

// RemoveTree removes a directory tree, what file flags protect in it too.
func RemoveTree(root string) error {
	if os.RemoveAll(root) == nil {
		return nil
	}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && (e.IsDir() || e.Type().IsRegular()) {
			_, err = setflags(nil, []string{path, ""})
		}
		return err
	})
	return errors.Join(err, os.RemoveAll(root))
}
