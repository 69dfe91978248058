package overlayfuse

import (
	"errors"
	"fmt"
	"log"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/transport"
)

// Session is one mounted FS and what serves it. It lasts until the last user of the mount is gone: a bind mount, another
// mount namespace or an open file keeps it going after the mount point is free.
type Session struct {
	fs         *FS
	mountpoint string // absolute, free of symlinks
	device     string // MAJOR:MINOR of the mount
	done       chan struct{}
	closeErr   error // of the file system; set before done is closed
}

// Mount mounts fs and returns when the mount answers. The session owns fs from then on, and closes it at its end; after
// an error fs is still the caller's.
func Mount(fs *FS, mountpoint string, flags MountFlags) (*Session, error) {
	s, err := mount(fs, mountpoint, flags)
	if err != nil {
		return nil, fmt.Errorf("mount on %s: %w", mountpoint, err)
	}
	return s, nil
}

func mount(fs *FS, path string, flags MountFlags) (*Session, error) {
	dir, mountpoint, err := openMountpoint(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(dir) }() // O_PATH: nothing to lose
	s := &Session{fs: fs, mountpoint: mountpoint, done: make(chan struct{})}
	server, err := s.connect(dir, flags)
	if errors.Is(err, errNoPassthrough) {
		server, err = s.connect(dir, flags)
	}
	if err != nil {
		return nil, err
	}
	s.readahead(maxWrite)
	go func() {
		defer close(s.done)
		s.closeErr = errors.Join(server.Serve(), fs.Close())
	}()
	return s, nil
}

// connect mounts on dir and answers the kernel's first request.
//
// Errors: errNoPassthrough: the next call does without.
func (s *Session) connect(dir int, flags MountFlags) (server *transport.Server, err error) {
	opts := s.fs.mountOptions()
	opts.Debug = opts.Debug || flags.Debug
	opts.FsName, opts.Name = flags.Source, "overlayfuse"
	level := logrus.WarnLevel
	if opts.Debug {
		level = logrus.DebugLevel
	}
	opts.Logger = log.New(logLines{s.fs.log, level}, "", 0)
	dev, err := attach(dir, flags, opts.MaxWrite)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err == nil {
			return
		}
		if errUnmount := unix.Unmount(s.mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); errUnmount != nil {
			err = fmt.Errorf("unmount: %w (after: %v)", errUnmount, err) //nolint:errorlint // it is none to go on after
		}
		s.fs.conn.server.Store(nil)
		if server != nil {
			err = errors.Join(err, server.Close())
		}
	}()
	if server, err = transport.New(s.fs, opts, dev, nil); err != nil {
		return nil, errors.Join(err, unix.Close(dev))
	}
	if err := server.Init(); err != nil {
		return server, err
	}
	s.fs.conn.server.Store(server)
	if err := s.fs.probePassthrough(); err != nil {
		return server, err
	}
	m, err := Mounted(s.mountpoint)
	if err == nil && m == nil {
		err = fmt.Errorf("not in /proc/self/mountinfo: %w", unix.ESTALE)
	}
	if err == nil {
		s.device = DeviceOf(m)
	}
	return server, err
}

// logLines logs each text that is written to it. logrus's own writer has a goroutine and a buffer of 64 KiB for each.
type logLines struct {
	to    *logrus.Entry
	level logrus.Level
}

func (l logLines) Write(text []byte) (int, error) {
	l.to.Log(l.level, strings.TrimSuffix(string(text), "\n"))
	return len(text), nil
}

// readahead lets the kernel read ahead as much as one request can carry; a mount starts with 128 KiB. Without sysfs it
// stays so, which costs speed alone.
func (s *Session) readahead(bytes int) {
	path := fmt.Sprintf("/sys/class/bdi/%s/read_ahead_kb", s.device)
	if err := os.WriteFile(path, fmt.Appendf(nil, "%d", bytes/1024), 0); err != nil {
		s.fs.log.WithError(err).Debug("readahead of the mount stays at the kernel's default")
	}
}

// FS is the file system that the session serves.
func (s *Session) FS() *FS { return s.fs }

// Mountpoint is the absolute path of the mount, free of symlinks.
func (s *Session) Mountpoint() string { return s.mountpoint }

// Device is the mount's device number as MAJOR:MINOR.
func (s *Session) Device() string { return s.device }

// Done is closed at the end of the session, after its file system.
func (s *Session) Done() <-chan struct{} { return s.done }

// Wait returns at the end of the session, with the error of closing the file system.
func (s *Session) Wait() error {
	<-s.done
	return s.closeErr
}

// Attached tells whether the mount is on its mount point still.
func (s *Session) Attached() (bool, error) {
	stack, err := mountsOn(s.mountpoint)
	return slices.ContainsFunc(stack, s.is), err
}

// is tells whether m is this session's mount.
func (s *Session) is(m *mountinfo.Info) bool { return DeviceOf(m) == s.device }

// Unmount takes the mount off its mount point; with lazy also while it is in use. Taken off before is no error.
// The session may go on (see Wait).
//
// Errors: EBUSY if files on it are in use, or something else is mounted over it.
func (s *Session) Unmount(lazy bool) error {
	stack, err := mountsOn(s.mountpoint)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(stack, s.is)
	switch {
	case at < 0:
		return nil
	case at < len(stack)-1:
		return fmt.Errorf("unmount %s: %s is mounted over it: %w", s.mountpoint, stack[len(stack)-1].FSType, unix.EBUSY)
	}
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	if err := unix.Unmount(s.mountpoint, flags); err != nil {
		return fmt.Errorf("unmount %s: %w", s.mountpoint, err)
	}
	return nil
}
