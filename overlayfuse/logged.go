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
//
// dst is the directory in which it gets its other name; nil: it has one.
func (fs *FS) logUpper(in, p *inode, name string, dst *inode) error {
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
	err = fs.syncUpper(what)
	switch {
	case err != nil && in.isDead():
		return nil // nobody looks for it
	case err != nil:
	case dst != nil:
		err = fs.syncNamed(dst)
	default:
		err = fs.syncAbove(in)
	}
	if err != nil {
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
	return fs.logUpper(in, p, name, nil)
}

// syncAbove makes what was synced in the upper of in reachable after a crash where the file system logs inode by inode: btrfs logs with a
// file the directories above it that are new since the last commit, and no others. One that was made in the workdir before a commit and
// moved to its name after it is in the workdir again then, with all that was synced in it. So such directories are synced
// themselves, once each. (fs/btrfs/tree-log.c:log_new_ancestors_fast(), Linux 6.18; found by contrib/powercut.)
func (fs *FS) syncAbove(in *inode) error {
	if !fs.engine.LooseNames || fs.engine.Volatile || !in.upper().exists {
		return nil
	}
	in.mu.RLock()
	var above []*inode
	for a := range in.aliases {
		if a.upper {
			above = append(above, a.parent)
		}
	}
	in.mu.RUnlock()
	for _, p := range above {
		if err := fs.syncNamed(p); err != nil {
			return err
		}
	}
	return nil
}

// syncNamed syncs the directory p, and those above it, whose name may not be on the disk.
func (fs *FS) syncNamed(p *inode) error {
	for !p.root {
		p.mu.RLock()
		named := p.above != nil && p.above.named
		p.mu.RUnlock()
		if !named {
			if err := fs.syncUpper(p); err != nil {
				if p.isDead() {
					return nil // and nothing is left in it
				}
				return fmt.Errorf("sync directory %s: %w", p.path(), err)
			}
			p.mu.Lock()
			p.raise().named = true
			p.mu.Unlock()
		}
		a, ok := p.firstAlias()
		if !ok {
			return nil
		}
		p = a.parent
	}
	return nil
}
