package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Exit codes.
const (
	exitOK     = 0
	exitMissed = 1 // with -strict: a bound was missed, or an experiment failed
	exitUsage  = 2
	exitFailed = 3 // it could not measure
)

const usage = `usage: bench all|copyup|threshold [flags]; -h after any prints the flags`

// lists are the experiments of the commands that have names for them.
var lists = map[string]func(*bench) []experiment{"all": (*bench).everything, "copyup": (*bench).experiments}

// settings are the flags.
type settings struct {
	overlayfuse string // the binary
	options     string // further mount options of ours
	writeback   bool   // ours with io=writeback has a column of its own
	mirror      bool   // mirrorFS has a column of its own
	dir         string // scratch directories are made in it; "" is a new file system
	out         string // the tables go there too; "" is nowhere
	quick       bool
	strict      bool
	list        bool
	rounds      int // of a latency; heavy experiments have a third of them
	only        *regexp.Regexp
	deadline    time.Duration // of each child; 0 is the experiment's own
}

func main() {
	// Servers and workers die with the thread that started them: let it be the one that lives as long as the process.
	runtime.LockOSThread()
	if len(os.Args) > 2 && os.Args[1] == "-worker" {
		os.Exit(work(os.Args[2], os.Args[3:]))
	}
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(exitUsage)
	}
	var run func(*bench) (*report, error)
	switch os.Args[1] {
	case "all":
		run = (*bench).all
	case "copyup":
		run = (*bench).copyup
	case "transport":
		os.Exit(benchTransport(os.Args[2:]))
	case "threshold":
		run = (*bench).threshold
	default:
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(exitUsage)
	}
	os.Exit(command(os.Args[1], os.Args[2:], run))
}

func command(name string, args []string, run func(*bench) (*report, error)) int {
	s, err := parse(name, args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		return exitUsage
	case s.list:
		for _, x := range lists[name](&bench{settings: s}) {
			fmt.Println(x.name)
		}
		return exitOK
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	code, err := measure(ctx, name, s, run)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return exitFailed
	}
	return code
}

func measure(ctx context.Context, name string, s settings, run func(*bench) (*report, error)) (code int, err error) {
	if err := ownNamespace(); err != nil {
		return 0, err
	}
	place, err := newScratch(s.dir)
	if err != nil {
		return 0, err
	}
	b := &bench{
		settings: s, ctx: ctx, base: place.dir, remove: place.remove,
		lowers: map[string]*lower{}, stacks: map[system]*stack{},
	}
	defer func() { err = errors.Join(err, b.close()) }()
	r, err := run(b)
	if r != nil {
		err = errors.Join(err, r.write(name, s.out))
	}
	if err != nil {
		return 0, err
	}
	if s.strict && r.missed() {
		return exitMissed, nil
	}
	return exitOK, nil
}

func parse(name string, args []string) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("bench "+name, flag.ContinueOnError)
	flags.StringVar(&s.overlayfuse, "overlayfuse", "bin/overlayfuse", "the `binary` of ours")
	flags.StringVar(&s.options, "options", "", "further mount `options` of ours (not of containers)")
	flags.BoolVar(&s.writeback, "writeback", false, "measure ours with io=writeback, too, in a column of its own")
	flags.BoolVar(&s.mirror, "mirror", false, "measure a FUSE server that only mirrors a plain directory, too: what FUSE itself costs")
	flags.StringVar(&s.dir, "dir", "", "`directory` for a scratch directory, which is removed at the end (default: on a new ext4 in "+imageParent+")")
	flags.StringVar(&s.out, "out", "", "write the tables and all samples into this `directory`")
	flags.BoolVar(&s.quick, "quick", false, "smaller files, fewer rounds")
	flags.BoolVar(&s.strict, "strict", false, "exit code 1 if a bound is missed")
	flags.IntVar(&s.rounds, "rounds", 0, "rounds of a latency, a third of them for heavy experiments (default 10, all 7, -quick 3)")
	flags.DurationVar(&s.deadline, "deadline", 0, "kill a workload after this `time` (default: as the experiment says)")
	only := flags.String("only", "", "only the experiments whose names match this `regexp`")
	if lists[name] != nil {
		flags.BoolVar(&s.list, "list", false, "print the names of the experiments")
	}
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	var err error
	if s.only, err = regexp.Compile(*only); err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err == nil {
		s.overlayfuse, err = filepath.Abs(s.overlayfuse)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return s, err
	}
	if s.rounds <= 0 {
		switch {
		case s.quick:
			s.rounds = 3
		case name == "all":
			s.rounds = 7
		default:
			s.rounds = 10
		}
	}
	return s, nil
}
