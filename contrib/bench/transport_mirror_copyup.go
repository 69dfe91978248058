package main

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// The mirror's copy-up.

// mirrorWhole is the size in bytes up to which a file is copied whole, as ours does.
const mirrorWhole = 128 << 10

// copyUp makes n an object of the upper, with its data or marked as one without.
func (m *mirrorFS) copyUp(n *mirrorNode, data bool) (*os.File, error) {
	from, err := unix.Openat(m.lower, n.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	sparse := false
	defer func() {
		if !sparse {
			_ = unix.Close(from) // nothing was written
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return nil, err
	}
	to, err := unix.Openat(n.parent.dir, ".", unix.O_RDWR|unix.O_TMPFILE|unix.O_CLOEXEC, st.Mode&07777)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(to), n.name)
	steps := []func() error{
		func() error { return unix.Ftruncate(to, st.Size) },
		func() error { return unix.Fsetxattr(to, "trusted.overlay.metacopy", nil, 0) },
		func() error {
			if sparse = data && st.Size > mirrorWhole; !data || sparse {
				return nil
			}
			k, err := unix.CopyFileRange(from, nil, to, nil, int(st.Size), 0)
			if err == nil && k != int(st.Size) {
				err = unix.EIO
			}
			return err
		},
		func() error { return unix.UtimesNanoAt(to, "", []unix.Timespec{st.Atim, st.Mtim}, unix.AT_EMPTY_PATH) },
		func() error { return unix.Linkat(to, "", n.parent.dir, n.name, unix.AT_EMPTY_PATH) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			sparse = false
			return nil, errors.Join(err, f.Close())
		}
	}
	n.lower = false
	if sparse {
		n.under, n.have = from, make([]bool, (st.Size+page-1)/page)
	}
	return f, nil
}

// blocks are those of a range for which n's map says something.
func (n *mirrorNode) blocks(off int64, length int) (from, to int64) {
	return min(off/page, int64(len(n.have))), min((off+int64(length)+page-1)/page, int64(len(n.have)))
}

// fill has the upper hold the blocks that a write covers in part, and notes all that it covers.
func (n *mirrorNode) fill(upper int, off int64, length int) error {
	from, to := n.blocks(off, length)
	block := make([]byte, page)
	for i := from; i < to; i++ {
		if !n.have[i] && (i*page < off || (i+1)*page > off+int64(length)) {
			k, err := unix.Pread(n.under, block, i*page)
			if err == nil {
				err = pwriteAll(upper, block[:k], i*page)
			}
			if err != nil {
				return err
			}
		}
		n.have[i] = true
	}
	return nil
}

// compose puts what the upper lacks of a read into it.
func (n *mirrorNode) compose(buf []byte, off int64) error {
	from, to := n.blocks(off, len(buf))
	for i := from; i < to; i++ {
		if n.have[i] {
			continue
		}
		start, end := max(i*page, off), min((i+1)*page, off+int64(len(buf)))
		if _, err := unix.Pread(n.under, buf[start-off:end-off], start); err != nil {
			return err
		}
	}
	return nil
}
