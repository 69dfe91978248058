package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// FUSE over io_uring (Linux 6.14): each CPU has a queue, a request goes to the queue of the CPU that it is made on, and the answer
// takes the next request along. FORGET and INTERRUPT come by the device still.
// Sources: include/uapi/linux/fuse.h, fs/fuse/dev_uring.c, io_uring_setup(2), io_uring_enter(2).

// ringSwitch lets connections use it; root may write it.
const ringSwitch = "/sys/module/fuse/parameters/enable_uring"

// withRings turns FUSE over io_uring on while fn runs. Without: the kernel has none, or we may not.
func withRings(fn func(have bool) error) error {
	before, err := os.ReadFile(ringSwitch)
	if err != nil {
		return fn(false)
	}
	if strings.TrimSpace(string(before)) == "Y" {
		return fn(true)
	}
	if err := os.WriteFile(ringSwitch, []byte("Y"), 0); err != nil {
		return fn(false)
	}
	return errors.Join(fn(true), os.WriteFile(ringSwitch, []byte("N"), 0))
}

// Of linux/io_uring.h and linux/fuse.h.
const (
	setupSQE128       = 1 << 10
	setupSingleIssuer = 1 << 12
	setupDeferTaskrun = 1 << 13
	enterGetEvents    = 1
	opURingCmd        = 46
	offSQEs           = 0x10000000
	sqeSize, cqeSize  = 128, 16

	ringRegister, ringCommitAndFetch = 1, 2 // FUSE_IO_URING_CMD
	ringHeaders                      = 288  // struct fuse_uring_req_header: in_out, op_in, and
	ringOpIn, ringEntry              = 128, 256
)

// ringParams is struct io_uring_params.
type ringParams struct {
	sqEntries, cqEntries, flags, cpu, idle, features, wq uint32
	_                                                    [3]uint32
	sq                                                   struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		_                                                   uint64
	}
}

// ring is an io_uring instance that one thread uses, with one command in it at a time.
type ring struct {
	fd                     int
	sqTail, cqHead, cqTail *uint32
	sqMask, cqMask         uint32
	array                  []uint32
	sqes, cqes             []byte
}

func newRing() (*ring, error) {
	p := ringParams{flags: setupSQE128 | setupSingleIssuer | setupDeferTaskrun}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w", errno)
	}
	r := &ring{fd: int(fd)}
	size := max(int(p.sq.array)+int(p.sqEntries)*4, int(p.cq.cqes)+int(p.cqEntries)*cqeSize)
	m, err := unix.Mmap(r.fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err == nil {
		r.sqes, err = unix.Mmap(r.fd, offSQEs, int(p.sqEntries)*sqeSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		return nil, fmt.Errorf("map io_uring: %w", err)
	}
	at := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&m[off])) }
	r.sqTail, r.cqHead, r.cqTail = at(p.sq.tail), at(p.cq.head), at(p.cq.tail)
	r.sqMask, r.cqMask = *at(p.sq.mask), *at(p.cq.mask)
	r.array = unsafe.Slice(at(p.sq.array), p.sqEntries)
	r.cqes = m[p.cq.cqes:]
	return r, nil
}

// command submits a command for /dev/fuse and waits for its completion: the next request.
//
// Errors: ENOTCONN at the end of the connection.
func (r *ring) command(dev int, op uint32, iov []unix.Iovec, commit uint64, queue int) error {
	i := *r.sqTail & r.sqMask
	e := r.sqes[i*sqeSize:][:sqeSize]
	clear(e)
	e[0] = opURingCmd
	*(*int32)(unsafe.Pointer(&e[4])) = int32(dev)
	*(*uint32)(unsafe.Pointer(&e[8])) = op
	*(*uint64)(unsafe.Pointer(&e[16])) = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(iov))))
	*(*uint32)(unsafe.Pointer(&e[24])) = uint32(len(iov))
	*(*uint64)(unsafe.Pointer(&e[56])) = commit // struct fuse_uring_cmd_req begins at 48
	*(*uint16)(unsafe.Pointer(&e[64])) = uint16(queue)
	r.array[i] = i
	atomic.AddUint32(r.sqTail, 1)
	for submit := uintptr(1); ; submit = 0 {
		_, _, errno := unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), submit, 1, enterGetEvents, 0, 0)
		if errno != 0 && errno != unix.EINTR {
			return fmt.Errorf("io_uring_enter: %w", errno)
		}
		h := *r.cqHead
		if atomic.LoadUint32(r.cqTail) == h {
			continue
		}
		res := *(*int32)(unsafe.Pointer(&r.cqes[(h&r.cqMask)*cqeSize+8]))
		atomic.StoreUint32(r.cqHead, h+1)
		if res < 0 {
			return unix.Errno(-res)
		}
		return nil
	}
}

// serveRings serves with one thread for each CPU, on that CPU, and one for the device.
func serveRings(dev int) error {
	o := transportOptions()
	o.ExtraCapabilities |= fuse.CAP_OVER_IO_URING
	protocol := fuse.NewProtocolServer(newTransportFS(), o)
	device := loop{threads: 1, cpu: -1}
	if err := device.once(protocol, dev, make([]byte, 2<<20), make([]byte, 2<<20)); err != nil { // INIT
		return err
	}
	cpus := runtime.NumCPU()
	errs := make([]error, cpus+1)
	var wg sync.WaitGroup
	wg.Go(func() { errs[cpus] = device.thread(protocol, dev) })
	for cpu := range cpus {
		wg.Go(func() { errs[cpu] = ringThread(protocol, dev, cpu) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func ringThread(protocol *fuse.ProtocolServer, dev, cpu int) error {
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return err
	}
	r, err := newRing()
	if err != nil {
		return err
	}
	const most = 1<<20 + 4096
	head, payload, reply := make([]byte, ringHeaders), make([]byte, most), make([]byte, most)
	iov := []unix.Iovec{{Base: &head[0], Len: ringHeaders}, {Base: &payload[0], Len: most}}
	err = r.command(dev, ringRegister, iov, 0, cpu)
	for err == nil {
		h := (*fuse.InHeader)(unsafe.Pointer(&head[0]))
		commit := *(*uint64)(unsafe.Pointer(&head[ringEntry+8]))
		size := (*uint32)(unsafe.Pointer(&head[ringEntry+16])) // of the payload
		inHeader, outHeader := int(unsafe.Sizeof(*h)), int(unsafe.Sizeof(fuse.OutHeader{}))
		args := int(h.Length) - inHeader - int(*size)
		n, status := protocol.HandleRequest([][]byte{head[:inHeader], head[ringOpIn:][:args], payload[:*size]}, [][]byte{reply})
		if status != fuse.OK || n < outHeader {
			return fmt.Errorf("request of opcode %d: %w", h.Opcode, unix.EPROTO)
		}
		copy(head, reply[:outHeader])
		*size = uint32(copy(payload, reply[outHeader:n]))
		err = r.command(dev, ringCommitAndFetch, iov, commit, cpu)
	}
	if errors.Is(err, unix.ENOTCONN) {
		return nil
	}
	return err
}
