package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse"
)

// flushCommand is "overlayfuse flush [--keep-metacopy] -o OPTIONS": makes an upper that is not mounted complete and durable,
// fit to be a layer for anybody. It ends early, and can be started again, on SIGINT and SIGTERM.
func flushCommand(args []string) int {
	fs := newFlags("overlayfuse flush")
	options := fs.StringArrayP("options", "o", nil, "")
	keep := fs.Bool("keep-metacopy", false, "")
	help := fs.BoolP("help", "h", false, "")
	if err := fs.Parse(args); err != nil {
		return fail(exitUsage, err)
	}
	if *help {
		fmt.Print(`Usage: overlayfuse flush [--keep-metacopy] -o lowerdir=A:B,upperdir=U,workdir=W

Copies the data that files of the upper lack and syncs them. Nothing may be mounted with this upper.

  --keep-metacopy    leave files as they are of which only attributes were changed
`)
		return exitOK
	}
	if fs.NArg() > 0 {
		return fail(exitUsage, fmt.Errorf("flush: unexpected argument %q", fs.Arg(0)))
	}
	o, err := overlayfuse.ParseOptions(*options...)
	if err == nil && o.Config.Upper == "" {
		err = errors.New("flush: upperdir= and workdir= are missing")
	}
	if err != nil {
		return fail(exitUsage, err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := flushUpper(ctx, o.Config, *keep); err != nil {
		return fail(exitSystem, err)
	}
	return exitOK
}

func flushUpper(ctx context.Context, c overlayfuse.Config, keep bool) error {
	fs, err := overlayfuse.New(c)
	if err != nil {
		return err
	}
	stats, err := fs.FlushUpper(ctx, overlayfuse.FlushOptions{KeepMetacopy: keep})
	if err := errors.Join(err, fs.Close()); err != nil {
		return err
	}
	fmt.Printf("%d files completed, %d bytes; %d kept metacopy\n", stats.Completed, stats.Bytes, stats.Kept)
	return nil
}
