package overlayfuse

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// logUpper syncs the upper of in, which is about to lose a name that a lower layer has and to keep or get another, where the file
// system can make whatever takes that name durable without the upper's new name: after a crash the object would have neither.
//
// btrfs logs inode by inode. Of an object that a transaction knows it logs the new name too when another file takes the old one, of
// one that was made since the last commit only if it was logged since; and to us each copy-up is a new object of an old file.
// (fs/btrfs/tree-log.c:btrfs_check_ref_name_override(), btrfs_log_new_name(), Linux 6.18; found by contrib/powercut.) ext4 and xfs
// keep all changes of names in their order. An upper that is on the disk costs no wait.
func (fs *FS) logUpper(in, p *inode, name string) error {
	if !fs.engine.LooseNames || fs.engine.Volatile || !in.upper().exists {
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
	if err := fs.syncUpper(what); err != nil && !in.isDead() {
		return fmt.Errorf("before %q loses its name: %w", name, err)
	}
	return nil
}

// logLinked is logUpper of a file that keeps other names in the upper.
func (fs *FS) logLinked(in, p *inode, name string) error {
	if !fs.engine.LooseNames || in.isDir() {
		return nil
	}
	if st, err := fs.stat(in); err != nil || st.Nlink < 2 {
		return err
	}
	return fs.logUpper(in, p, name)
}
