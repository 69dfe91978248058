package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse"
)

// detachGrace is how long a mount may take to end after it was taken off its mount point: a container's mount namespace
// goes a little later than its processes.
const detachGrace = 2 * time.Second

// probeTimeout is how long a server may take for statfs(2).
const probeTimeout = 10 * time.Second

// options is the overlay that a spec describes.
//
// Errors: EINVAL.
func (s Spec) options() (overlayfuse.Options, error) {
	if s.ID == "" {
		return overlayfuse.Options{}, fmt.Errorf("mount without an id: %w", unix.EINVAL)
	}
	for _, p := range append([]string{s.MountPoint}, s.Lower...) {
		if !filepath.IsAbs(p) {
			return overlayfuse.Options{}, fmt.Errorf("path %q is not absolute: %w", p, unix.EINVAL)
		}
	}
	var texts []string
	for _, l := range s.Lower {
		texts = append(texts, "lowerdir+="+overlayfuse.EscapeOption(l))
	}
	for _, d := range []struct{ name, path string }{{"upperdir", s.Upper}, {"workdir", s.Work}} {
		switch {
		case d.path == "":
		case !filepath.IsAbs(d.path):
			return overlayfuse.Options{}, fmt.Errorf("%s %q is not absolute: %w", d.name, d.path, unix.EINVAL)
		default:
			texts = append(texts, d.name+"="+overlayfuse.EscapeOption(d.path))
		}
	}
	return overlayfuse.ParseOptions(append(texts, s.Options...)...)
}

// open gives the file system of a spec, not mounted.
func (s *Server) open(spec Spec) (*overlayfuse.FS, overlayfuse.MountFlags, error) {
	o, err := spec.options()
	if err != nil {
		return nil, o.Mount, err
	}
	o.Config.Log = s.log.WithField("mount", spec.ID)
	fs, err := overlayfuse.New(o.Config)
	return fs, o.Mount, err
}

func (s *Server) mount(ctx context.Context, spec Spec) error {
	e, err := s.acquire(ctx, spec.ID)
	if err != nil {
		return err
	}
	defer s.release(spec.ID, e)
	if mounted, err := s.isMounted(ctx, e, spec); err != nil || mounted {
		return err
	}
	s.mu.Lock()
	closing := s.closing
	s.mu.Unlock()
	if closing {
		return fmt.Errorf("mount %s: the server is stopping: %w", spec.ID, unix.ESHUTDOWN)
	}
	fs, flags, err := s.open(spec)
	if err != nil {
		return err
	}
	err = detachDead(ctx, spec.MountPoint)
	var session *overlayfuse.Session
	if err == nil {
		session, err = overlayfuse.Mount(fs, spec.MountPoint, flags)
	}
	if err != nil {
		return errors.Join(err, fs.Close())
	}
	s.adopt(e, spec, session)
	return nil
}

// isMounted tells whether spec is on its mount point. A detached mount of the ID gets a moment to end.
//
// Errors: EEXIST if it is another spec; EBUSY if it is detached and goes on.
func (s *Server) isMounted(ctx context.Context, e *entry, spec Spec) (bool, error) {
	have, session := s.current(e)
	if session == nil {
		return false, nil
	}
	on, err := session.Attached()
	switch {
	case err != nil:
		return false, err
	case on && have.equal(spec):
		return true, nil
	case on:
		return false, fmt.Errorf("mount %s is there with other layers, options or mount point: %w", spec.ID, unix.EEXIST)
	case !ended(ctx, session):
		return false, fmt.Errorf("mount %s was unmounted and is still in use: %w", spec.ID, unix.EBUSY)
	}
	return false, nil
}

// ended waits a moment for the end of a session.
func ended(ctx context.Context, session *overlayfuse.Session) bool {
	ctx, cancel := context.WithTimeout(ctx, detachGrace)
	defer cancel()
	select {
	case <-session.Done():
		return true
	case <-ctx.Done():
		return false
	}
}

func (s *Server) unmount(ctx context.Context, id string, lazy bool) error {
	e, err := s.acquire(ctx, id)
	if err != nil {
		return err
	}
	defer s.release(id, e)
	_, session := s.current(e)
	if session == nil {
		return fmt.Errorf("mount %s: %w: %w", id, ErrNotFound, unix.ENOENT)
	}
	if err := session.Unmount(lazy); err != nil {
		return fmt.Errorf("mount %s: %w", id, err)
	}
	if !ended(ctx, session) {
		s.log.WithField("mount", id).Info("unmounted, still in use elsewhere")
	}
	return nil
}

func (s *Server) flush(ctx context.Context, spec Spec, keepMetacopy bool) (stats overlayfuse.FlushStats, err error) {
	e, err := s.acquire(ctx, spec.ID)
	if err != nil {
		return stats, err
	}
	defer s.release(spec.ID, e)
	mounted, err := s.isMounted(ctx, e, spec)
	if err != nil {
		return stats, err
	}
	opts := overlayfuse.FlushOptions{KeepMetacopy: keepMetacopy, Meter: new(overlayfuse.FlushMeter)}
	s.setFlushing(e, opts.Meter)
	defer s.setFlushing(e, nil)
	if mounted {
		_, session := s.current(e)
		if session == nil {
			return stats, fmt.Errorf("mount %s ended: %w", spec.ID, unix.ESTALE)
		}
		if err := runChild(ctx, childSync, session.Mountpoint(), session.Device()); err != nil {
			return stats, err
		}
		return session.FS().FlushUpper(ctx, opts)
	}
	if spec.Upper == "" {
		return stats, nil
	}
	fs, _, err := s.open(spec)
	if err != nil {
		return stats, err
	}
	stats, err = fs.FlushUpper(ctx, opts)
	return stats, errors.Join(err, fs.Close())
}

// Alive tells whether a mount has a server, whosever it is. The process's binary must know ChildCommand.
//
// Errors: ETIMEDOUT if it has one that does not answer; ESTALE if something else is mounted there.
func Alive(ctx context.Context, m *mountinfo.Info) (bool, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, probeTimeout, unix.ETIMEDOUT)
	defer cancel()
	err := runChild(ctx, childStatfs, m.Mountpoint, overlayfuse.DeviceOf(m))
	if errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED) {
		return false, nil
	}
	return err == nil, err
}

// detachDead takes mounts of ours whose server is dead off a mount point: the earlier server's, if this one was started
// after a crash. What still uses them keeps getting ENOTCONN.
func detachDead(ctx context.Context, mountpoint string) error {
	fd, err := unix.Open(mountpoint, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("mount point %s: %w", mountpoint, err)
	}
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	_ = unix.Close(fd) // O_PATH: nothing to lose
	if err != nil {
		return fmt.Errorf("mount point %s: %w", mountpoint, err)
	}
	for {
		m, err := overlayfuse.Mounted(path)
		if err != nil {
			return err
		}
		if m == nil || m.FSType != overlayfuse.Type {
			return nil
		}
		alive, err := Alive(ctx, m)
		if err != nil {
			return err
		}
		if alive {
			return fmt.Errorf("mount point %s: a live overlay is mounted there: %w", path, unix.EBUSY)
		}
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("dead mount on %s: %w", path, err)
		}
	}
}
