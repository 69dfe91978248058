package fstool

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

var nameOps = map[string]op{
	"put":      {"PATH CONTENT [MODE]", put},
	"dirs":     {"PATH...", dirs},
	"mkdir":    {"PATH [MODE]", mkdir},
	"rmdir":    {"PATH", func(_ *process, a []string) (string, error) { return "", unix.Rmdir(a[0]) }},
	"unlink":   {"PATH", func(_ *process, a []string) (string, error) { return "", unix.Unlink(a[0]) }},
	"symlink":  {"TARGET PATH", func(_ *process, a []string) (string, error) { return "", unix.Symlink(a[0], a[1]) }},
	"readlink": {"PATH", readlink},
	"link":     {"OLD NEW", func(_ *process, a []string) (string, error) { return "", unix.Link(a[0], a[1]) }},
	"rename":   {"OLD NEW [FLAGS]", rename},
	"mknod":    {"PATH TYPE [MODE] [MAJOR] [MINOR]", mknod},
	"whiteout": {"PATH...", whiteout},
	"bind":     {"PATH", bind},
	"dial":     {"PATH", dial},
	"tmpfile":  {"FD DIR [MODE] [FLAGS]", (*process).tmpfile},
	"linkfd":   {"FD NEW", (*process).linkfd},
	"rmtree":   {"PATH", func(_ *process, a []string) (string, error) { return "", os.RemoveAll(a[0]) }},
	"many":     {"DIR PREFIX COUNT", many},
	"fewer":    {"DIR PREFIX FROM TO", fewer},
	"layers":   {"COUNT", layers},
	"long":     {"COUNT CHAR", long},
}

// put makes a file with this content and exactly this mode, and the directories above it (0755).
func put(_ *process, a []string) (string, error) {
	mode := uint32(0o644)
	if len(a) > 2 {
		var err error
		if mode, err = octal(a[2]); err != nil {
			return "", err
		}
	}
	if err := os.MkdirAll(filepath.Dir(a[0]), 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(a[0], []byte(a[1]), 0o600); err != nil {
		return "", err
	}
	return "", unix.Chmod(a[0], mode)
}

func dirs(_ *process, a []string) (string, error) {
	for _, d := range a {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return "", err
		}
	}
	return "", nil
}

func mkdir(_ *process, a []string) (string, error) {
	mode := uint32(0o777)
	if len(a) > 1 {
		var err error
		if mode, err = octal(a[1]); err != nil {
			return "", err
		}
	}
	return "", unix.Mkdir(a[0], mode)
}

func readlink(_ *process, a []string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlink(a[0], buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

var renameFlags = map[string]int{
	"noreplace": unix.RENAME_NOREPLACE, "exchange": unix.RENAME_EXCHANGE, "whiteout": unix.RENAME_WHITEOUT,
}

func rename(_ *process, a []string) (string, error) {
	how := 0
	if len(a) > 2 {
		var err error
		if how, err = flags(a[2], renameFlags); err != nil {
			return "", err
		}
	}
	return "", unix.Renameat2(unix.AT_FDCWD, a[0], unix.AT_FDCWD, a[1], uint(how))
}

var nodeTypes = map[string]uint32{
	"file": unix.S_IFREG, "fifo": unix.S_IFIFO, "socket": unix.S_IFSOCK, "char": unix.S_IFCHR, "block": unix.S_IFBLK,
}

func mknod(_ *process, a []string) (string, error) {
	kind, ok := nodeTypes[a[1]]
	if !ok {
		return "", badRequest("unknown type " + a[1])
	}
	mode, dev := uint32(0o666), 0
	if len(a) > 2 {
		var err error
		if mode, err = octal(a[2]); err != nil {
			return "", err
		}
	}
	if len(a) > 4 {
		n, err := numbers(a[3], a[4])
		if err != nil {
			return "", err
		}
		dev = int(unix.Mkdev(uint32(n[0]), uint32(n[1])))
	}
	return "", unix.Mknod(a[0], kind|mode, dev)
}

// whiteout makes overlayfs's whiteouts: character devices 0/0.
func whiteout(_ *process, a []string) (string, error) {
	for _, path := range a {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return "", err
		}
		if err := unix.Mknod(path, unix.S_IFCHR, 0); err != nil {
			return "", err
		}
	}
	return "", nil
}

// bind makes a listening socket; it is kept until the process ends.
func bind(p *process, a []string) (string, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: a[0], Net: "unix"})
	if err != nil {
		return "", err
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		return "", err
	}
	p.files["socket "+a[0]] = f
	return "", nil
}

func dial(_ *process, a []string) (string, error) {
	c, err := net.Dial("unix", a[0])
	if err != nil {
		return "", err
	}
	return "", c.Close()
}

func (p *process) tmpfile(a []string) (string, error) {
	mode, how := uint32(0o666), unix.O_RDWR
	if len(a) > 2 {
		var err error
		if mode, err = octal(a[2]); err != nil {
			return "", err
		}
	}
	if len(a) > 3 {
		var err error
		if how, err = flags(a[3], openFlags); err != nil {
			return "", err
		}
	}
	fd, err := unix.Open(a[1], unix.O_TMPFILE|unix.O_CLOEXEC|how, mode)
	if err != nil {
		return "", err
	}
	return "", p.keep(a[0], fd)
}

func (p *process) linkfd(a []string) (string, error) {
	fd, err := p.fd(a[0])
	if err != nil {
		return "", err
	}
	return "", unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, a[1], unix.AT_SYMLINK_FOLLOW)
}

// many makes COUNT empty files PREFIX0000, PREFIX0001, ...
func many(_ *process, a []string) (string, error) {
	n, err := number(a[2])
	if err != nil {
		return "", err
	}
	for i := range n {
		fd, err := unix.Open(fmt.Sprintf("%s/%s%04d", a[0], a[1], i), unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC|unix.O_WRONLY, 0o644)
		if err != nil {
			return "", err
		}
		if err := unix.Close(fd); err != nil {
			return "", err
		}
	}
	return "", nil
}

// fewer removes what many has made, from one number up to another.
func fewer(_ *process, a []string) (string, error) {
	from, err := number(a[2])
	if err != nil {
		return "", err
	}
	to, err := number(a[3])
	if err != nil {
		return "", err
	}
	for i := from; i < to; i++ {
		if err := unix.Unlink(fmt.Sprintf("%s/%s%04d", a[0], a[1], i)); err != nil {
			return "", err
		}
	}
	return "", nil
}

// long answers CHAR, COUNT times: a name of that length.
func long(_ *process, a []string) (string, error) {
	n, err := number(a[0])
	if err != nil {
		return "", err
	}
	return strings.Repeat(a[1], int(n)), nil
}

// layers makes COUNT layers l1, l2, ...; each has a file of its own (f1, f2, ...) and one that all have (all): its number.
func layers(p *process, a []string) (string, error) {
	n, err := number(a[0])
	if err != nil {
		return "", err
	}
	for i := int64(1); i <= n; i++ {
		for _, name := range []string{fmt.Sprint("f", i), "all"} {
			if _, err := put(p, []string{fmt.Sprintf("l%d/d/%s", i, name), fmt.Sprint(i)}); err != nil {
				return "", err
			}
		}
	}
	return "", nil
}
