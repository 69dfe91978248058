package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// maxSocketPath is the room in sockaddr_un.sun_path less the closing zero, unix(7).
const maxSocketPath = 107

func checkSocketPath(path string) error {
	if len(path) > maxSocketPath {
		return fmt.Errorf("socket path %s is %d bytes long, at most %d are possible: %w",
			path, len(path), maxSocketPath, unix.ENAMETOOLONG)
	}
	return nil
}

// Listener is a server's socket. Closing it removes the socket and gives up its lock.
type Listener struct {
	*net.UnixListener
	lock *os.File
}

// Listen makes the socket of a mount server, mode 0600. A socket that a dead server left is replaced.
// PATH.lock, beside the socket, is locked for life: of two servers that start at once, one gets it.
//
// Errors: EADDRINUSE if a server lives, with its process id; ENAMETOOLONG; EEXIST if something else has the name.
func Listen(path string) (*Listener, error) {
	if err := checkSocketPath(path); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("socket lock: %w", err)
	}
	l, err := listen(path, lock)
	if err != nil {
		_ = lock.Close() // nothing was written
		return nil, err
	}
	return l, nil
}

func listen(path string, lock *os.File) (*Listener, error) {
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("socket %s: already served by %s: %w", path, whoServes(path), unix.EADDRINUSE)
		}
		return nil, fmt.Errorf("socket lock %s: %w", lock.Name(), err)
	}
	st, err := os.Lstat(path)
	switch {
	case err == nil && st.Mode().Type() != os.ModeSocket:
		return nil, fmt.Errorf("socket %s: something else has this name: %w", path, unix.EEXIST)
	case err == nil:
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("stale socket: %w", err)
		}
	case !errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("socket: %w", err)
	}
	ul, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	// Whoever connects before this is checked as any peer is.
	if err := os.Chmod(path, 0o600); err != nil {
		_ = ul.Close() // nobody was served
		return nil, fmt.Errorf("socket: %w", err)
	}
	return &Listener{UnixListener: ul, lock: lock}, nil
}

// Close removes the socket, then the lock's hold; the lock file stays, so that two servers never lock different files.
func (l *Listener) Close() error { return errors.Join(l.UnixListener.Close(), l.lock.Close()) }

// whoServes is "pid N", or a guess.
func whoServes(path string) string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c, err := Dial(ctx, path)
	if err != nil {
		return "another server, which does not answer"
	}
	info, err := c.Ping(ctx)
	if err != nil {
		return "another server, which does not answer"
	}
	return fmt.Sprintf("pid %d", info.PID)
}

// checkPeer lets in root and the server's own user.
func checkPeer(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return fmt.Errorf("SO_PEERCRED: %w", credErr)
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("user %d may not control this server: %w", cred.Uid, unix.EACCES)
	}
	return nil
}
