package transport

import (
	"errors"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Opcodes of the protocol (include/uapi/linux/fuse.h) that mean something to the transport.
const (
	opForget      = 2
	opRelease     = 18
	opInit        = 26
	opReleaseDir  = 29
	opSetLkW      = 33
	opInterrupt   = 36
	opBatchForget = 42
	opSyncFS      = 50
	opCount       = 64 // more than there are
)

const (
	inHeaderSize  = int(unsafe.Sizeof(fuse.InHeader{}))
	writeInSize   = int(unsafe.Sizeof(fuse.WriteIn{}))
	outHeaderSize = int(unsafe.Sizeof(fuse.OutHeader{}))
)

// read takes one request off the device, or says EAGAIN. The descriptor does not block, so the scheduler need not hear of
// the call, and the goroutine keeps its thread and its processor.
func read(fd int, b []byte) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return int(n), errno
}

// largeReply is the size in bytes above which the scheduler hears of the copying of a reply.
const largeReply = 64 << 10

// write answers one request, or notifies.
func write(fd int, b []byte) unix.Errno {
	call := unix.RawSyscall
	if len(b) > largeReply {
		call = unix.Syscall
	}
	for {
		_, _, errno := call(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if errno != unix.EINTR {
			return errno
		}
	}
}

// await blocks until the device has a request or is dead, and tells whether that came before the timeout.
func await(fd int, timeout time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	ts := unix.NsecToTimespec(int64(timeout))
	n, err := unix.Ppoll(fds, &ts, nil)
	return n != 0 || errors.Is(err, unix.EINTR)
}

// yield lets whoever wants this CPU run.
func yield() { _, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }

// header is the header of a request that was read.
//
// Preconditions: b holds one.
func header(b []byte) *fuse.InHeader { return (*fuse.InHeader)(unsafe.Pointer(unsafe.SliceData(b))) }

// bytesOf is the memory of v, a structure of the protocol.
func bytesOf[T any](v *T) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v)) }
