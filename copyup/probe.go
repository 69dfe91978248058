package copyup

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ProbeUnit finds the unit of Options for the file system of f, an empty file open for reading and writing that nobody
// else uses, and which is changed: written data must be told from holes, exactly, in units of at most 64 KiB.
// 0: it is not.
// Errors: those of the calls, but for those that say that the file system cannot do it.
func ProbeUnit(f *os.File) (int64, error) { return probeUnit(int(f.Fd()), linux{}) }

// The unit is the file system's block: smaller ones are not told apart. tmpfs with huge pages makes data of a whole huge
// page, wherever it is written: it fails.
func probeUnit(fd int, sys kernel) (int64, error) {
	var sfs unix.Statfs_t
	if err := retryErr(func() error { return unix.Fstatfs(fd, &sfs) }); err != nil {
		return 0, fmt.Errorf("copyup: statfs: %w", err)
	}
	const most = 64 << 10
	unit := max(sfs.Bsize, 512)
	if unit > most || unit&(unit-1) != 0 {
		return 0, nil
	}
	const size = 8 << 20
	if err := retryErr(func() error { return sys.ftruncate(fd, size) }); err != nil {
		return 0, fmt.Errorf("copyup: probe: %w", err)
	}
	at := int64(size/2) + 3*unit
	one := make([]byte, unit)
	if _, err := retry(func() (int, error) { return sys.pwrite(fd, [][]byte{one}, at) }); err != nil {
		return 0, fmt.Errorf("copyup: probe: %w", err)
	}
	seek := func(off int64, whence int) (int64, error) {
		return retry(func() (int64, error) { return sys.lseek(fd, off, whence) })
	}
	data, err := seek(0, unix.SEEK_DATA)
	if err != nil && !errors.Is(err, unix.ENXIO) && !unsupported(err) {
		return 0, fmt.Errorf("copyup: probe: %w", err)
	}
	hole, errHole := seek(at, unix.SEEK_HOLE)
	_, errEnd := seek(at+unit, unix.SEEK_DATA)
	if err != nil || errHole != nil || data != at || hole != at+unit || !errors.Is(errEnd, unix.ENXIO) {
		return 0, nil
	}
	// A hole that is punched must be one.
	punch := func() error {
		return sys.fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, unit)
	}
	if err := retryErr(punch); err != nil {
		return 0, nil
	}
	if _, err := seek(0, unix.SEEK_DATA); !errors.Is(err, unix.ENXIO) {
		return 0, nil
	}
	return unit, nil
}
