package fstool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

var dirOps = map[string]op{
	"ls":       {"PATH", ls},
	"lstypes":  {"PATH", lstypes},
	"lsstale":  {"PATH", lsstale},
	"lsino":    {"PATH", lsino},
	"count":    {"PATH", count},
	"opendir":  {"FD PATH", (*process).opendir},
	"readdir":  {"FD [COUNT]", (*process).readdir},
	"seekdir":  {"FD OFFSET", (*process).seekdir},
	"seekall":  {"PATH", seekall},
	"lschurn":  {"PATH", lschurn},
	"lsdup":    {"PATH", lsdup},
	"readsome": {"FD SIZE", (*process).readsome},
}

// entry is one record of getdents64(2).
type entry struct {
	ino  uint64
	off  int64
	kind byte
	name string
}

// getdents reads one buffer of entries; none means the end.
func getdents(fd, size int) ([]entry, error) {
	buf := make([]byte, size)
	n, err := unix.Getdents(fd, buf)
	if err != nil {
		return nil, err
	}
	var out []entry
	for b := buf[:n]; len(b) > 0; {
		reclen := binary.NativeEndian.Uint16(b[16:])
		name, _, _ := strings.Cut(string(b[19:reclen]), "\x00")
		out = append(out, entry{binary.NativeEndian.Uint64(b), int64(binary.NativeEndian.Uint64(b[8:])), b[18], name})
		b = b[reclen:]
	}
	return out, nil
}

// readAll returns every entry of a directory with . and .., in the directory's own order.
func readAll(fd int) ([]entry, error) {
	var all []entry
	for {
		some, err := getdents(fd, 4096)
		if err != nil {
			return nil, err
		}
		if len(some) == 0 {
			return all, nil
		}
		all = append(all, some...)
	}
}

func readPath(path string) ([]entry, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	all, err := readAll(fd)
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	return all, err
}

