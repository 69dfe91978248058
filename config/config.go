package config

import (
	"time"

	"github.com/sirupsen/logrus"
)

// DefaultPath is the file that is read when none is named; it need not exist.
const DefaultPath = "/etc/containerd-overlayfuse-grpc/config.toml"

// Config is the whole configuration.
type Config struct {
	// Root is the directory of the snapshots and their metadata.
	Root Path `toml:"root"`
	// Address is the unix socket of the snapshots service.
	Address Socket `toml:"address"`
	// UpperdirLabel shows each snapshot's upper directory as the label containerd.io/snapshot/overlay.upperdir.
	UpperdirLabel bool `toml:"upperdir_label"`
	// UsageTTL is how long the measured usage of an active snapshot is answered again without measuring it.
	UsageTTL Duration `toml:"usage_ttl"`

	Log    Log    `toml:"log"`
	Mount  Mount  `toml:"mount"`
	Commit Commit `toml:"commit"`
	Server Server `toml:"server"`
}

// Log says what is logged, and how.
type Log struct {
	Level  Level  `toml:"level"`
	Format Format `toml:"format"`
}

// Mount is what every mount has in common.
type Mount struct {
	// Options are passed to the mount server for every container's mount, as after -o.
	Options []Option `toml:"options"`
	// IO says which open files the kernel reads and writes by itself.
	IO IO `toml:"io"`
	// Sharing says which files of an image use the page cache that all containers share.
	Sharing Sharing `toml:"sharing"`
	// Views says how read-only snapshots of several layers are mounted.
	Views Views `toml:"views"`
}

// Commit is how a container's snapshot becomes a layer.
type Commit struct {
	// Metacopy says what becomes of files whose metadata alone was changed.
	Metacopy Metacopy `toml:"metacopy"`
}

// KeepMetacopy tells whether files whose metadata alone was changed are committed without data.
func (c *Config) KeepMetacopy() bool {
	return c.Commit.Metacopy == MetacopyKeep || c.Commit.Metacopy == MetacopyAuto && !c.UpperdirLabel
}

// Server is the mount server, the process "overlayfuse serve".
type Server struct {
	// Socket is its control socket.
	Socket Socket `toml:"socket"`
	// Autostart starts Command when nothing listens on Socket.
	Autostart bool `toml:"autostart"`
	// Command is the program and its arguments; an empty list is DefaultCommand.
	Command []string `toml:"command"`
	// StartTimeout is how long a started Command may take until it answers.
	StartTimeout Duration `toml:"start_timeout"`
}

// Default is the configuration that holds without a file.
func Default() Config {
	return Config{
		Root:     Path{"/var/lib/containerd-overlayfuse-grpc"},
		Address:  Socket{"/run/containerd-overlayfuse-grpc/containerd-overlayfuse-grpc.sock"},
		UsageTTL: Duration{10 * time.Second},
		Log:      Log{Level: Level{logrus.InfoLevel}, Format: FormatText},
		Mount:    Mount{Options: []Option{}, IO: IOAuto, Sharing: SharingExec, Views: ViewsAuto},
		Commit:   Commit{Metacopy: MetacopyAuto},
		Server: Server{
			Socket:       Socket{"/run/overlayfuse/control.sock"},
			Autostart:    true,
			Command:      []string{},
			StartTimeout: Duration{10 * time.Second},
		},
	}
}

// ServeCommand is the command line of the mount server: Command, or "overlayfuse serve" on Socket.
func (s Server) ServeCommand() []string {
	if len(s.Command) > 0 {
		return s.Command
	}
	return []string{"overlayfuse", "serve", "--socket", s.Socket.String()}
}
