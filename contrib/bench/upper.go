package main

import (
	"errors"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const blockBytes = 512 // the unit of st_blocks, whatever the file system's block size; stat(2)

// upperFile is what a file has of its own in an upper directory.
type upperFile struct {
	dataBytes      int64 // that SEEK_DATA finds, written back or not
	allocatedBytes int64 // st_blocks: data, and blocks of metadata
}

// statUpper looks at the file name in m's upper; one that is not there has nothing.
func statUpper(m *mounted, name string) (u upperFile, err error) {
	path := filepath.Join(m.upper(), name)
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return u, nil
	}
	if err != nil {
		return u, named("open", path, err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return u, named("stat", path, err)
	}
	u.allocatedBytes = st.Blocks * blockBytes
	for end := int64(0); ; {
		start, err := unix.Seek(fd, end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // no more
			return u, nil
		}
		if err != nil {
			return u, named("seek", path, err)
		}
		if end, err = unix.Seek(fd, start, unix.SEEK_HOLE); err != nil {
			return u, named("seek", path, err)
		}
		u.dataBytes += end - start
	}
}

// diskUsage is the sum of st_blocks of all that is in dir.
func diskUsage(dir string) (bytes int64, err error) {
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return named("stat", path, err)
		}
		bytes += st.Blocks * blockBytes
		return nil
	})
	return bytes, err
}
