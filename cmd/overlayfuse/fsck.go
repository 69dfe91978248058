package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse"
)

// fsckRequest is one check, as the command line says it.
type fsckRequest struct {
	config  overlayfuse.Config
	repair  bool
	verbose bool
}

// fsckCommand is "overlayfuse fsck [-n|-y] [-v] -o OPTIONS...".
func fsckCommand(args []string) int {
	fs := newFlags("overlayfuse fsck")
	options := fs.StringArrayP("options", "o", nil, "")
	check := fs.BoolP("check", "n", false, "")
	repair := fs.BoolP("repair", "y", false, "")
	verbose := fs.BoolP("verbose", "v", false, "")
	help := fs.BoolP("help", "h", false, "")
	err := fs.Parse(args)
	switch {
	case err == nil && *help:
		fsckUsage(os.Stdout)
		return exitFsckClean
	case err == nil && *check && *repair:
		err = errors.New("-n and -y exclude each other")
	case err == nil:
		err = fsckNoArguments(fs)
	}
	if err != nil {
		return fail(exitFsckUsage, err)
	}
	r := fsckRequest{repair: *repair, verbose: *verbose}
	if r.config, err = fsckOptions(*options); err != nil {
		return fail(exitFsckUsage, err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	return r.run(ctx)
}

func fsckNoArguments(fs *pflag.FlagSet) error {
	if fs.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q: the directories are named by -o; see --help", fs.Arg(0))
	}
	return nil
}

func fsckUsage(w io.Writer) {
	_, _ = fmt.Fprint(w, `Usage: overlayfuse fsck [-n|-y] [-v] -o OPTIONS...

Checks the upper directory of an overlay that is not mounted.

  -o, --options OPTIONS   those of the mount; of them count
                          upperdir=U,workdir=W, lowerdir=A:B:C and userxattr.
                          Without lowerdir= what the lower layers are needed for
                          is not checked
  -n, --check             check only, change nothing (the default)
  -y, --repair            repair what can be
  -v, --verbose           also print what a crash leaves and the next mount copes
                          with, and counts
  -h, --help              print this

Exit codes: 0 no errors, 1 errors corrected, 4 errors left (5 both), 8 it could
not be checked (in use by a mount, say), 16 bad usage, 32 interrupted. Notes and
warnings are no errors.
`) // a terminal that is gone is no concern of ours
}

// fsckOptions understands "-o". ParseOptions wants a lower layer: it gets one that no later option can mean.
func fsckOptions(texts []string) (overlayfuse.Config, error) {
	const none = "/dev/null/none"
	o, err := overlayfuse.ParseOptions(append([]string{"lowerdir=" + none}, texts...)...)
	if err != nil {
		return overlayfuse.Config{}, err
	}
	if c := &o.Config; c.Lower[0] == none { // lowerdir= replaces it, lowerdir+= adds to it
		c.Lower = c.Lower[1:]
	}
	if o.Config.Upper == "" {
		return overlayfuse.Config{}, errors.New("upperdir= is missing; see --help")
	}
	return o.Config, nil
}

func (r *fsckRequest) run(ctx context.Context) int {
	report, err := overlayfuse.Check(ctx, r.config, overlayfuse.CheckOptions{Repair: r.repair})
	code := exitFsckClean
	if report.Corrected() > 0 {
		code |= exitFsckCorrected
	}
	if report.Left() > 0 {
		code |= exitFsckUncorrected
	}
	r.print(os.Stdout, &report)
	switch {
	case err == nil:
		r.summarize(os.Stdout, &report)
		return code
	case ctx.Err() != nil:
		return fail(code|exitFsckCanceled, err)
	}
	return fail(code|exitFsckOperational, err)
}

// print writes a line for each finding.
func (r *fsckRequest) print(w io.Writer, report *overlayfuse.CheckReport) {
	for _, f := range report.Findings {
		if f.Severity == overlayfuse.SeverityNote && !r.verbose {
			continue
		}
		state := ""
		if f.Repaired {
			state = " (repaired)"
		}
		_, _ = fmt.Fprintf(w, "%v%s: %s: %s\n", f.Severity, state, printable(f.Path), printable(f.Problem)) // as in fsckUsage
	}
	for _, u := range report.Unchecked {
		_, _ = fmt.Fprintln(w, "not checked: "+u)
	}
}

// summarize writes what it all comes to.
func (r *fsckRequest) summarize(w io.Writer, report *overlayfuse.CheckReport) {
	what := "clean"
	if corrected, left := report.Corrected(), report.Left(); corrected+left > 0 {
		what = fmt.Sprintf("%d errors corrected, %d left", corrected, left)
		if left > 0 && !r.repair {
			what = fmt.Sprintf("%d errors; -y repairs what can be", left)
		}
	}
	if r.verbose {
		what += fmt.Sprintf("; %d directories, %d files, %d of them without data and %d with a part of it",
			report.Dirs, report.Files, report.Metacopies, report.Partials)
	}
	_, _ = fmt.Fprintf(w, "%s: %s\n", printable(r.config.Upper), what) // as in fsckUsage
}

// printable is s for a terminal: what a layer's names hold does not get to write lines or control sequences of its own.
func printable(s string) string {
	if strings.IndexFunc(s, func(c rune) bool { return !unicode.IsPrint(c) || c == unicode.ReplacementChar }) < 0 {
		return s
	}
	return strconv.Quote(s)
}
