package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/control"
)

const inspectUsage = `Usage: overlayfuse inspect --socket PATH [--metrics] [ID...]

Shows what goes on in the mounts of a mount server (overlayfuse serve), or in those with the given IDs. The
snapshotter's IDs are its mount points.

      --socket PATH   the server's control socket
      --metrics       Prometheus's text format instead of JSON: counters and gauges with the label mount="ID",
                      for the textfile collector of node_exporter or a sidecar

JSON is an array, by ID:
  id, state           mounted, detached (in use, off its mount point), or unmounted (its directories are flushed)
  flush               while one runs: phase, files of files_total and bytes of bytes_total completed, synced of sync_total
  fs                  io (passthrough, cached or writeback: how files are read and written), inodes (live), handles
                      (open files; 0 with io=writeback), kept (files that io=writeback keeps open for a
                      while), partial and metacopy (of the live inodes); passthrough (handles
                      that the kernel serves), shared (of these, of a lower's own pages), split (live inodes that a
                      write met while they were shared); listing_bytes (of the listings of merged lower
                      directories, which mounts of the same lower layers share);
                      counters: avoided, deferred, partial, reflinked, completed, failed, ... copy-ups, and bytes
                      copied, cloned, not copied, and dropped from the page cache;
                      poisoned: files that answer EIO because upper and memory are in doubt, each with its cause

A textfile for node_exporter, replaced as a whole:
  overlayfuse inspect --socket PATH --metrics >F.$$ && mv F.$$ /var/lib/node_exporter/overlayfuse.prom

Exit codes: 0 shown, 1 bad usage, 2 the server does not answer or has no such mount.
`

// inspectTimeout is how long a server may take to answer.
const inspectTimeout = 30 * time.Second

// inspectCommand is "overlayfuse inspect".
func inspectCommand(args []string) int {
	fs := newFlags("overlayfuse inspect")
	socket := fs.String("socket", "", "")
	metrics := fs.Bool("metrics", false, "")
	help := fs.BoolP("help", "h", false, "")
	if err := fs.Parse(args); err != nil {
		return fail(exitUsage, err)
	}
	switch {
	case *help:
		fmt.Print(inspectUsage)
		return exitOK
	case *socket == "":
		return fail(exitUsage, errors.New("inspect: --socket PATH is missing"))
	}
	ctx, cancel := context.WithTimeout(context.Background(), inspectTimeout)
	defer cancel()
	client, err := control.Dial(ctx, *socket)
	if err != nil {
		return fail(exitSystem, fmt.Errorf("inspect: %w", err))
	}
	all, err := client.Inspect(ctx, fs.Args()...)
	if err != nil {
		return fail(exitSystem, fmt.Errorf("inspect: %w", err))
	}
	if *metrics {
		err = writeMetrics(os.Stdout, all)
	} else {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		err = e.Encode(append([]control.Inspection{}, all...)) // none: [], not null
	}
	if err != nil {
		return fail(exitSystem, err)
	}
	return exitOK
}
