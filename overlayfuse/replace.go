package overlayfuse

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// makeRoom sees to it that what the upper has under the new name can be replaced in one step. over: a directory meets a
// whiteout there.
func (fs *FS) makeRoom(from, to *side) (over bool, err error) {
	if to.in != nil && to.in.isDir() && to.in.upper().exists {
		return false, fs.clearWhiteouts(to)
	}
	if to.in != nil || !from.in.isDir() {
		return false, nil
	}
	st, err := statAt(to.dir.fd, to.name)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("stat %q in the upper: %w", to.name, err)
	}
	return isWhiteout(&st), nil
}

// clearWhiteouts puts an empty opaque directory in the place of one that holds nothing but whiteouts.
// Compare: fs/overlayfs/dir.c:ovl_clear_empty().
func (fs *FS) clearWhiteouts(s *side) error {
	d, err := fs.upperDir(s.in)
	if err != nil {
		return err
	}
	defer d.release()
	names, err := listNames(d.fd)
	if err != nil || len(names) == 0 {
		return err
	}
	st, err := statAt(d.fd, "")
	if err != nil {
		return fmt.Errorf("stat directory: %w", err)
	}
	t, err := fs.makeTemp(unix.S_IFDIR|0o700, 0, "")
	if err != nil {
		return err
	}
	defer func() {
		if t.name != "" {
			fs.discard(t.name)
			t.name = ""
		}
		t.close()
	}()
	if err := fs.dressLike(t.fd, d.fd, &st); err != nil {
		return err
	}
	if err := fs.setMark(t.fd, "opaque", []byte("y")); err != nil {
		return err
	}
	now, err := statAt(t.fd, "")
	if err != nil {
		return fmt.Errorf("stat directory: %w", err)
	}
	if err := fs.swapIn(t, s.dir.fd, s.name); err != nil {
		return fmt.Errorf("replace directory %q: %w", s.name, err)
	}
	fs.dirs.drop(dirKey{in: s.in})
	s.in.setUpper(upperObj{exists: true, key: keyOf(&now), opaque: true})
	return nil
}

// dressLike gives fd the owner, mode, xattrs and times of src.
func (fs *FS) dressLike(fd, src int, st *unix.Stat_t) error {
	if err := chownFD(fd, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := chmodFD(fd, st.Mode); err != nil {
		return err
	}
	if err := fs.copyXattrs(objectAt{src, "."}, fd); err != nil {
		return err
	}
	return timesFD(fd, st.Atim, st.Mtim)
}
