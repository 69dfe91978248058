// Command containerd-overlayfuse-grpc serves the overlayfuse snapshotter to containerd, as a proxy plugin on a unix socket.
//
//	containerd-overlayfuse-grpc [--config FILE] [--root DIR] [--address SOCKET] [--log-level LEVEL]
//	containerd-overlayfuse-grpc config default      print a commented configuration that says the defaults
//	containerd-overlayfuse-grpc config check [FILE]  check a configuration
//	containerd-overlayfuse-grpc --version
//
// The mounts of containers live in another process, "overlayfuse serve". This one can be stopped, killed and replaced while
// they are in use. It stops on SIGTERM and SIGINT, finishing the calls that it is in; on a second signal at once.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"github.com/overlayfuse/overlayfuse-snapshotter/config"
	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/control"
)

// Exit codes.
const (
	exitOK      = 0 // stopped by a signal, or the command was done
	exitFailure = 1 // the service could not start or go on
	exitUsage   = 2 // the command line or the configuration is wrong; nothing was done
)

const name = "containerd-overlayfuse-grpc"

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}

// run is main without the process: what it returns is the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 {
		switch args[0] {
		case "config":
			return configCommand(args[1:], stdout, stderr)
		case control.ChildCommand:
			return control.Child(args[1:])
		}
	}
	cfg, done, err := parse(args, stdout, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		complain(stderr, err)
		return exitUsage
	case done:
		return exitOK
	}
	if err := serve(ctx, cfg); err != nil {
		complain(stderr, err)
		return exitFailure
	}
	return exitOK
}

// parse reads the command line and the configuration that it names. done: everything was said already.
func parse(args []string, stdout, stderr io.Writer) (cfg config.Config, done bool, err error) {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(stderr)
	file := flags.String("config", "", "configuration `FILE` (default "+config.DefaultPath+", if it exists)")
	root := flags.String("root", "", "`DIR` of snapshots and metadata, instead of the configured one")
	address := flags.String("address", "", "unix `SOCKET` to serve on, instead of the configured one")
	level := flags.String("log-level", "", "log `LEVEL`, instead of the configured one")
	version := flags.Bool("version", false, "print the version")
	if err := flags.Parse(args); err != nil {
		return cfg, false, err
	}
	if flags.NArg() > 0 {
		return cfg, false, fmt.Errorf("unknown command %q: known are config default, config check", flags.Arg(0))
	}
	if *version {
		_, err := fmt.Fprintln(stdout, name, buildVersion())
		return cfg, true, err
	}
	if cfg, err = load(*file); err != nil {
		return cfg, false, err
	}
	for _, o := range []struct {
		flag, text string
		set        func([]byte) error
	}{
		{"root", *root, cfg.Root.UnmarshalText},
		{"address", *address, cfg.Address.UnmarshalText},
		{"log-level", *level, cfg.Log.Level.UnmarshalText},
	} {
		if o.text == "" {
			continue
		}
		if err := o.set([]byte(o.text)); err != nil {
			return cfg, false, fmt.Errorf("--%s: %w", o.flag, err)
		}
	}
	return cfg, false, cfg.Check()
}

// load reads the named file, or the default one if it exists.
func load(file string) (config.Config, error) {
	if file != "" {
		return config.Load(file)
	}
	cfg, err := config.Load(config.DefaultPath)
	if errors.Is(err, os.ErrNotExist) {
		return config.Default(), nil
	}
	return cfg, err
}

// configCommand is "config default" and "config check".
func configCommand(args []string, stdout, stderr io.Writer) int {
	switch {
	case len(args) == 1 && args[0] == "default":
		if _, err := io.WriteString(stdout, config.Example); err != nil {
			complain(stderr, err)
			return exitFailure
		}
		return exitOK
	case len(args) >= 1 && args[0] == "check":
		flags := flag.NewFlagSet(name+" config check", flag.ContinueOnError)
		flags.SetOutput(stderr)
		named := flags.String("config", config.DefaultPath, "configuration `FILE`")
		if err := flags.Parse(args[1:]); err != nil || flags.NArg() > 1 {
			break
		}
		file := *named
		if flags.NArg() == 1 {
			file = flags.Arg(0)
		}
		if _, err := config.Load(file); err != nil {
			complain(stderr, err)
			return exitUsage
		}
		if _, err := fmt.Fprintf(stdout, "%s: ok\n", file); err != nil {
			complain(stderr, err)
			return exitFailure
		}
		return exitOK
	}
	complain(stderr, errors.New("usage: "+name+" config default | config check [FILE]"))
	return exitUsage
}

// complain says what went wrong; the exit code says that something did.
func complain(stderr io.Writer, err error) {
	_, _ = fmt.Fprintf(stderr, "%s: %v\n", name, err) // there is nowhere else to say it
}

// buildVersion is the module's version or the commit it was built from, as the go command recorded them.
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	version := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && (version == "" || version == "(devel)") {
			version = s.Value
		}
	}
	if version == "" {
		version = "(devel)"
	}
	return version + " " + info.GoVersion
}
