package fstool

import (
	"golang.org/x/sys/unix"
)

var mapOps = map[string]op{
	"mmap":   {"MAP FD PROT KIND COUNT", (*process).mmap},
	"munmap": {"MAP", (*process).munmap},
	"load":   {"MAP OFFSET COUNT", (*process).load},
	"store":  {"MAP OFFSET TEXT", (*process).store},
	"msync":  {"MAP", (*process).msync},
}

// mmap maps the first COUNT bytes of a file: PROT r or rw, KIND shared or private.
func (p *process) mmap(a []string) (string, error) {
	fd, err := p.fd(a[1])
	if err != nil {
		return "", err
	}
	prot, err := flags(a[2], map[string]int{"r": unix.PROT_READ, "rw": unix.PROT_READ | unix.PROT_WRITE})
	if err != nil {
		return "", err
	}
	kind, err := flags(a[3], map[string]int{"shared": unix.MAP_SHARED, "private": unix.MAP_PRIVATE})
	if err != nil {
		return "", err
	}
	n, err := number(a[4])
	if err != nil {
		return "", err
	}
	m, err := unix.Mmap(fd, 0, int(n), prot, kind)
	if err != nil {
		return "", err
	}
	p.maps[a[0]] = m
	return "", nil
}

func (p *process) mapping(name string) ([]byte, error) {
	m, ok := p.maps[name]
	if !ok {
		return nil, badRequest("no mapping " + name)
	}
	return m, nil
}

func (p *process) munmap(a []string) (string, error) {
	m, err := p.mapping(a[0])
	if err != nil {
		return "", err
	}
	delete(p.maps, a[0])
	return "", unix.Munmap(m)
}

func (p *process) load(a []string) (string, error) {
	m, err := p.mapping(a[0])
	if err != nil {
		return "", err
	}
	n, err := numbers(a[1], a[2])
	if err != nil {
		return "", err
	}
	if n[0] < 0 || n[1] < 0 || n[0]+n[1] > int64(len(m)) {
		return "", badRequest("outside of the mapping")
	}
	return text(m[n[0] : n[0]+n[1]]), nil
}

func (p *process) store(a []string) (string, error) {
	m, err := p.mapping(a[0])
	if err != nil {
		return "", err
	}
	off, err := number(a[1])
	if err != nil {
		return "", err
	}
	if off < 0 || off+int64(len(a[2])) > int64(len(m)) {
		return "", badRequest("outside of the mapping")
	}
	copy(m[off:], a[2])
	return "", nil
}

func (p *process) msync(a []string) (string, error) {
	m, err := p.mapping(a[0])
	if err != nil {
		return "", err
	}
	return "", unix.Msync(m, unix.MS_SYNC)
}
