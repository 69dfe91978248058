// Command overlayfuse mounts overlays over FUSE.
//
//	overlayfuse [-f] [-d] [-o OPTIONS]... [SOURCE] MOUNTPOINT    mount one
//	overlayfuse serve --socket PATH                              serve many, driven over a socket
//	overlayfuse fsck [-n|-y] -o OPTIONS                          check an upper that is not mounted, repair it
//	overlayfuse flush -o OPTIONS                                 complete an upper that is not mounted
//	overlayfuse inspect --socket PATH [--metrics] [ID...]        what goes on in served mounts
//
// As mount.overlayfuse or mount.fuse.overlayfuse (its own name) it is the helper that mount(8) runs for these types.
// Its exit codes are in exit.go.
package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/control"
)

// version is set by the linker (-X main.version=); a plain go build says what the module system knows.
var version = ""

// subcommand is one word after the name: its arguments in, its exit code out.
type subcommand struct {
	name, summary string
	run           func(args []string) int
}

var subcommands = []subcommand{
	{"serve", "serve many mounts, driven over a control socket", serveCommand},
	{"fsck", "check an upper that is not mounted, and repair it", fsckCommand},
	{"flush", "make an upper that is not mounted complete and durable", flushCommand},
	{"inspect", "show counters, flush progress and poisoned files of served mounts", inspectCommand},
}

func main() { os.Exit(run(os.Args)) }

func run(argv []string) int {
	name, args := filepath.Base(argv[0]), argv[1:]
	if name == "mount.overlayfuse" || name == "mount.fuse.overlayfuse" {
		return mountHelper(name, args)
	}
	if len(args) > 0 {
		if args[0] == control.ChildCommand {
			return control.Child(args[1:])
		}
		for _, c := range subcommands {
			if args[0] == c.name {
				return c.run(args[1:])
			}
		}
	}
	return mountCommand(args)
}

// usage is the text of --help.
func usage(w io.Writer) {
	_, _ = fmt.Fprintf(w, `Usage: overlayfuse [-f] [-d] [-o OPTIONS]... [SOURCE] MOUNTPOINT
       overlayfuse COMMAND [ARGUMENTS]

Mounts an overlay of directories on MOUNTPOINT and returns once it is there.

  -o OPTIONS         comma separated: lowerdir=A:B:C (the topmost first),
                     upperdir=U,workdir=W (left out: read-only), the names of
                     fuse-overlayfs and the kernel's overlayfs, and mount(8)'s own
  -f, --foreground   stay in the foreground; SIGINT and SIGTERM unmount
  -d, --debug        log every request; implies -f
  -V, --version      print the version
  -h, --help         print this

Commands:
`) // a terminal that is gone is no concern of ours
	for _, c := range subcommands {
		_, _ = fmt.Fprintf(w, "  %-10s         %s\n", c.name, c.summary)
	}
	_, _ = fmt.Fprint(w, `
Exit codes: 0 mounted, 1 bad usage, 2 system error, 32 mount failed.
`)
}

func versionText() string {
	v := version
	if info, ok := debug.ReadBuildInfo(); v == "" && ok {
		v = info.Main.Version
	}
	return "overlayfuse " + v
}
