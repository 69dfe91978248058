package fstool

import (
	"golang.org/x/sys/unix"
)

var lockOps = map[string]op{
	"flock": {"FD HOW", (*process).flock},
	"setlk": {"FD TYPE OFFSET COUNT [ofd]", (*process).setlk},
	"getlk": {"FD TYPE OFFSET COUNT", (*process).getlk},
	"lease": {"FD TYPE", (*process).lease},
}

// flock never waits: a conflict is EAGAIN.
func (p *process) flock(a []string) (string, error) {
	fd, err := p.fd(a[0])
	if err != nil {
		return "", err
	}
	how, err := flags(a[1], map[string]int{"sh": unix.LOCK_SH, "ex": unix.LOCK_EX, "un": unix.LOCK_UN})
	if err != nil {
		return "", err
	}
	return "", unix.Flock(fd, how|unix.LOCK_NB)
}

var lockTypes = map[string]int{"r": unix.F_RDLCK, "w": unix.F_WRLCK, "un": unix.F_UNLCK}

func record(kind, offset, count string) (*unix.Flock_t, error) {
	t, err := flags(kind, lockTypes)
	if err != nil {
		return nil, err
	}
	n, err := numbers(offset, count)
	if err != nil {
		return nil, err
	}
	return &unix.Flock_t{Type: int16(t), Start: n[0], Len: n[1]}, nil
}

// setlk takes or drops a record lock; it never waits. With ofd it belongs to the open file, else to the process.
func (p *process) setlk(a []string) (string, error) {
	fd, err := p.fd(a[0])
	if err != nil {
		return "", err
	}
	lk, err := record(a[1], a[2], a[3])
	if err != nil {
		return "", err
	}
	cmd := unix.F_SETLK
	if len(a) > 4 {
		cmd = unix.F_OFD_SETLK
	}
	return "", unix.FcntlFlock(uintptr(fd), cmd, lk)
}

// getlk answers "free", or the type of the lock that is in the way.
func (p *process) getlk(a []string) (string, error) {
	fd, err := p.fd(a[0])
	if err != nil {
		return "", err
	}
	lk, err := record(a[1], a[2], a[3])
	if err != nil {
		return "", err
	}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_GETLK, lk); err != nil {
		return "", err
	}
	switch lk.Type {
	case unix.F_UNLCK:
		return "free", nil
	case unix.F_RDLCK:
		return "r", nil
	default:
		return "w", nil
	}
}

// lease sets a lease (r, w) or drops it (un).
func (p *process) lease(a []string) (string, error) {
	fd, err := p.fd(a[0])
	if err != nil {
		return "", err
	}
	t, err := flags(a[1], lockTypes)
	if err != nil {
		return "", err
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, t)
	return "", err
}
