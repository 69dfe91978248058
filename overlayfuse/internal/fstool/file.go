package fstool

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

var fileOps = map[string]op{
	"open":      {"FD PATH FLAGS [MODE]", (*process).open},
	"close":     {"FD...", (*process).close},
	"read":      {"FD COUNT", (*process).read},
	"pread":     {"FD OFFSET COUNT", (*process).pread},
	"write":     {"FD TEXT", (*process).write},
	"pwrite":    {"FD OFFSET TEXT", (*process).pwrite},
	"fill":      {"FD OFFSET COUNT CHAR", (*process).fill},
	"lseek":     {"FD OFFSET WHENCE", (*process).lseek},
	"ftruncate": {"FD SIZE", (*process).ftruncate},
	"truncate":  {"PATH SIZE", truncate},
	"fallocate": {"FD MODE OFFSET COUNT", (*process).fallocate},
	"copyrange": {"FD OFFSET FD OFFSET COUNT", (*process).copyrange},
	"fsync":     {"FD", (*process).fsync},
	"cat":       {"PATH", cat},
	"echo":      {"PATH TEXT", func(_ *process, a []string) (string, error) { return "", store(a[0], a[1], unix.O_CREAT|unix.O_TRUNC) }},
	"append":    {"PATH TEXT", func(_ *process, a []string) (string, error) { return "", store(a[0], a[1], unix.O_APPEND) }},
	"over":      {"PATH TEXT", func(_ *process, a []string) (string, error) { return "", store(a[0], a[1], 0) }},
	"runs":      {"PATH", runs},
	"exec":      {"PATH [ARG]...", execute},
	"ids":       {"", func(*process, []string) (string, error) { return fmt.Sprint(unix.Geteuid(), unix.Getegid()), nil }},
}

var openFlags = map[string]int{
	"r": unix.O_RDONLY, "w": unix.O_WRONLY, "rw": unix.O_RDWR, "creat": unix.O_CREAT, "excl": unix.O_EXCL,
	"trunc": unix.O_TRUNC, "append": unix.O_APPEND, "direct": unix.O_DIRECT, "path": unix.O_PATH, "dir": unix.O_DIRECTORY,
	"nofollow": unix.O_NOFOLLOW, "nonblock": unix.O_NONBLOCK, "noatime": unix.O_NOATIME, "sync": unix.O_SYNC,
}

func (p *process) open(a []string) (string, error) {
	how, err := flags(a[2], openFlags)
	if err != nil {
		return "", err
	}
	mode := uint32(0o666)
	if len(a) > 3 {
		if mode, err = octal(a[3]); err != nil {
			return "", err
		}
	}
	fd, err := unix.Open(a[1], how|unix.O_CLOEXEC, mode)
	if err != nil {
		return "", err
	}
	return "", p.keep(a[0], fd)
}

func (p *process) close(a []string) (string, error) {
	for _, name := range a {
		f, err := p.file(name)
		if err != nil {
			return "", err
		}
		delete(p.files, name)
		if err := f.Close(); err != nil {
			return "", err
		}
	}
	return "", nil
}

func (p *process) read(a []string) (string, error) {
	fd, err := p.fd(a[0])
	if err != nil {
		return "", err
	}
	n, err := number(a[1])
	if err != nil {
		return "", err
	}
	buf := make([]byte, n)
	got, err := unix.Read(fd, buf)
	if err != nil {
		return "", err
	}
	return text(buf[:got]), nil
}

func (p *process) pread(a []string) (string, error) {
	fd, err := p.fd(a[0])
	if err != nil {
		return "", err
	}
	n, err := numbers(a[1], a[2])
	if err != nil {
		return "", err
	}
	buf := make([]byte, n[1])
	got, err := unix.Pread(fd, buf, n[0])
	if err != nil {
		return "", err
	}
	return text(buf[:got]), nil
}

// text shows content: as it is, but zero bytes as "." .
func text(b []byte) string { return strings.ReplaceAll(string(b), "\x00", ".") }

// content is the TEXT of a request: x*4096 is 4096 times x, all else is as it is.
func content(words string) []byte {
	if char, count, ok := strings.Cut(words, "*"); ok && len(char) == 1 {
		if n, err := number(count); err == nil && n >= 0 {
			return []byte(strings.Repeat(char, int(n)))
		}
	}
	return []byte(words)
}

func (p *process) write(a []string) (string, error) {
	fd, err := p.fd(a[0])
	if err != nil {
		return "", err
	}
	_, err = unix.Write(fd, content(a[1]))
	return "", err
}

