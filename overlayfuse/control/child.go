package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// ChildCommand is the first argument of a process that touches a mount on the server's behalf (see Child).
const ChildCommand = "on-mount"

// What a child does.
const (
	childSync   = "syncfs" // write back the dirty pages of the mount
	childStatfs = "statfs" // ask the mount's server for a sign of life
)

// childTimeout bounds one child. A writeback that takes longer is as good as hung.
const childTimeout = 5 * time.Minute

// Child is the process ChildCommand: its arguments are what to do, a mount's path and device number MAJOR:MINOR. The
// result is its exit status, an errno or 0. ESTALE: something else is mounted there.
func Child(args []string) int {
	if len(args) != 3 {
		return int(unix.EINVAL)
	}
	err := onMount(args[0], args[1], args[2])
	var errno unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &errno):
		return int(errno)
	}
	return int(unix.EIO)
}

func onMount(what, path, device string) error {
	flags := unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC
	if what == childStatfs {
		flags = unix.O_PATH | unix.O_CLOEXEC
	}
	fd, err := unix.Open(path, flags, 0)
	if err != nil {
		return err
	}
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st); err != nil {
		return err
	}
	if fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor) != device {
		return unix.ESTALE
	}
	switch what {
	case childSync:
		return unix.Syncfs(fd)
	case childStatfs:
		var sfs unix.Statfs_t
		return unix.Fstatfs(fd, &sfs)
	}
	return unix.EINVAL
}

// runChild does what on a mount in a process of its own: this one may be the mount's server.
//
// Errors: the child's errno; ETIMEDOUT; the context's.
func runChild(ctx context.Context, what, path, device string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, childTimeout, unix.ETIMEDOUT)
	defer cancel()
	cmd := exec.Command("/proc/self/exe", ChildCommand, what, path, device)
	cmd.Dir = "/"
	cmd.Env = []string{}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s of %s: %w", what, path, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
		// Not waited for: one that hangs in the kernel dies when its request is answered.
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("%s of %s: kill: %w", what, path, err)
		}
		return fmt.Errorf("%s of %s: %w", what, path, context.Cause(ctx))
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return fmt.Errorf("%s of %s: %w", what, path, unix.Errno(exit.ExitCode()))
	}
	return fmt.Errorf("%s of %s: %w", what, path, err)
}
