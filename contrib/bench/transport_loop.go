package main

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// loop is the simplest way to serve a connection: threads that read, handle and answer, one request after the other. A slow
// request holds others up.
type loop struct {
	threads int
	clones  bool          // each thread has a descriptor of its own
	poll    time.Duration // how long a thread polls before it sleeps
	cpu     int           // where all threads run; -1 is anywhere
}

const iocClone = 0x8004e500 // FUSE_DEV_IOC_CLONE

// serve answers requests on dev until the connection is dead.
func (l loop) serve(dev int) error {
	protocol := fuse.NewProtocolServer(newTransportFS(), transportOptions())
	if err := l.once(protocol, dev, make([]byte, 2<<20), make([]byte, 2<<20)); err != nil { // INIT
		return err
	}
	errs := make([]error, l.threads)
	var wg sync.WaitGroup
	for i := range l.threads {
		fd := dev
		if l.clones && i > 0 {
			var err error
			if fd, err = clone(dev); err != nil {
				return err
			}
		}
		wg.Go(func() { errs[i] = l.thread(protocol, fd) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func clone(dev int) (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	from := uint32(dev)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), iocClone, uintptr(unsafe.Pointer(&from))); errno != 0 {
		return -1, fmt.Errorf("clone /dev/fuse: %w", errno)
	}
	return fd, nil
}

func (l loop) thread(protocol *fuse.ProtocolServer, fd int) error {
	runtime.LockOSThread()
	if l.cpu >= 0 {
		var set unix.CPUSet
		set.Set(l.cpu)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return err
		}
	}
	in, out := make([]byte, 2<<20), make([]byte, 2<<20)
	for {
		if err := l.once(protocol, fd, in, out); errors.Is(err, unix.ENODEV) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// once answers one request.
func (l loop) once(protocol *fuse.ProtocolServer, fd int, in, out []byte) error {
	n, err := l.read(fd, in)
	if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAGAIN) {
		return nil
	}
	if err != nil {
		return err
	}
	m, status := protocol.HandleRequest([][]byte{in[:n]}, [][]byte{out})
	if status != fuse.OK || m == 0 {
		return nil
	}
	if _, err := unix.Write(fd, out[:m]); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

func (l loop) read(fd int, b []byte) (int, error) {
	start := time.Now()
	ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for l.poll > 0 && time.Since(start) < l.poll {
		n, _, errno := unix.RawSyscall(unix.SYS_POLL, uintptr(unsafe.Pointer(&ready[0])), 1, 0)
		if errno == 0 && n > 0 {
			break
		}
		_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // never fails
	}
	return unix.Read(fd, b)
}
