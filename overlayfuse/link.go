package overlayfuse

import (
	"fmt"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Link gives a file another name. A lower file is copied up for it, without its data.
func (fs *FS) Link(_ <-chan struct{}, req *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	p, s := fs.node(req.NodeId)
	if !s.Ok() {
		return s
	}
	in, s := fs.node(req.Oldnodeid)
	if !s.Ok() {
		return s
	}
	if err := fs.link(in, p, name); err != nil {
		return fs.fail("link "+name, in, err)
	}
	return fs.answer("link", in, out)
}

func (fs *FS) link(in, p *inode, name string) error {
	if fs.readOnly() {
		return unix.EROFS
	}
	if len(name) > nameMax {
		return unix.ENAMETOOLONG
	}
	if in.isDir() {
		return unix.EPERM
	}
	if err := fs.copyUp(p); err != nil {
		return err
	}
	if err := fs.copyUp(in); err != nil {
		return err
	}
	if err := fs.markFollow(in); err != nil {
		return err
	}
	defer lockAll(in, p)()
	if p.isDead() {
		return unix.ENOENT
	}
	_, named := in.firstAlias()
	if err := fs.linkLocked(in, p, name); err != nil {
		return err
	}
	fs.tab.link(in, alias{parent: p, name: name, upper: true})
	fs.tab.ref(in)
	fs.dropPin(in)
	if !named {
		fs.logNamed(in)
	}
	return nil
}

func (fs *FS) linkLocked(in, p *inode, name string) error {
	d, err := fs.upperDir(p)
	if err != nil {
		return err
	}
	defer d.release()
	fd, err := fs.openUpperPath(in)
	if err != nil {
		return err
	}
	defer closeFD(fd)
	if in.key != in.upper().key {
		if err := fs.markImpure(p, d); err != nil {
			return err
		}
	}
	// More names before the link, fewer after an unlink: a crash may leave the count too large, never too small.
	if err := fs.countNames(in, fd, +1); err != nil {
		return err
	}
	t := &temp{fs: fs, fd: fd, keep: true}
	defer t.close()
	if err := fs.place(t, d, name); err != nil {
		return joinUndo(err, fs.countNames(in, fd, -1))
	}
	return nil
}

// joinUndo adds what went wrong while err was undone.
func joinUndo(err, undo error) error {
	if undo == nil {
		return err
	}
	return fmt.Errorf("%w (undo: %w)", err, undo)
}

// countNames changes the number of names of an indexed inode. fd is its upper object.
func (fs *FS) countNames(in *inode, fd, by int) error {
	in.mu.Lock()
	link := in.links()
	in.mu.Unlock()
	if link.index == "" {
		return nil
	}
	link.names += by
	if fs.canMark(in) {
		if err := fs.setMark(fd, "nlink", formatNlink(link)); err != nil {
			return err
		}
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.setLinks(link)
	return nil
}

// pinUpper keeps an upper object within reach whatever happens to its names. The caller drops it again if a name stays.
func (fs *FS) pinUpper(in *inode) error {
	if !in.upper().exists {
		return nil
	}
	fd, err := fs.openUpperPath(in)
	if err != nil {
		return err
	}
	pin := &dirFD{fd: fd}
	pin.refs.Store(1)
	in.mu.Lock()
	old := in.pin()
	if old == nil {
		in.raise().pin = pin
	}
	in.mu.Unlock()
	if old != nil {
		pin.release()
	}
	return nil
}

// pinned is the descriptor that pinUpper keeps. The caller releases it.
func (in *inode) pinned() *dirFD {
	in.mu.Lock()
	defer in.mu.Unlock()
	pin := in.pin()
	if pin != nil {
		pin.refs.Add(1)
	}
	return pin
}

// dropPin gives the descriptor back if the object can be reached by a name of the upper.
func (fs *FS) dropPin(in *inode) {
	in.mu.Lock()
	named := in.links().index != ""
	for a := range in.aliases {
		named = named || a.upper
	}
	var pin *dirFD
	if named {
		pin = in.unpin()
	}
	in.mu.Unlock()
	if pin != nil {
		pin.release()
	}
}

// Readlink is the target of a symlink.
func (fs *FS) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	in, s := fs.node(h.NodeId)
	if !s.Ok() {
		return nil, s
	}
	l, err := fs.readlink(in)
	if err != nil {
		return nil, fs.fail("readlink", in, err)
	}
	return []byte(l), fuse.OK
}

func (fs *FS) readlink(in *inode) (string, error) {
	fd, _, err := fs.openPath(in)
	if err != nil {
		return "", err
	}
	defer closeFD(fd)
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return "", fmt.Errorf("readlink: %w", err)
	}
	return string(buf[:n]), nil
}
