package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/control"
)

const serveUsage = `Usage: overlayfuse serve --socket PATH [--log-level LEVEL] [--log-format FORMAT]

Serves many mounts from one process, driven over a Unix socket by root or its own user.

      --socket PATH        the control socket; one that a dead server left is replaced
      --log-level LEVEL    trace, debug, info (default), warn or error
      --log-format FORMAT  text (default) or json

SIGTERM or SIGINT: takes no new mounts, unmounts what is not in use, and exits when the last mount is gone. A second
one exits at once: what is mounted then stops answering.

Exit codes: 0 stopped after its last mount, 1 bad usage, 2 it could not serve, or was ended with mounts in use.
`

// serveCommand is "overlayfuse serve".
func serveCommand(args []string) int {
	fs := newFlags("overlayfuse serve")
	socket := fs.String("socket", "", "")
	level := fs.String("log-level", "info", "")
	format := fs.String("log-format", "text", "")
	help := fs.BoolP("help", "h", false, "")
	if err := fs.Parse(args); err != nil {
		return fail(exitUsage, err)
	}
	if *help {
		fmt.Print(serveUsage)
		return exitOK
	}
	switch {
	case fs.NArg() > 0:
		return fail(exitUsage, fmt.Errorf("serve: unexpected argument %q", fs.Arg(0)))
	case *socket == "":
		return fail(exitUsage, fmt.Errorf("serve: --socket PATH is missing"))
	}
	if err := setLogging(*level, *format); err != nil {
		return fail(exitUsage, fmt.Errorf("serve: %w", err))
	}
	if err := serve(*socket); err != nil {
		return fail(exitSystem, err)
	}
	return exitOK
}

func setLogging(level, format string) error {
	l, err := logrus.ParseLevel(level)
	if err != nil {
		return fmt.Errorf("--log-level: %w", err)
	}
	logrus.SetLevel(l)
	switch format {
	case "text":
	case "json":
		logrus.SetFormatter(&logrus.JSONFormatter{})
	default:
		return fmt.Errorf("--log-format %q: must be text or json", format)
	}
	return nil
}

func serve(socket string) error {
	socket, err := filepath.Abs(socket)
	if err != nil {
		return err
	}
	unix.Umask(0o177) // for the socket
	l, err := control.Listen(socket)
	if err != nil {
		return err
	}
	unix.Umask(0) // modes come from the kernel with the caller's umask in them
	boundMemory()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	signal.Ignore(unix.SIGHUP)

	log := logrus.NewEntry(logrus.StandardLogger())
	server := control.NewServer(log)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	go func() {
		log.Infof("%v: taking no new mounts, stopping after the last one", <-signals)
		notify(log, "STOPPING=1")
		go server.Shutdown()
		sig := <-signals
		cancel(fmt.Errorf("%v again: ended with mounts in use", sig))
	}()
	log.WithField("socket", socket).Info("serving")
	notify(log, "READY=1")
	if err := server.Serve(ctx, l); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// notify tells systemd, if it started us (sd_notify(3)).
func notify(log *logrus.Entry, state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		log.WithError(err).Warn("notify systemd")
		return
	}
	if _, err := conn.Write([]byte(state)); err != nil {
		log.WithError(err).Warn("notify systemd")
	}
	_ = conn.Close() // a datagram socket keeps nothing back
}
