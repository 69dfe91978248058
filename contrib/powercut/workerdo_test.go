package powercut_test

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// do makes the system calls of an operation.
func (w *worker) do(o op) error {
	path := filepath.Join(w.Dir, o.Name)
	switch o.Kind {
	case opRename:
		return unix.Rename(path, filepath.Join(w.Dir, o.To))
	case opUnlink:
		return unix.Unlink(path)
	case opChmod:
		return unix.Chmod(path, o.Mode)
	case opCreate:
		return w.with(path, o, unix.O_CREAT|unix.O_EXCL, func(int) error { return nil })
	case opRewrite:
		return w.with(path, o, unix.O_TRUNC, func(fd int) error { return w.write(fd, o) })
	case opWrite:
		return w.with(path, o, 0, func(fd int) error { return w.write(fd, o) })
	case opStore:
		return w.with(path, o, 0, func(fd int) error { return w.store(fd, o) })
	case opTruncate:
		return w.with(path, o, 0, func(fd int) error { return unix.Ftruncate(fd, o.Len) })
	case opPunch:
		return w.with(path, o, 0, func(fd int) error {
			return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, o.Off, o.Len)
		})
	case opFsync:
		return w.with(path, o, 0, unix.Fsync)
	case opFdatasync:
		return w.with(path, o, 0, unix.Fdatasync)
	}
	return fmt.Errorf("unknown operation %s", o.Kind)
}

// with gives use a descriptor: one that was kept open or a new one, and keeps it or closes it.
func (w *worker) with(path string, o op, flags int, use func(fd int) error) error {
	fd, kept := w.open[o.File]
	if !kept || flags != 0 {
		var err error
		if fd, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|flags, lowerMode); err != nil {
			return fmt.Errorf("open: %w", err)
		}
		if !kept && w.rand.IntN(2) == 0 {
			w.open[o.File] = fd
		}
	}
	err := use(fd)
	if fd != w.open[o.File] {
		return errors.Join(err, unix.Close(fd))
	}
	if w.rand.IntN(3) == 0 {
		delete(w.open, o.File)
		err = errors.Join(err, unix.Close(fd))
	}
	return err
}

// forget closes the descriptor of a file that has no name any more.
func (w *worker) forget(id uint32) {
	if fd, ok := w.open[id]; ok {
		_ = unix.Close(fd) // nothing of this file is looked at again
		delete(w.open, id)
	}
}

func (w *worker) write(fd int, o op) error {
	buf := make([]byte, o.Len)
	fill(w.Seed, source{o.File, o.N}, o.Off, buf)
	flags := 0
	if o.Sync {
		flags = unix.RWF_DSYNC
	}
	for off := o.Off; len(buf) > 0; {
		n, err := unix.Pwritev2(fd, [][]byte{buf}, off, flags)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("write at %d: %w", off, err)
		}
		off, buf = off+int64(n), buf[n:]
	}
	return nil
}

// store writes through a mapping that lives only for this.
func (w *worker) store(fd int, o op) (err error) {
	start := o.Off / blockSize * blockSize
	m, err := unix.Mmap(fd, start, int(o.Off+o.Len-start), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Munmap(m)) }()
	if err := storeInto(m[o.Off-start:], w.Seed, o); err != nil {
		return err
	}
	if o.Sync {
		if err := unix.Msync(m, unix.MS_SYNC); err != nil {
			return fmt.Errorf("msync: %w", err)
		}
	}
	return nil
}

// storeInto turns the SIGBUS of a mapping that cannot be filled into an error.
func storeInto(m []byte, seed uint64, o op) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("store into the mapping: %v: %w", r, unix.EIO)
		}
	}()
	fill(seed, source{o.File, o.N}, o.Off, m)
	return nil
}
