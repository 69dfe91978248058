package overlayfuse

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// New objects. Each is made in work/work, dressed, and then gets its name in one step, over a whiteout if there is one.
// Compare: fs/overlayfs/dir.c:ovl_create_object().

// newObject is what a caller asks for.
type newObject struct {
	mode     uint32 // type and permissions
	umask    uint32
	dev      uint32
	link     string // target of a symlink
	uid, gid uint32 // caller
}

// Mkdir makes a directory.
func (fs *FS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return fs.make(&in.InHeader, name, newObject{mode: unix.S_IFDIR | in.Mode&07777, umask: in.Umask}, out)
}

// Mknod makes a special or an empty regular file. A whiteout can't be made: it would be a name that isn't there.
func (fs *FS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	if in.Mode&unix.S_IFMT == unix.S_IFCHR && in.Rdev == 0 {
		return fuse.EPERM
	}
	return fs.make(&in.InHeader, name, newObject{mode: in.Mode, umask: in.Umask, dev: in.Rdev}, out)
}

// Symlink makes a symlink.
func (fs *FS) Symlink(_ <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return fs.make(h, name, newObject{mode: unix.S_IFLNK | 0o777, link: target}, out)
}

func (fs *FS) make(h *fuse.InHeader, name string, o newObject, out *fuse.EntryOut) fuse.Status {
	p, s := fs.node(h.NodeId)
	if !s.Ok() {
		return s
	}
	o.uid, o.gid = h.Uid, h.Gid
	in, err := fs.create(p, name, o)
	if err != nil {
		return fs.fail("create "+name, p, err)
	}
	return fs.answer("create", in, out)
}

// Create makes and opens a regular file.
func (fs *FS) Create(_ <-chan struct{}, req *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	p, s := fs.node(req.NodeId)
	if !s.Ok() {
		return s
	}
	in, file, err := fs.createOpen(p, name, newObject{mode: unix.S_IFREG | req.Mode&07777, umask: req.Umask, uid: req.Uid, gid: req.Gid})
	if err != nil {
		return fs.fail("create "+name, p, err)
	}
	return fs.openNew(in, file, req, out)
}

// openNew opens a file that was just made and answers for both. It takes file over, the upper file if it is open.
func (fs *FS) openNew(in *inode, file *os.File, req *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	if fs.opensUnasked() {
		return fs.keepNew(in, file, out)
	}
	// It is empty: there is nothing to truncate.
	o := openRequest{nodeID: in.id.Load(), flags: req.Flags &^ unix.O_TRUNC, caller: req.Caller, file: file,
		setID: req.Mode&(unix.S_ISUID|unix.S_ISGID) != 0}
	if err := fs.open(in, o, &out.OpenOut); err != nil {
		fs.tab.forget(in, 1)
		return fs.fail("open", in, err)
	}
	if s := fs.answer("create", in, &out.EntryOut); !s.Ok() {
		fs.Release(nil, &fuse.ReleaseIn{Fh: out.Fh})
		return s
	}
	if out.AttrTimeout() < newFile {
		out.SetAttrTimeout(newFile)
	}
	return fuse.OK
}

// newFile is for how long the kernel may believe the attributes of a file that it has just made at least: it looks at them
// before it returns the descriptor, and nobody can have stored into a mapping by then.
const newFile = 20 * time.Millisecond

// Tmpfile makes and opens a regular file without a name (O_TMPFILE), which link can name later.
func (fs *FS) Tmpfile(_ <-chan struct{}, req *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	p, s := fs.node(req.NodeId)
	if !s.Ok() {
		return s
	}
	in, err := fs.tmpfileIn(p, newObject{mode: unix.S_IFREG | req.Mode&07777, umask: req.Umask, uid: req.Uid, gid: req.Gid})
	if err != nil {
		return fs.fail("tmpfile", p, err)
	}
	return fs.openNew(in, nil, req, out)
}

func (fs *FS) tmpfileIn(p *inode, o newObject) (*inode, error) {
	if err := fs.copyUp(p); err != nil {
		return nil, err
	}
	d, err := fs.upperDir(p)
	if err != nil {
		return nil, err
	}
	defer d.release()
	t, st, err := fs.makeObject(p, d, o)
	if err != nil {
		return nil, err
	}
	defer t.close()
	n := fs.upperInode(&st)
	if err := fs.installUnnamed(n, t, n.up()); err != nil {
		return nil, err
	}
	return fs.tab.intern(n, alias{}), nil
}