// names returns the sorted names without . and .. .
func names(all []entry) string {
	var out []string
	for _, e := range all {
		if e.name != "." && e.name != ".." {
			out = append(out, e.name)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func ls(_ *process, a []string) (string, error) {
	all, err := readPath(a[0])
	return names(all), err
}

// lstypes answers name:type from d_type.
func lstypes(_ *process, a []string) (string, error) {
	all, err := readPath(a[0])
	for i, e := range all {
		if e.name != "." && e.name != ".." {
			all[i].name = e.name + ":" + typeName(uint32(e.kind)<<12)
		}
	}
	return names(all), err
}

// lsino compares every entry's d_ino and d_type (not ..: a layer's own number is what the kernel's overlayfs tells there) with stat of the name; it answers the names that differ.
func lsino(_ *process, a []string) (string, error) {
	all, err := readPath(a[0])
	if err != nil {
		return "", err
	}
	var bad []string
	for _, e := range all {
		if e.name == ".." {
			continue
		}
		got, err := stat(unix.AT_FDCWD, a[0]+"/"+e.name, 0, []string{"ino", "type"})
		if err != nil {
			return "", err
		}
		if want := fmt.Sprint(e.ino, " ", typeName(uint32(e.kind)<<12)); got != want {
			bad = append(bad, e.name+"("+want+"!="+got+")")
		}
	}
	return strings.Join(bad, " "), nil
}

// count answers how many entries there are without . and .. .
func count(_ *process, a []string) (string, error) {
	all, err := readPath(a[0])
	return fmt.Sprint(len(strings.Fields(names(all)))), err
}

// lsdup answers the names that a listing has more than once.
func lsdup(_ *process, a []string) (string, error) {
	all, err := readPath(a[0])
	seen := map[string]int{}
	var twice []string
	for _, e := range all {
		if seen[e.name]++; seen[e.name] == 2 {
			twice = append(twice, e.name)
		}
	}
	return strings.Join(twice, " "), err
}

// lsstale answers the names of a listing that are not there.
func lsstale(_ *process, a []string) (string, error) {
	all, err := readPath(a[0])
	if err != nil {
		return "", err
	}
	var stale []string
	for _, e := range all {
		var st unix.Stat_t
		if err := unix.Lstat(a[0]+"/"+e.name, &st); errors.Is(err, unix.ENOENT) {
			stale = append(stale, e.name)
		} else if err != nil {
			return "", err
		}
	}
	return strings.Join(stale, " "), nil
}

// lschurn lists a directory of files in small steps. After each one it removes a name that was listed and one that was not, makes a new
// one, and has somebody else list all. It answers the names that stayed and were not listed exactly once.
func lschurn(_ *process, a []string) (string, error) {
	before, err := readPath(a[0])
	if err != nil {
		return "", err
	}
	fd, err := unix.Open(a[0], unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Close(fd) }()
	seen, gone := map[string]int{}, map[string]bool{}
	remove := func(want int) error {
		for _, e := range before {
			if e.name != "." && e.name != ".." && !gone[e.name] && seen[e.name] == want {
				gone[e.name] = true
				return unix.Unlink(a[0] + "/" + e.name)
			}
		}
		return nil
	}
	for step := 0; ; step++ {
		some, err := getdents(fd, 512)
		if err != nil {
			return "", err
		}
		if len(some) == 0 {
			break
		}
		for _, e := range some {
			seen[e.name]++
		}
		if err := errors.Join(remove(1), remove(0)); err != nil {
			return "", err
		}
		if step < 20 {
			if err := unix.Mknod(fmt.Sprintf("%s/churn%d", a[0], step), unix.S_IFREG|0o600, 0); err != nil {
				return "", err
			}
		}
		if _, err := readPath(a[0]); err != nil {
			return "", err
		}
	}
	var bad []string
	for _, e := range before {
		if !gone[e.name] && seen[e.name] != 1 {
			bad = append(bad, fmt.Sprintf("%s:%d", e.name, seen[e.name]))
		}
	}
	return strings.Join(bad, " "), nil
}

func (p *process) opendir(a []string) (string, error) {
	fd, err := unix.Open(a[1], unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	return "", p.keep(a[0], fd)
}

// readdir reads on to the end, or answers how many entries (with . and ..) the rest has, given "count".
func (p *process) readdir(a []string) (string, error) {
	fd, err := p.fd(a[0])
	if err != nil {
		return "", err
	}
	all, err := readAll(fd)
	if len(a) > 1 {
		return fmt.Sprint(len(all)), err
	}
	return names(all), err
}

// readsome makes one getdents64(2) with a buffer of SIZE bytes and answers how many entries came.
func (p *process) readsome(a []string) (string, error) {
	fd, err := p.fd(a[0])
	if err != nil {
		return "", err
	}
	size, err := number(a[1])
	if err != nil {
		return "", err
	}
	some, err := getdents(fd, int(size))
	return fmt.Sprint(len(some)), err
}

func (p *process) seekdir(a []string) (string, error) {
	fd, err := p.fd(a[0])
	if err != nil {
		return "", err
	}
	off, err := number(a[1])
	if err != nil {
		return "", err
	}
	_, err = unix.Seek(fd, off, unix.SEEK_SET)
	return "", err
}

// seekall seeks to the cookie of every entry, reads on, and compares with what came after it in one whole pass; it
// answers the names after which something else came.
func seekall(_ *process, a []string) (string, error) {
	fd, err := unix.Open(a[0], unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	bad, err := seekEach(fd)
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	return strings.Join(bad, " "), err
}

func seekEach(fd int) ([]string, error) {
	all, err := readAll(fd)
	if err != nil {
		return nil, err
	}
	var bad []string
	for i, e := range all {
		if _, err := unix.Seek(fd, e.off, unix.SEEK_SET); err != nil {
			return nil, err
		}
		rest, err := readAll(fd)
		if err != nil {
			return nil, err
		}
		if !slices.EqualFunc(rest, all[i+1:], func(x, y entry) bool { return x.name == y.name }) {
			bad = append(bad, e.name)
		}
	}
	return bad, nil
}
