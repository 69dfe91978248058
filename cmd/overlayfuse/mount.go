package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse"
)

// mountRequest is one mount, as the command line says it.
type mountRequest struct {
	options    overlayfuse.Options
	mountpoint string
	foreground bool
	fake       bool // check everything but do not mount
	readyFD    int  // of the background process: where its starter listens; -1 if there is none
}

// mountCommand is "overlayfuse [-f] [-d] [-o OPTIONS]... [SOURCE] MOUNTPOINT".
func mountCommand(args []string) int {
	fs := newFlags("overlayfuse")
	options := fs.StringArrayP("options", "o", nil, "")
	foreground := fs.BoolP("foreground", "f", false, "")
	debug := fs.BoolP("debug", "d", false, "")
	showVersion := fs.BoolP("version", "V", false, "")
	help := fs.BoolP("help", "h", false, "")
	readyFD := fs.Int("ready-fd", -1, "")
	if err := fs.Parse(args); err != nil {
		return fail(exitUsage, err)
	}
	switch {
	case *help:
		usage(os.Stdout)
		return exitOK
	case *showVersion:
		fmt.Println(versionText())
		return exitOK
	}
	r := mountRequest{foreground: *foreground || *debug, readyFD: *readyFD}
	if err := r.take(*options, fs.Args()); err != nil {
		return r.refuse(err)
	}
	if *debug {
		r.options.Mount.Debug = true
	}
	return r.run()
}

// mountHelper is what mount(8) runs: "mount.TYPE SOURCE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE.SUBTYPE]".
func mountHelper(name string, args []string) int {
	fs := newFlags(name)
	options := fs.StringArrayP("options", "o", nil, "")
	fake := fs.BoolP("fake", "f", false, "")
	sloppy := fs.BoolP("sloppy", "s", false, "")
	fs.BoolP("no-mtab", "n", false, "")
	fs.BoolP("verbose", "v", false, "")
	namespace := fs.StringP("namespace", "N", "", "")
	fs.StringP("types", "t", "", "")
	showVersion := fs.BoolP("version", "V", false, "")
	readyFD := fs.Int("ready-fd", -1, "")
	if err := fs.Parse(args); err != nil {
		return fail(exitUsage, err)
	}
	if *showVersion {
		fmt.Println(versionText())
		return exitOK
	}
	r := mountRequest{fake: *fake, readyFD: *readyFD}
	var err error
	switch {
	case *namespace != "":
		err = fmt.Errorf("-N %s: mounting in another namespace is not supported; use nsenter(1)", *namespace)
	case *sloppy:
		err = fmt.Errorf("-s: unknown options cannot be ignored, a layer could be missing")
	case fs.NArg() != 2:
		err = fmt.Errorf("expected SOURCE and DIR, got %d arguments", fs.NArg())
	default:
		err = r.take(*options, fs.Args())
	}
	if err != nil {
		return r.refuse(err)
	}
	return r.run()
}

func newFlags(name string) *pflag.FlagSet {
	fs := pflag.NewFlagSet(name, pflag.ContinueOnError)
	fs.SetOutput(os.Stderr)
	fs.Usage = func() {}
	return fs
}

// take fills in what "-o" and the positional arguments say.
func (r *mountRequest) take(options, args []string) error {
	var err error
	if r.options, err = overlayfuse.ParseOptions(options...); err != nil {
		return err
	}
	switch len(args) {
	case 1:
	case 2:
		if r.options.Mount.Source == "" {
			r.options.Mount.Source = args[0]
		}
	default:
		return fmt.Errorf("expected [SOURCE] MOUNTPOINT, got %d arguments; see --help", len(args))
	}
	r.mountpoint = args[len(args)-1]
	return nil
}

// refuse reports bad usage, also of the background process to its starter.
func (r *mountRequest) refuse(err error) int {
	if r.readyFD >= 0 {
		return tellStarter(r.readyFD, exitUsage, err)
	}
	return fail(exitUsage, err)
}

func (r *mountRequest) run() int {
	switch {
	case r.fake:
		fs, err := overlayfuse.New(r.options.Config)
		if err == nil {
			err = fs.Close()
		}
		if err != nil {
			return fail(exitMount, err)
		}
		return exitOK
	case r.foreground:
		return r.serve(func(error) error { return nil })
	case r.readyFD >= 0:
		return r.background()
	}
	return startBackground()
}

// serve mounts, calls ready, and returns when the mount is gone. ready learns of a failure too.
func (r *mountRequest) serve(ready func(error) error) int {
	unix.Umask(0) // modes come from the kernel with the caller's umask in them
	boundMemory()
	level := logrus.InfoLevel
	if r.options.Mount.Debug {
		level = logrus.DebugLevel
	}
	logrus.SetLevel(level)
	log := logrus.WithField("mountpoint", r.mountpoint)
	r.options.Config.Log = log

	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	if !r.foreground {
		signal.Ignore(unix.SIGHUP)
	}
	fs, err := overlayfuse.New(r.options.Config)
	var session *overlayfuse.Session
	if err == nil {
		if session, err = overlayfuse.Mount(fs, r.mountpoint, r.options.Mount); err != nil {
			err = errors.Join(err, fs.Close())
		}
	}
	if err != nil {
		if errReady := ready(err); errReady != nil {
			err = errors.Join(err, errReady)
		}
		if r.readyFD >= 0 {
			return exitMount // the starter prints it
		}
		return fail(exitMount, err)
	}
	if err := ready(nil); err != nil {
		log.WithError(err).Warn("the starting process is gone")
	}
	return r.wait(session, signals, log)
}

// wait serves until the mount is gone. The first signal unmounts: a mount in use is detached, and served until its last
// user is gone. The second signal ends the process at once; what is in use then stops answering.
func (r *mountRequest) wait(session *overlayfuse.Session, signals <-chan os.Signal, log *logrus.Entry) int {
	ended := make(chan error, 1)
	go func() { ended <- session.Wait() }()
	for asked := false; ; {
		select {
		case err := <-ended:
			if err != nil {
				log.WithError(err).Error("close file system")
				return exitSystem
			}
			return exitOK
		case sig := <-signals:
			if asked {
				log.Warnf("%v again: the mount stops answering", sig)
				return exitSystem
			}
			asked = true
			go func() {
				err := session.Unmount(false)
				if errors.Is(err, unix.EBUSY) {
					log.Warn("in use: detached, and served until the last user is gone")
					err = session.Unmount(true)
				}
				if err != nil {
					log.Error(strings.TrimSpace(err.Error()))
				}
			}()
		}
	}
}