func (p *process) pwrite(a []string) (string, error) {
	fd, err := p.fd(a[0])
	if err != nil {
		return "", err
	}
	off, err := number(a[1])
	if err != nil {
		return "", err
	}
	_, err = unix.Pwrite(fd, content(a[2]), off)
	return "", err
}

// fill writes COUNT times CHAR at OFFSET.
func (p *process) fill(a []string) (string, error) {
	f, err := p.file(a[0])
	if err != nil {
		return "", err
	}
	n, err := numbers(a[1], a[2])
	if err != nil {
		return "", err
	}
	_, err = f.WriteAt([]byte(strings.Repeat(a[3], int(n[1]))), n[0])
	return "", err
}

var whences = map[string]int{
	"set": unix.SEEK_SET, "cur": unix.SEEK_CUR, "end": unix.SEEK_END, "data": unix.SEEK_DATA, "hole": unix.SEEK_HOLE,
}

func (p *process) lseek(a []string) (string, error) {
	fd, err := p.fd(a[0])
	if err != nil {
		return "", err
	}
	off, err := number(a[1])
	if err != nil {
		return "", err
	}
	whence, err := flags(a[2], whences)
	if err != nil {
		return "", err
	}
	pos, err := unix.Seek(fd, off, whence)
	return fmt.Sprint(pos), err
}

func (p *process) ftruncate(a []string) (string, error) {
	fd, err := p.fd(a[0])
	if err != nil {
		return "", err
	}
	n, err := number(a[1])
	if err != nil {
		return "", err
	}
	return "", unix.Ftruncate(fd, n)
}

func truncate(_ *process, a []string) (string, error) {
	n, err := number(a[1])
	if err != nil {
		return "", err
	}
	return "", unix.Truncate(a[0], n)
}

var fallocateModes = map[string]int{
	"extend": 0, "keep": unix.FALLOC_FL_KEEP_SIZE, "punch": unix.FALLOC_FL_PUNCH_HOLE, "zero": unix.FALLOC_FL_ZERO_RANGE,
	"collapse": unix.FALLOC_FL_COLLAPSE_RANGE, "insert": unix.FALLOC_FL_INSERT_RANGE, "unshare": unix.FALLOC_FL_UNSHARE_RANGE,
}

func (p *process) fallocate(a []string) (string, error) {
	fd, err := p.fd(a[0])
	if err != nil {
		return "", err
	}
	mode, err := flags(a[1], fallocateModes)
	if err != nil {
		return "", err
	}
	n, err := numbers(a[2], a[3])
	if err != nil {
		return "", err
	}
	return "", unix.Fallocate(fd, uint32(mode), n[0], n[1])
}

// copyrange copies until COUNT bytes are copied or the source ends, and answers how many.
func (p *process) copyrange(a []string) (string, error) {
	from, err := p.fd(a[0])
	if err != nil {
		return "", err
	}
	to, err := p.fd(a[2])
	if err != nil {
		return "", err
	}
	n, err := numbers(a[1], a[3], a[4])
	if err != nil {
		return "", err
	}
	done := 0
	for done < int(n[2]) {
		got, err := unix.CopyFileRange(from, &n[0], to, &n[1], int(n[2])-done, 0)
		if err != nil {
			return "", err
		}
		if got == 0 {
			break
		}
		done += got
	}
	return fmt.Sprint(done), nil
}

func (p *process) fsync(a []string) (string, error) {
	fd, err := p.fd(a[0])
	if err != nil {
		return "", err
	}
	return "", unix.Fsync(fd)
}

func cat(_ *process, a []string) (string, error) {
	b, err := os.ReadFile(a[0])
	return text(b), err
}

func store(path, words string, how int) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|how, 0o666)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, content(words))
	return errors.Join(err, unix.Close(fd))
}

// runs shows a large file as its runs of equal bytes: "a4096 .8192".
func runs(_ *process, a []string) (string, error) {
	f, err := os.Open(a[0])
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	var out []string
	for len(b) > 0 {
		n := 1
		for n < len(b) && b[n] == b[0] {
			n++
		}
		out = append(out, fmt.Sprintf("%s%d", text(b[:1]), n))
		b = b[n:]
	}
	return strings.Join(out, " "), nil
}

// execute runs a program and answers its output.
func execute(_ *process, a []string) (string, error) {
	out, err := exec.Command(a[0], a[1:]...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}
