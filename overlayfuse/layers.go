package overlayfuse

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// layers are the open directories of one mount, each on a private detached mount of its own: lowers read-only, upper
// and workdir in one (a rename between them stays inside a mount) with the access time rule of the overlay.
// No mount made later inside a layer's directory on the host shows through them, and no symlink on them can be followed.
//
// Every descriptor is O_PATH, and owned here from openLayers to close, but for those of the lowers, which mounts share.
type layers struct {
	lower []layerRoot // topmost first
	upper layerRoot
	work  layerRoot // the workdir as configured: holds work/ and index/
	temp  layerRoot // work/work: unfinished objects, empty at start
	index layerRoot // work/index

	namespace Namespace // resolved, never NamespaceAuto
	private   bool      // the private mounts are in place; false only where the process may not make them

	shared *sharedChain // owns the descriptors of lower; nil while they are those of this mount alone

	clone int   // keeps the private mount of upper and work; -1 if there is none
	locks []int // locked descriptors of upper and workdir
}

// layerRoot is one open directory. fd is -1 if the mount has none.
type layerRoot struct {
	fd     int
	path   string // as configured, for messages and the mount's option text
	dev    uint64 // stat(2) st_dev, which a file inside may differ from on btrfs
	ino    uint64
	fsType int64 // statfs(2) f_type
}

var noRoot = layerRoot{fd: -1}

// openLayers opens, checks and locks what cfg names, and makes the workdir ready for use.
// The caller closes the result once no descriptor taken from it is in use.
//
// Errors: name the directory at fault and wrap ENOENT, ENOTDIR, EINVAL (a contradiction), ELOOP (layers that overlap),
// EBUSY (upper or workdir serve another mount), EXDEV (upper and workdir on different mounts), EROFS, EOPNOTSUPP
// (a file system that lacks what an upper needs), or what the system call gave.
// Crash: the locks go with the process; work/work is emptied by the next mount.
func openLayers(cfg Config) (_ *layers, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	l := &layers{upper: noRoot, work: noRoot, temp: noRoot, index: noRoot, clone: -1,
		namespace: cfg.Namespace.resolve(), private: hasCapability(unix.CAP_SYS_ADMIN)}
	defer func() {
		if err != nil {
			_ = l.close() // the cause is the error that is returned
		}
	}()
	if l.namespace == NamespaceTrusted && !privileged() {
		return nil, fmt.Errorf("trusted.overlay xattrs need CAP_SYS_ADMIN in the initial user namespace; "+
			"use the option userxattr: %w", unix.EPERM)
	}

	for _, p := range cfg.Lower {
		r, err := openRoot("lower layer", p)
		if err != nil {
			return nil, err
		}
		l.lower = append(l.lower, r)
	}
	if cfg.Upper != "" {
		if l.upper, err = openRoot("upperdir", cfg.Upper); err != nil {
			return nil, err
		}
		if l.work, err = openRoot("workdir", cfg.Work); err != nil {
			return nil, err
		}
	}
	if err := l.checkOverlap(); err != nil {
		return nil, err
	}
	if cfg.Upper != "" {
		if err := l.openUpper(cfg); err != nil {
			return nil, err
		}
	}
	if err := l.shareLowers(); err != nil {
		return nil, err
	}
	return l, nil
}

// openUpper locks upper and workdir, moves both to their private mount and prepares the workdir.
func (l *layers) openUpper(cfg Config) error {
	if err := writable("upperdir", l.upper); err != nil {
		return err
	}
	if err := l.lock("upperdir", l.upper); err != nil {
		return err
	}
	if err := l.lock("workdir", l.work); err != nil {
		return err
	}
	if err := l.privateUpper(cfg); err != nil {
		return err
	}
	return l.prepareWork(cfg)
}

// hasUpper tells whether the mount can be written to at all.
func (l *layers) hasUpper() bool { return l.upper.fd >= 0 }

// close gives up every descriptor, lock and private mount. A second call does nothing.
func (l *layers) close() error {
	var errs []error
	drop := func(fd *int) {
		if *fd >= 0 {
			if err := unix.Close(*fd); err != nil {
				errs = append(errs, fmt.Errorf("close layer: %w", err))
			}
		}
		*fd = -1
	}
	for i := range l.lower {
		if l.shared != nil {
			l.lower[i].fd = -1
		}
		drop(&l.lower[i].fd)
	}
	if l.shared != nil {
		errs = append(errs, l.shared.release())
		l.shared = nil
	}
	for _, r := range []*layerRoot{&l.temp, &l.index, &l.upper, &l.work} {
		drop(&r.fd)
	}
	drop(&l.clone)
	for i := range l.locks {
		// Unlocked by hand: a child that another goroutine forks just now shares the description until it execs.
		if err := unix.Flock(l.locks[i], unix.LOCK_UN); err != nil {
			errs = append(errs, fmt.Errorf("unlock layer: %w", err))
		}
		drop(&l.locks[i])
	}
	l.locks = nil
	return errors.Join(errs...)
}

// openRoot opens the directory that an administrator named: symlinks of the path are followed, it is not a layer's content.
func openRoot(role, path string) (layerRoot, error) {
	fd, err := ignoringEINTR(func() (int, error) { return unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0) })
	if err != nil {
		return noRoot, fmt.Errorf("%s %s: %w", role, path, err)
	}
	r, err := rootOf(fd, path)
	if err != nil {
		_ = unix.Close(fd) // O_PATH: nothing to lose
		return noRoot, fmt.Errorf("%s %w", role, err)
	}
	return r, nil
}

// rootOf describes fd, and takes it over on success.
//
// Errors: ENOTDIR if it is not a directory.
func rootOf(fd int, path string) (layerRoot, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return noRoot, fmt.Errorf("%s: stat: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return noRoot, fmt.Errorf("%s: is %s: %w", path, fileType(st.Mode), unix.ENOTDIR)
	}
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(fd, &sfs); err != nil {
		return noRoot, fmt.Errorf("%s: statfs: %w", path, err)
	}
	return layerRoot{fd: fd, path: path, dev: st.Dev, ino: st.Ino, fsType: int64(sfs.Type)}, nil
}

// writable refuses a directory on a read-only mount or file system.
func writable(role string, r layerRoot) error {
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(r.fd, &sfs); err != nil {
		return fmt.Errorf("%s %s: statfs: %w", role, r.path, err)
	}
	if sfs.Flags&unix.ST_RDONLY != 0 {
		return fmt.Errorf("%s %s is on a read-only file system; leave upperdir and workdir out for a read-only overlay: %w",
			role, r.path, unix.EROFS)
	}
	return nil
}

func fileType(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "a regular file"
	case unix.S_IFIFO:
		return "a FIFO"
	case unix.S_IFSOCK:
		return "a socket"
	case unix.S_IFCHR:
		return "a character device"
	case unix.S_IFBLK:
		return "a block device"
	case unix.S_IFLNK:
		return "a symbolic link"
	}
	return "not a directory"
}

// ignoringEINTR repeats an interrupted system call.
func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
