package main

import (
	"fmt"
	"strconv"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/transport"
)

const usualPoll = 50 * time.Microsecond

// transports are the ways to serve a connection, in the order of the table.
var transports = []struct {
	name  string
	serve func(dev int) error // nil: the kernel's overlayfs, which needs no server
	here  bool                // the client runs on CPU 0 too
	rings bool                // needs FUSE over io_uring
}{
	{name: "kernel overlayfs"},
	{name: "go-fuse NewServer", serve: serveGoFuse},
	{name: "loop, 1 thread", serve: loop{threads: 1, cpu: -1}.serve},
	{name: "loop, 2 threads", serve: loop{threads: 2, cpu: -1}.serve},
	{name: "loop, 2 threads, cloned fds", serve: loop{threads: 2, clones: true, cpu: -1}.serve},
	{name: "loop, 1 thread, polls", serve: loop{threads: 1, poll: usualPoll, cpu: -1}.serve},
	{name: "loop, 2 threads, cloned fds, poll", serve: loop{threads: 2, clones: true, poll: usualPoll, cpu: -1}.serve},
	{name: "loop, 1 thread, server and client on one CPU", serve: loop{threads: 1}.serve, here: true},
	{name: "FUSE over io_uring, a thread on each CPU", serve: serveRings, rings: true},
	{name: "ours without polling", serve: func(dev int) error { return serveOurs(dev, &transport.Options{Poll: -1}) }},
	{name: "ours", serve: func(dev int) error { return serveOurs(dev, nil) }},
}

func init() {
	workers["transport-serve"] = serveTransport
	workers["transport-client"] = transportClient
	workers["transport-burn"] = burn
}

func serveGoFuse(dev int) error { return serveGoFuseOn(newTransportFS(), dev, transportOptions()) }

func serveGoFuseOn(fs fuse.RawFileSystem, dev int, o *fuse.MountOptions) error {
	s, err := fuse.NewServer(fs, fmt.Sprintf("/dev/fd/%d", dev), o)
	if err != nil {
		return err
	}
	s.Serve()
	return nil
}

func serveOurs(dev int, o *transport.Options) error { return serveOursOn(newTransportFS(), dev, o) }

func serveOursOn(fs fuse.RawFileSystem, dev int, o *transport.Options) error {
	s, err := transport.New(fs, transportOptions(), dev, o)
	if err == nil {
		err = s.Init()
	}
	if err != nil {
		return err
	}
	return s.Serve()
}

// serveTransport mounts on a directory, with a transport by its number, and serves until that is unmounted.
func serveTransport(args []string) (values, error) {
	i, err := strconv.Atoi(args[0])
	if err != nil {
		return nil, err
	}
	dev, err := mountBench(args[1])
	if err != nil {
		return nil, err
	}
	return values{}, transports[i].serve(dev)
}

// mountBench mounts on a directory, for a server that is to come, and gives the connection.
func mountBench(dir string) (dev int, err error) {
	dev, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other", dev)
	return dev, unix.Mount("bench", dir, "fuse.bench", 0, data)
}
