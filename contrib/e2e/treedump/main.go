// Command treedump describes a directory tree on standard output, an object a line, sorted by name: type, mode, owner,
// size, device, link count, link target, extended attributes, content hash and modification time. It runs inside a
// container, on the host's own mounts too, and keeps out of whatever else is mounted below the root.
//
// usage: treedump ROOT NOW
//
// A modification time of NOW (seconds since 1970) or later is printed as "new": two runs have it at different times.
package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) != 3 {
		fail(errors.New("usage: treedump ROOT NOW"))
	}
	now, err := strconv.ParseInt(os.Args[2], 10, 64)
	if err != nil {
		fail(err)
	}
	out := bufio.NewWriter(os.Stdout)
	if err := dump(out, filepath.Clean(os.Args[1]), now); err != nil {
		fail(err)
	}
	if err := out.Flush(); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "treedump:", err)
	os.Exit(1)
}

func dump(out io.Writer, root string, now int64) error {
	mounted, err := mountPoints()
	if err != nil {
		return err
	}
	return filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path != root && slices.Contains(mounted, path) {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		line, err := describe(path, now)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "%q %s\n", name, line)
		return err
	})
}

// mountPoints are the mount points that this process sees.
func mountPoints() ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 4 {
			points = append(points, fields[4])
		}
	}
	return points, nil
}

func describe(path string, now int64) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return "", err
	}
	line := fmt.Sprintf("mode=%06o owner=%d:%d", st.Mode, st.Uid, st.Gid)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR: // size and link count of a directory are the file system's own affair
	case unix.S_IFREG:
		sum, err := hash(path)
		if err != nil {
			return "", err
		}
		line += fmt.Sprintf(" size=%d links=%d sha256=%s", st.Size, st.Nlink, sum)
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		line += fmt.Sprintf(" links=%d target=%q", st.Nlink, target)
	default:
		line += fmt.Sprintf(" links=%d device=%d:%d", st.Nlink, unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	if st.Mtim.Sec >= now {
		line += " mtime=new"
	} else {
		line += fmt.Sprintf(" mtime=%d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
	}
	attrs, err := xattrs(path)
	return line + attrs, err
}

func hash(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	_, err = io.Copy(sum, f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return hex.EncodeToString(sum.Sum(nil)), err
}

// xattrs lists the extended attributes, sorted by name. Inside a container those of "trusted." are not seen.
func xattrs(path string) (string, error) {
	names := make([]byte, 64<<10) // XATTR_LIST_MAX of limits.h
	n, err := unix.Llistxattr(path, names)
	if err != nil {
		return "", err
	}
	list := strings.Split(strings.TrimRight(string(names[:n]), "\x00"), "\x00")
	slices.Sort(list)
	var text strings.Builder
	value := make([]byte, 64<<10) // XATTR_SIZE_MAX of limits.h
	for _, name := range list {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		fmt.Fprintf(&text, " %s=%x", name, value[:n])
	}
	return text.String(), nil
}
