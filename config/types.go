package config

// The types of this file are structs, not strings and numbers, because the TOML decoder asks only structs to check their text.

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
)

// maxSocketPath is the longest path of a unix socket: sun_path has 108 bytes with the final zero (unix(7)).
const maxSocketPath = 107

// Path is an absolute, clean path that can stand in overlayfs's mount options.
type Path struct{ path string }

func (p Path) String() string { return p.path }

// UnmarshalText refuses a path that is not absolute and clean, or that holds a colon, a comma, a backslash or a control character:
// containerd writes the directories below it into mount options and does not escape them.
func (p *Path) UnmarshalText(text []byte) error {
	s := string(text)
	if err := checkAbsolute(s); err != nil {
		return err
	}
	if i := strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || strings.ContainsRune(":,\\", r) }); i >= 0 {
		return fmt.Errorf("path %q holds %q, which mount options cannot carry", s, s[i])
	}
	p.path = s
	return nil
}

// Socket is the absolute, clean path of a unix socket.
type Socket struct{ path string }

func (p Socket) String() string { return p.path }

// UnmarshalText refuses a path that is not absolute and clean, or longer than a socket's path can be.
func (p *Socket) UnmarshalText(text []byte) error {
	s := string(text)
	if err := checkAbsolute(s); err != nil {
		return err
	}
	if len(s) > maxSocketPath {
		return fmt.Errorf("socket path %q has %d bytes, at most %d are possible", s, len(s), maxSocketPath)
	}
	p.path = s
	return nil
}

func checkAbsolute(s string) error {
	switch {
	case s == "":
		return errors.New("the path is empty")
	case !filepath.IsAbs(s):
		return fmt.Errorf("path %q is not absolute", s)
	case s == "/":
		return errors.New("the path is the root directory")
	case filepath.Clean(s) != s:
		return fmt.Errorf("path %q is not clean, write %q", s, filepath.Clean(s))
	}
	return nil
}

// Duration is a length of time that is not negative.
type Duration struct{ time.Duration }

// UnmarshalText reads what [time.ParseDuration] reads.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as \"30s\"", text)
	}
	if v < 0 {
		return fmt.Errorf("duration %q is negative", text)
	}
	d.Duration = v
	return nil
}

// Level is a level of logrus.
type Level struct{ logrus.Level }

// UnmarshalText reads trace, debug, info, warn, error, fatal or panic.
func (l *Level) UnmarshalText(text []byte) error {
	v, err := logrus.ParseLevel(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a log level: trace, debug, info, warn, error, fatal or panic", text)
	}
	l.Level = v
	return nil
}

// choose reads one of a few named values; what says what they are, for the error.
func choose[T fmt.Stringer](v *T, text []byte, what string, values ...T) error {
	for _, choice := range values {
		if choice.String() == string(text) {
			*v = choice
			return nil
		}
	}
	return fmt.Errorf("%q is not %s", text, what)
}

// Format is the form of a log line.
type Format struct{ name string }

func (f Format) String() string { return f.name }

// The formats of a log line.
var (
	FormatText = Format{"text"}
	FormatJSON = Format{"json"}
)

// UnmarshalText reads text or json.
func (f *Format) UnmarshalText(text []byte) error {
	return choose(f, text, "a log format: text or json", FormatText, FormatJSON)
}

// Views says how a read-only snapshot of several layers is mounted.
type Views struct{ name string }

func (w Views) String() string { return w.name }

// The ways to mount a view.
var (
	// ViewsAuto uses the kernel's overlayfs where it shows the layers right, and FUSE elsewhere.
	ViewsAuto = Views{"auto"}
	// ViewsFUSE always uses FUSE.
	ViewsFUSE = Views{"fuse"}
)

// UnmarshalText reads auto or fuse.
func (w *Views) UnmarshalText(text []byte) error {
	return choose(w, text, "a kind of view: auto or fuse", ViewsAuto, ViewsFUSE)
}

// IO says which open files the kernel reads and writes by itself.
type IO struct{ name string }

func (i IO) String() string { return i.name }

// The ways to read and write.
var (
	// IOAuto uses passthrough where it can be had, and elsewhere is IOWriteback.
	IOAuto = IO{"auto"}
	// IOPassthrough fails a mount without it.
	IOPassthrough = IO{"passthrough"}
	// IOCached uses none.
	IOCached = IO{"cached"}
	// IOWriteback uses none, and has the kernel write back late and open without asking.
	IOWriteback = IO{"writeback"}
)

// UnmarshalText reads auto, passthrough, cached or writeback.
func (i *IO) UnmarshalText(text []byte) error {
	return choose(i, text, "a way to read and write: auto, passthrough, cached or writeback",
		IOAuto, IOPassthrough, IOCached, IOWriteback)
}

// Sharing says which files of an image use the page cache that all containers share.
type Sharing struct{ name string }

func (s Sharing) String() string { return s.name }

// What is shared.
var (
	// SharingNone is nothing.
	SharingNone = Sharing{"none"}
	// SharingExec is programs and shared objects.
	SharingExec = Sharing{"exec"}
	// SharingMapped is the mappings of all files.
	SharingMapped = Sharing{"mapped"}
	// SharingAll is all files.
	SharingAll = Sharing{"all"}
)

// UnmarshalText reads none, exec, mapped or all.
func (s *Sharing) UnmarshalText(text []byte) error {
	return choose(s, text, "what can be shared: none, exec, mapped or all", SharingNone, SharingExec, SharingMapped, SharingAll)
}

// Metacopy says what becomes of files, at a commit, whose metadata alone was changed.
type Metacopy struct{ name string }

func (m Metacopy) String() string { return m.name }

// What becomes of files whose metadata alone was changed.
var (
	// MetacopyAuto keeps them without data where every reader of the layer finds it.
	MetacopyAuto = Metacopy{"auto"}
	// MetacopyKeep keeps them without data.
	MetacopyKeep = Metacopy{"keep"}
	// MetacopyComplete copies their data.
	MetacopyComplete = Metacopy{"complete"}
)

// UnmarshalText reads auto, keep or complete.
func (m *Metacopy) UnmarshalText(text []byte) error {
	return choose(m, text, "a way with metadata-only files: auto, keep or complete", MetacopyAuto, MetacopyKeep, MetacopyComplete)
}

// Option is one option of the mount server, as after -o.
type Option struct{ text string }

func (o Option) String() string { return o.text }

// UnmarshalText refuses an empty option, one with a comma, and those that the snapshotter sets itself or
// cannot have.
func (o *Option) UnmarshalText(text []byte) error {
	name, _, _ := strings.Cut(string(text), "=")
	switch {
	case name == "":
		return fmt.Errorf("mount option %q has no name", text)
	case strings.Contains(string(text), ","):
		return fmt.Errorf("mount option %q holds a comma: write one option per element", text)
	}
	switch name {
	case "lowerdir", "upperdir", "workdir", "ro", "rw", "fsname":
		return fmt.Errorf("mount option %q is set by the snapshotter", text)
	case "io", "sharing":
		return fmt.Errorf("mount option %q: write it as %s of [mount]", text, name)
	case "userxattr":
		return fmt.Errorf("mount option %q: the marks of layers are trusted.overlay attributes", text)
	}
	o.text = string(text)
	return nil
}
