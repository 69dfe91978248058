package overlayfuse

import (
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// tempNames are the names in work/work. openLayers emptied it, so a counter is enough.
type tempNames struct{ n atomic.Uint64 }

func (t *tempNames) next() string { return fmt.Sprintf("#%x", t.n.Add(1)) }

// temp is an object of work/work that has no name in the overlay yet.
type temp struct {
	fs   *FS
	fd   int    // O_PATH, or of an unnamed file the file itself
	name string // in work/work; "" for an unnamed file (O_TMPFILE)
	key  objKey // set by dress
	keep bool   // fd belongs to somebody else
	dir  bool
}

// close removes what was not installed.
func (t *temp) close() {
	if t.name != "" {
		// Whatever stays is removed when the workdir is opened the next time.
		if err := unix.Unlinkat(t.fs.layers.temp.fd, t.name, 0); err == unix.EISDIR {
			_ = unix.Unlinkat(t.fs.layers.temp.fd, t.name, unix.AT_REMOVEDIR)
		}
	}
	if !t.keep {
		closeFD(t.fd)
	}
}

// makeTemp makes an empty object: an unnamed regular file, or mode's type under a temporary name. Its permissions are those of mode,
// less the process's umask.
func (fs *FS) makeTemp(mode uint32, dev uint32, link string) (*temp, error) {
	work := fs.layers.temp.fd
	if isReg(mode) {
		fd, err := fs.tmpfile(mode & 07777)
		if err != nil {
			return nil, err
		}
		return &temp{fs: fs, fd: fd}, nil
	}
	name := fs.temps.next()
	var err error
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		err = unix.Mkdirat(work, name, mode&07777)
	case unix.S_IFLNK:
		err = unix.Symlinkat(link, work, name)
	default:
		err = unix.Mknodat(work, name, mode&^07777|0o600, int(kernelDevice(dev)))
	}
	if err != nil {
		return nil, fmt.Errorf("make object in %s: %w", fs.layers.temp.path, err)
	}
	fd, err := openIn(work, name, unix.O_PATH, 0)
	if err != nil {
		return nil, fmt.Errorf("open new object in %s: %w", fs.layers.temp.path, err)
	}
	return &temp{fs: fs, fd: fd, name: name, dir: isDir(mode)}, nil
}

// tmpfile is a regular file without a name, open for reading and writing.
func (fs *FS) tmpfile(mode uint32) (int, error) {
	fd, err := openIn(fs.layers.temp.fd, ".", unix.O_TMPFILE|unix.O_RDWR, mode)
	if err != nil {
		return -1, fmt.Errorf("make file in %s: %w", fs.layers.temp.path, err)
	}
	return fd, nil
}

// openReal opens what the O_PATH descriptor names as a file of its own.
func openReal(fd, flags int) (*os.File, error) {
	f, err := reopen(fd, flags)
	if err != nil {
		return nil, fmt.Errorf("open upper file: %w", err)
	}
	return f, nil
}