// upperInode is the inode, not entered yet, of an object of the upper alone.
func (fs *FS) upperInode(st *unix.Stat_t) *inode {
	k := keyOf(st)
	return &inode{fs: fs, typ: st.Mode & unix.S_IFMT, key: k, ino: fs.inos.number(k), above: &above{upperObj: upperObj{exists: true, key: k, limit: st.Size}}}
}

// create makes p/name, which does not exist, and counts a lookup of it.
//
// Errors: EROFS, ENAMETOOLONG, EEXIST; those of the file system.
// Crash: the name shows the whole object or nothing.
func (fs *FS) create(p *inode, name string, o newObject) (*inode, error) {
	in, file, err := fs.createOpen(p, name, o)
	if file != nil {
		_ = file.Close() // nothing was written
	}
	return in, err
}

// createOpen is create; of a regular file, file may be its upper, open for reading and writing.
func (fs *FS) createOpen(p *inode, name string, o newObject) (in *inode, file *os.File, err error) {
	if fs.readOnly() {
		return nil, nil, unix.EROFS
	}
	if len(name) > nameMax {
		return nil, nil, unix.ENAMETOOLONG
	}
	if err := fs.copyUp(p); err != nil {
		return nil, nil, err
	}
	defer lockAll(p)()
	if p.isDead() {
		return nil, nil, unix.ENOENT
	}
	d, err := fs.upperDir(p)
	if err != nil {
		return nil, nil, err
	}
	defer d.release()
	plain, err := fs.plain(p, d, o)
	if err != nil {
		return nil, nil, err
	}
	if plain {
		st, file, err := fs.createPlain(d, name, o)
		if err != nil {
			return nil, nil, err
		}
		if st != nil {
			return fs.entered(p, name, st), file, nil
		}
	}
	in, err = fs.createLocked(p, d, name, o)
	return in, nil, err
}

// plain tells that an object is whole at once, and can be made where it is to be: owned by the caller, who is also the server, with the
// mode that was asked for and no other mark or ACL.
//
// Preconditions: as of createLocked.
func (fs *FS) plain(p *inode, d *dirFD, o newObject) (bool, error) {
	if !isReg(o.mode) && (!isDir(o.mode) || p.lower != nil) {
		return false, nil
	}
	uid, gid, err := fs.storedOwner(o.uid, true, o.gid, true)
	if err != nil || uid != fs.euid || gid != fs.egid {
		return false, err
	}
	def, err := fs.defaultACL(p, d)
	return err == nil && def == nil, err
}

// entered is the inode of a plain object that was just made. It has no capability: nobody gave it one.
func (fs *FS) entered(p *inode, name string, st *unix.Stat_t) *inode {
	n := fs.upperInode(st)
	n.absent.note(absentCapability)
	return fs.tab.intern(n, alias{parent: p, name: name, upper: true})
}

// createPlain makes a plain object. Of a regular file, file is it, open for reading and writing. No status: it has to be made elsewhere
// first.
func (fs *FS) createPlain(d *dirFD, name string, o newObject) (_ *unix.Stat_t, file *os.File, err error) {
	mode, undo, fd := o.mode&07777&^o.umask, 0, -1
	if isDir(o.mode) {
		undo = unix.AT_REMOVEDIR
		err = unix.Mkdirat(d.fd, name, mode)
	} else if fd, err = openIn(d.fd, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, mode); err == nil {
		file = os.NewFile(uintptr(fd), name)
	}
	switch {
	case errors.Is(err, unix.EEXIST): // perhaps a whiteout
		return nil, nil, nil
	case err != nil:
		return nil, nil, wrapName(name, err)
	}
	if fd < 0 {
		if fd, err = openIn(d.fd, name, oPathDir, 0); err == nil {
			defer closeFD(fd)
		}
	}
	var st unix.Stat_t
	if err == nil {
		st, err = statAt(fd, "")
	}
	if err == nil && st.Mode&07777 != mode && st.Mode&unix.S_ISGID == mode&unix.S_ISGID {
		if err = chmodFD(fd, mode); err == nil { // the process has a umask
			st, err = statAt(fd, "")
		}
	}
	if err == nil {
		return &st, file, nil
	}
	if file != nil {
		_ = file.Close() // nothing was written
	}
	return nil, nil, joinUndo(wrapName(name, err), unix.Unlinkat(d.fd, name, undo))
}

