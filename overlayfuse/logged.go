package overlayfuse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What is here is for an upper on a file system that logs single inodes (copyup.Options.LooseNames): btrfs, whose fsync makes durable what
// it is called for, and not what was done before it. ext4 and xfs keep all changes of names in their order. All of it was found by
// contrib/powercut; sources: fs/btrfs/tree-log.c (Linux 6.18).

// logsInodes tells that the upper is on such a file system, and is to survive a crash.
func (fs *FS) logsInodes() bool { return fs.engine.LooseNames && !fs.engine.Volatile }

// logUpper syncs the upper of in, which is about to lose a name that a lower layer has and to keep or get another. Whatever takes that name
// can be made durable without the upper's new name: after a crash the object would have neither.
//
// Of an object that the last commit knows btrfs logs the new name too when another takes the old one, of one that was made since then
// only if it was logged since (btrfs_check_ref_name_override(), btrfs_log_new_name()); and to it each copy-up is a new object.
func (fs *FS) logUpper(in, p *inode, name string) error {
	if !fs.logsInodes() || !in.upper().exists {
		return nil
	}
	lower, err := fs.lookupLower(p, name)
	if lower == nil || err != nil {
		return err
	}
	what := in
	if in.typ != unix.S_IFREG && !in.isDir() {
		what = p // with its names; the object itself can't be opened
	}
	if err := fs.logObject(what); err != nil && !in.isDead() {
		return fmt.Errorf("before %q loses its name: %w", name, err)
	}
	return nil
}

// logLinked is logUpper of a file that keeps other names in the upper.
func (fs *FS) logLinked(in, p *inode, name string) error {
	if !fs.logsInodes() || in.isDir() {
		return nil
	}
	if st, err := fs.stat(in); err != nil || st.Nlink < 2 {
		return err
	}
	return fs.logUpper(in, p, name)
}

// logObject is fsync(2) of an upper object.
func (fs *FS) logObject(in *inode) error { return fs.orWhole(fs.syncUpper(in)) }

// orWhole takes the error of an fsync(2), and calls syncfs(2) where the process may not open the object.
func (fs *FS) orWhole(err error) error {
	if errors.Is(err, unix.EACCES) {
		return fs.layers.syncUpper()
	}
	return err
}

// logNamed syncs a file that had no name when its descriptor was made, and has one now. An fsync of that descriptor logs the directories
// above its dentry, which is in the workdir still, and so perhaps not those that lead to the name (log_new_ancestors_fast()).
func (fs *FS) logNamed(in *inode) {
	if fs.logsInodes() {
		fs.lateSync(fs.logObject(in), in.path())
	}
}

// keepPlace sees to it that no crash brings a directory back to the workdir that was moved from there to name just now. fd is it.
//
// An fsync of something in it logs the directories above that are new since the last commit, and no others. So if a commit came between
// its making and its move, the directory would be in the workdir again, with all that was synced in it. It is synced then, before
// anybody can use it.
func (fs *FS) keepPlace(fd int, name string) {
	if !fs.logsInodes() {
		return
	}
	f, err := openReal(fd, unix.O_RDONLY|unix.O_DIRECTORY)
	if err == nil {
		if sameTransaction(int(f.Fd())) {
			_ = f.Close() // nothing was written
			return
		}
		err = syncClose(f, name)
	}
	fs.lateSync(fs.orWhole(err), name)
}

// lateSync logs the error of a sync for the sake of something that has been done, and can't be denied any more. A file system that fails
// such a sync fails the next one too, and that has a caller.
func (fs *FS) lateSync(err error, path string) {
	if err != nil {
		fs.log.WithError(err).WithField("path", path).Error("overlay: a crash may lose a new name in the upper")
	}
}

// Of linux/fs.h and linux/btrfs.h.
const (
	ioctlGetVersion      = 0x80087601 // FS_IOC_GETVERSION: on btrfs, the low half of the transaction that made the inode
	ioctlBtrfsFSInfo     = 0x8400941f // BTRFS_IOC_FS_INFO: struct btrfs_ioctl_fs_info_args
	btrfsInfoFlags       = 48         // offset of flags
	btrfsInfoGeneration  = 56         // offset of generation: the transaction that is under way, or the last one
	btrfsWantsGeneration = 1 << 1     // BTRFS_FS_INFO_FLAG_GENERATION
	ioctlBtrfsStartSync  = 0x80089418 // BTRFS_IOC_START_SYNC: gives the transaction that it begins to commit, or the last one
	ioctlBtrfsWaitSync   = 0x40089416 // BTRFS_IOC_WAIT_SYNC: of that one
)

// sameTransaction tells that the object open as fd was made in the transaction that is under way. False too where the file system can't
// tell.
func sameTransaction(fd int) bool {
	made, err := unix.IoctlGetUint32(fd, ioctlGetVersion)
	if err != nil {
		return false
	}
	var info [1024]byte
	binary.NativeEndian.PutUint64(info[btrfsInfoFlags:], btrfsWantsGeneration)
	if err := ioctl(fd, ioctlBtrfsFSInfo, unsafe.Pointer(&info)); err != nil {
		return false
	}
	return binary.NativeEndian.Uint64(info[btrfsInfoFlags:])&btrfsWantsGeneration != 0 &&
		uint32(binary.NativeEndian.Uint64(info[btrfsInfoGeneration:])) == made
}

// settleNames makes durable what a server that was killed may have moved without having got as far as keepPlace.
func (fs *FS) settleNames() error {
	if !fs.logsInodes() {
		return nil
	}
	names, err := listNames(fs.layers.upper.fd)
	if err != nil {
		return fmt.Errorf("upperdir %s: list: %w", fs.layers.upper.path, err)
	}
	if len(names) == 0 {
		return nil
	}
	return fs.layers.syncUpper()
}

// commitTransaction commits what btrfs has in memory of metadata. Compare: fs/btrfs/ioctl.c:btrfs_ioctl_start_sync(), which does not begin to
// write data back, other than BTRFS_IOC_SYNC (Linux 6.18).
func (fs *FS) commitTransaction() error {
	root, err := openReal(fs.layers.upper.fd, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // nothing was written
	var id uint64
	for _, request := range []uintptr{ioctlBtrfsStartSync, ioctlBtrfsWaitSync} {
		if err := ioctl(int(root.Fd()), request, unsafe.Pointer(&id)); err != nil {
			return fmt.Errorf("commit the transaction: %w", err)
		}
	}
	return nil
}
