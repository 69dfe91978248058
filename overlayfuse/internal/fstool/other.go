package fstool

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What reads a file by other ways than read(2), and what is told of changes.
var otherOps = map[string]op{
	"sendfile":  {"FD OFFSET COUNT", (*process).sendfile},
	"uringread": {"FD OFFSET COUNT", (*process).uringread},
	"dpread":    {"FD OFFSET COUNT", (*process).dpread},
	"watch":     {"FD PATH", (*process).watch},
	"events":    {"FD", (*process).events},
	"fanwatch":  {"FD PATH", (*process).fanwatch},
	"fanevents": {"FD", (*process).fanevents},
}

// span is the words FD OFFSET COUNT.
func (p *process) span(a []string) (fd int, n []int64, err error) {
	if fd, err = p.fd(a[0]); err == nil {
		n, err = numbers(a[1], a[2])
	}
	return fd, n, err
}

// sendfile reads through sendfile(2) into a pipe.
func (p *process) sendfile(a []string) (string, error) {
	fd, n, err := p.span(a)
	if err != nil {
		return "", err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer func() { _, _ = r.Close(), w.Close() }()
	got, err := unix.Sendfile(int(w.Fd()), fd, &n[0], int(min(n[1], 4096))) // what a pipe takes at once
	if err != nil {
		return "", err
	}
	buf := make([]byte, got)
	if got > 0 {
		if _, err := r.Read(buf); err != nil {
			return "", err
		}
	}
	return text(buf), nil
}

// dpread is pread(2) of a descriptor with O_DIRECT: into an aligned buffer, of which the last bytes may be cut.
func (p *process) dpread(a []string) (string, error) {
	fd, n, err := p.span(a)
	if err != nil {
		return "", err
	}
	const align = 4096
	size := int(n[1]+align-1) &^ (align - 1)
	buf, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Munmap(buf) }()
	got, err := unix.Pread(fd, buf, n[0])
	if err != nil {
		return "", err
	}
	return text(buf[:min(got, int(n[1]))]), nil
}

// uringParams is struct io_uring_params. Source: include/uapi/linux/io_uring.h (Linux 6.18).
type uringParams struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFD uint32
	_                                                                      [3]uint32
	sq                                                                     struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		_                                                   uint64
	}
}

// uringSQE is struct io_uring_sqe as IORING_OP_READ uses it.
type uringSQE struct {
	opcode, flags uint8
	ioprio        uint16
	fd            int32
	off, addr     uint64
	len, rwFlags  uint32
	userData      uint64
	_             [3]uint64
}

// uringread reads through io_uring, one request on a ring of its own.
func (p *process) uringread(a []string) (string, error) {
	fd, n, err := p.span(a)
	if err != nil {
		return "", err
	}
	var params uringParams
	ring, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0)
	if errno != 0 {
		return "", errno
	}
	defer func() { _ = unix.Close(int(ring)) }()
	const offSQRing, offSQEs, opRead, enterGetEvents = 0, 0x10000000, 22, 1
	const page = 4096 // both rings of one entry are smaller (IORING_FEAT_SINGLE_MMAP)
	rings, err := unix.Mmap(int(ring), offSQRing, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Munmap(rings) }()
	sqes, err := unix.Mmap(int(ring), offSQEs, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Munmap(sqes) }()
	buf, err := unix.Mmap(-1, 0, int(n[1]), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return "", err
	}
	defer func() { _ = unix.Munmap(buf) }()
	at := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&rings[off])) }
	*(*uringSQE)(unsafe.Pointer(&sqes[0])) = uringSQE{opcode: opRead, fd: int32(fd), off: uint64(n[0]),
		addr: uint64(uintptr(unsafe.Pointer(&buf[0]))), len: uint32(n[1])}
	*at(params.sq.array) = 0
	*at(params.sq.tail)++
	if _, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, ring, 1, 1, enterGetEvents, 0, 0); errno != 0 {
		return "", errno
	}
	// struct io_uring_cqe: user_data (8 bytes), then res.
	res := *(*int32)(unsafe.Pointer(&rings[params.cq.cqes+8]))
	if res < 0 {
		return "", unix.Errno(-res)
	}
	return text(buf[:res]), nil
}

// watch sets an inotify(7) watch.
func (p *process) watch(a []string) (string, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return "", err
	}
	if _, err := unix.InotifyAddWatch(fd, a[1], unix.IN_MODIFY|unix.IN_ATTRIB|unix.IN_CLOSE_WRITE|unix.IN_CREATE); err != nil {
		_ = unix.Close(fd)
		return "", err
	}
	return "", p.keep(a[0], fd)
}

var eventNames = []struct {
	bit  uint64
	name string
}{{unix.IN_MODIFY, "modify"}, {unix.IN_ATTRIB, "attrib"}, {unix.IN_CLOSE_WRITE, "close_write"}, {unix.IN_CREATE, "create"}}

// events answers which kinds of events came since the last time, each once, in alphabetical order; of a directory's, with names.
func (p *process) events(a []string) (string, error) {
	return p.readEvents(a[0], func(b []byte) (mask uint64, name string, size int) {
		e := (*unix.InotifyEvent)(unsafe.Pointer(&b[0]))
		size = unix.SizeofInotifyEvent + int(e.Len)
		return uint64(e.Mask), strings.TrimRight(string(b[unix.SizeofInotifyEvent:size]), "\x00"), size
	})
}

// fanwatch sets a fanotify(7) mark.
func (p *process) fanwatch(a []string) (string, error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	path, err := filepath.Abs(a[1])
	if err == nil {
		err = unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_MODIFY|unix.FAN_CLOSE_WRITE, unix.AT_FDCWD, path)
	}
	if err != nil {
		_ = unix.Close(fd)
		return "", err
	}
	return "", p.keep(a[0], fd)
}

// fanevents is events of a fanwatch. The masks are those of inotify.
func (p *process) fanevents(a []string) (string, error) {
	return p.readEvents(a[0], func(b []byte) (mask uint64, name string, size int) {
		e := (*unix.FanotifyEventMetadata)(unsafe.Pointer(&b[0]))
		if e.Fd >= 0 {
			_ = unix.Close(int(e.Fd))
		}
		return e.Mask, "", int(e.Event_len)
	})
}

func (p *process) readEvents(name string, parse func(b []byte) (mask uint64, name string, size int)) (string, error) {
	fd, err := p.fd(name)
	if err != nil {
		return "", err
	}
	var words []string
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EAGAIN {
			break
		}
		if err != nil {
			return "", err
		}
		for b := buf[:n]; len(b) > 0; {
			mask, of, size := parse(b)
			for _, e := range eventNames {
				if mask&e.bit != 0 {
					words = append(words, strings.TrimSuffix(fmt.Sprintf("%s:%s", e.name, of), ":"))
				}
			}
			b = b[size:]
		}
	}
	slices.Sort(words)
	return strings.Join(slices.Compact(words), " "), nil
}