// createLocked makes an object in work/work and gives it its name.
//
// Preconditions: p is reserved and in the upper, which d is.
func (fs *FS) createLocked(p *inode, d *dirFD, name string, o newObject) (*inode, error) {
	t, st, err := fs.makeObject(p, d, o)
	if err != nil {
		return nil, err
	}
	defer t.close()
	n := fs.upperInode(&st)
	if n.isDir() && p.lower != nil {
		// Nothing below merges with a directory that was made here, now or when lower layers change.
		if err := fs.setMark(t.fd, "opaque", []byte("y")); err != nil {
			return nil, err
		}
		n.raise().opaque = true
	}
	if err := fs.place(t, d, name); err != nil {
		return nil, err
	}
	return fs.tab.intern(n, alias{parent: p, name: name, upper: true}), nil
}

// makeObject makes what o asks for, with owner, mode and ACLs as if it had been made in the directory d.
func (fs *FS) makeObject(p *inode, d *dirFD, o newObject) (*temp, unix.Stat_t, error) {
	var st unix.Stat_t
	parent, err := statAt(d.fd, "")
	if err != nil {
		return nil, st, fmt.Errorf("stat parent: %w", err)
	}
	uid, gid, err := fs.storedOwner(o.uid, true, o.gid, true)
	if err != nil {
		return nil, st, err
	}
	if parent.Mode&unix.S_ISGID != 0 {
		gid = int(parent.Gid)
		if isDir(o.mode) {
			o.mode |= unix.S_ISGID
		}
	}
	var acls newACLs
	if o.mode&unix.S_IFMT == unix.S_IFLNK {
		o.umask = 0
	} else {
		def, err := fs.defaultACL(p, d)
		if err != nil {
			return nil, st, err
		}
		if acls, err = inheritACL(def, &o); err != nil {
			return nil, st, err
		}
	}
	t, err := fs.makeTemp(o.mode, o.dev, o.link)
	if err != nil {
		return nil, st, err
	}
	if err := fs.dressNew(t.fd, o, uid, gid, acls); err != nil {
		t.close()
		return nil, st, err
	}
	if st, err = statAt(t.fd, ""); err != nil {
		t.close()
		return nil, st, fmt.Errorf("stat new object: %w", err)
	}
	return t, st, nil
}

// dressNew gives a new object its owner, then its mode (which a change of owner could cut), then its ACLs.
func (fs *FS) dressNew(fd int, o newObject, uid, gid int, acls newACLs) error {
	if err := chownFD(fd, uid, gid); err != nil {
		return err
	}
	if o.mode&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	if err := chmodFD(fd, o.mode); err != nil {
		return err
	}
	return acls.set(fd)
}

// place gives a finished object its name, which is free or a whiteout in the upper. In place of a whiteout it must come
// at once: between the two a lower name would show.
//
// Errors: EEXIST where there is anything but a whiteout.
func (fs *FS) place(t *temp, d *dirFD, name string) error {
	err := fs.giveName(t, d.fd, name)
	if !errors.Is(err, unix.EEXIST) {
		return wrapName(name, err)
	}
	st, err := statAt(d.fd, name)
	if err != nil {
		return wrapName(name, err)
	}
	if !isWhiteout(&st) {
		return unix.EEXIST
	}
	if err := fs.nameTemp(t); err != nil {
		return err
	}
	if t.dir { // it does not replace a file
		return wrapName(name, fs.swapIn(t, d.fd, name))
	}
	if err := moveName(fs.layers.temp.fd, t.name, d.fd, name, 0); err != nil {
		return wrapName(name, err)
	}
	t.name = ""
	return nil
}

// nameTemp gives an unnamed file a temporary name, for renames.
func (fs *FS) nameTemp(t *temp) error {
	if t.name != "" {
		return nil
	}
	name := fs.temps.next()
	if err := linkFD(t.fd, fs.layers.temp.fd, name); err != nil {
		return fmt.Errorf("name object in %s: %w", fs.layers.temp.path, err)
	}
	t.name = name
	return nil
}

func wrapName(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("name %q in the upper: %w", name, err)
}
