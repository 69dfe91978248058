// Package transport serves a FUSE connection: it takes requests off /dev/fuse, has a fuse.RawFileSystem handle them, and
// writes the replies. It stands in place of go-fuse's Server, whose goroutines hand over between OS threads at each request.
//
// # Terms
//
//   - A connection is one mount's /dev/fuse descriptor, served by one [Server].
//   - A worker is a goroutine that reads a request, handles it, answers it, and reads the next. One that will read on soon
//     is a reader. Only one reader of a connection ever waits for a request.
//   - The hub is the goroutine of the process that waits, in epoll_wait(2), for connections that have no worker.
//   - To hand over is to start another worker that reads on, before or while a request is handled that takes long.
//   - To poll is to read again and again, with sched_yield(2) in between, before one goes to sleep.
//
// # States of a connection
//
//	idle     no worker; armed in the hub (EPOLLONESHOT)
//	 | a request: the hub's goroutine starts its successor, and becomes the worker
//	busy     one reader or more; disarmed, so that no request wakes anybody but the reader; looked at every tick
//	 | no request for 10 ms (patience): back to idle. ENODEV or ECONNABORTED:
//	dead     handlers are interrupted; the last worker that leaves lets Serve return
//
// There is a second reader only while it is needed:
//
//   - A request that is still being handled after one to two ticks (1 ms) has its reader relieved. So whatever a handler
//     waits for, nobody else waits longer than that.
//   - Requests of a kind that was slow lately (over 50 µs, while others waited, or so long that the reader was relieved) are handed
//     over before they are handled, as is what waits for somebody else always. See slowness. To do so with every fsync(2) cost
//     sqlite, alone on a mount, a fifth.
//   - Where requests cost over 15 µs and others wait each time that one looks (every 8th request), readers are added, up to
//     GOMAXPROCS.
//
// A worker that is no reader leaves when no request is there. No reader is on a locked thread, and all calls that cannot
// block (read, write, sched_yield) are raw ones, for which the scheduler does not take the processor away.
//
// # Polling
//
// A reader polls for 50 µs at most, and only while requests come faster than that: four short gaps in sequence turn polling
// on, two polls in vain turn it off (pace). When a sched_yield takes over 200 µs, somebody else wants the CPU: polling stops
// at once and rests for 10 ms, each time twice as long, up to a second. Half of the processors poll at most, and a single one
// never.
//
// # Memory
//
// Each worker has a buffer for the largest request and reply. Its pages are the kernel's to give when they are touched; when
// all connections are idle, one buffer of a few pages is left in the process. An idle connection has a descriptor, its Server
// and the goroutine that called Serve.
//
// # Locks
//
//	hub.mu
//	  Server.mu
//	  pool.mu
//	Server.open     held for reading during a notification or an ioctl; taken with no other lock
//
// No lock is held while a request is handled.
//
// # Errors
//
// A read is tried again after EINTR, EAGAIN and ENOENT (a request that was taken back). A handler that panics, and a reply
// that the kernel does not take, end in EIO for the caller. FORGET and BATCH_FORGET have no reply.
//
// # What it costs
//
// "make bench-transport" prints the table. What was found on a virtual machine of 2 CPUs
// (Linux 6.18, KVM, no polling of the idle CPU in the guest):
//
//   - A round trip between two CPUs costs 60 to 140 µs if both sides sleep: waking an idle virtual CPU is an exit to the host.
//     If the server polls, it costs 14 to 20 µs; if both are on the same CPU, 7 to 10 µs.
//   - Where the CPUs have work, the kernel leaves client and server on the same one, and blocking is as good as polling.
//     That is why polling may give way so easily.
//   - The server cannot choose to be on its client's CPU. Following it (sched_setaffinity after a look at
//     /proc/TID/stat) makes the kernel wake the client on the other, idle one (select_idle_sibling), and both move for ever:
//     36 to 90 µs. A fixed CPU costs up to 280 µs when somebody else uses that one.
//   - A second thread that waits in read(2) is woken in turn with the first: more CPU time, longer latencies. A descriptor of
//     its own (FUSE_DEV_IOC_CLONE) saves locking in the kernel that 2 CPUs do not feel. Neither is done here.
//   - Each system call that the scheduler hears of has the runtime's sysmon look every 20 µs, for a while, whether to take the
//     processor away. Ticks by a timeout of epoll_wait(2) therefore cost 20 % of the requests per second of 2 or 8 clients, at 250
//     ticks a second already; by a timer of the runtime a thousand do not show.
//   - A locked thread (runtime.LockOSThread) is no faster than a goroutine that makes raw calls, and slower where all
//     processors of the scheduler are in use.
//   - FUSE over io_uring (a ring and a thread on each CPU, the answer fetches the next request) needs half of the CPU time, for the
//     server runs where the request was made and nobody wakes another CPU: 10 to 12 µs for a request with a small answer where ours
//     takes 12 to 18, 34 for an open and close (28 to 57), with two and more clients a fifth to twice as many, and beside processes that
//     compute it keeps a 99th percentile of 50 µs. It is not used, because a session would not survive its server: what was read
//     through a ring is not sent again. FUSE_NOTIFY_RESEND knows the requests of devices only (fs/fuse/dev.c:fuse_resend(), Linux
//     6.18); tried with a server that was killed and one that took over with rings of its own, new requests are served, and a lookup
//     that was under way hangs for ever, also when its caller is killed. Besides, the thread whose entry of a queue has a request is the
//     only one that can take it, so each thread may have one entry only, and an idle mount would keep a thread for each CPU; and it is
//     off unless root sets fuse.enable_uring.
//   - To splice a file's data to the reply, in place of copying it, gains nothing: with go-fuse's server a read of 1 MiB takes as long,
//     and one of 4 KiB no less.
//   - Garbage: 140,000 requests (20,000 files opened and read, 10,000 created and removed) allocated 1.9 KB each, most of it inodes, handles
//     and go-fuse's own, and took 75 collections with the GOGC=50 of cmd/overlayfuse, 34 with 100 and 7 with 400. GODEBUG=gctrace=1 counts
//     0 % of the time for them, and no GOGC stands out of the noise.
//   - To put off what nobody waits for (RELEASE, FORGET) until after the next answer gains nothing, in loops of creating, opening, renaming
//     and removing files: the caller needs longer to wake up than these take.
//   - That a request is there already when a reader comes back says nothing of a second client: on one CPU, the write of
//     the reply lets the client run, and send the next one, before it returns. Hence sample looks before it replies.
//   - Where requests are cheap, a second reader takes from the clients the CPU that it uses. Hence only costly ones call for it.
//   - A handler that takes long was often only preempted. Hence slowness counts what was slow against what was not.
//
// # Taking a session over
//
// Another process that has inherited the descriptor feeds the first INIT (Hello) to Resume, which has the kernel send again
// what was read and not answered (FUSE_NOTIFY_RESEND). The file system's tables are its own to carry over.
//
// # Sources
//
// fs/fuse/dev.c: fuse_dev_do_read(), fuse_dev_do_write(), fuse_dev_poll(); include/uapi/linux/fuse.h (Linux 6.18); libfuse's
// lib/fuse_loop_mt.c; go-fuse v2.12.1's fuse/protocol-server.go, which parses the requests.
//
// # What it is not
//
// It does not mount (overlayfuse/mount.go). It does not splice: replies are written from the buffer that the file system
// filled. A file system's Init is not called, for it takes go-fuse's Server.
package transport
