package overlayfuse

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/copyup"
)

// Writes that did not reach the disk, although write(2) had succeeded, and of which nobody who had the file open was told: the kernel told the
// server, which had it write back. Who opens the file next and syncs it is told (copyup.File.Failures); and if nobody does, the flush
// is, so that no layer is committed without a word that lacks what was written. Until then it is kept in the workdir, a line for each file:
//
//	WORKDIR/lost    "path in the upper": cause
//
// What of the upper's file the kernel itself knows, because nobody asked it yet, the flush hears from its fsync(2).
//
// So is a page of the mount's page cache that could not be written to the upper at all: a store into a mapping, and with io=writeback any
// write. Of that, the kernel tells who syncs or closes the file, and asks the server nothing then: the line is kept until an fsync reaches
// the server, which it does once somebody was told (lib/errseq.c), until the file is emptied or until the flush has told.

const lostName = "lost"

// mostLost bounds what is kept of one upper, in files.
const mostLost = 1000

// lostWrites are those of one upper.
type lostWrites struct {
	dir layerRoot // the workdir

	mu     sync.Mutex
	files  map[lostKey]string // lines
	before []string           // lines of earlier mounts
}

// lostKey is a file, and who knows of the loss.
type lostKey struct {
	ino uint64
	of  *inode // the kernel does, of this inode while it has it; nil: the engine
}

// openLost reads what earlier mounts left.
func openLost(work layerRoot) *lostWrites {
	return &lostWrites{dir: work, files: map[lostKey]string{}, before: readLost(work)}
}

// readLost gives the lines of a workdir. A list without any text was written when there was no space for it, or can't be read: no mount
// fails on its account. What is no file is not ours.
func readLost(work layerRoot) []string {
	st, err := statAt(work.fd, lostName)
	if err != nil || !isReg(st.Mode) {
		return nil
	}
	text := make([]byte, min(st.Size, mostLost*(2*unix.PathMax)))
	n := 0
	if fd, err := openBeneath(work.fd, lostName, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK); err == nil {
		n, _ = ignoringEINTR(func() (int, error) { return unix.Pread(fd, text, 0) }) // as if there were none
		closeFD(fd)
	}
	if lines := strings.FieldsFunc(string(text[:max(n, 0)]), func(r rune) bool { return r == '\n' }); len(lines) > 0 {
		return lines
	}
	return []string{"files whose names could not be kept"}
}

// noteLost is the engine's word that writes were lost, or that somebody was told.
func (fs *FS) noteLost(of copyup.Target, err error) {
	t, ok := of.(*target)
	if !ok {
		return
	}
	if err == nil {
		fs.lost.told(lostKey{ino: t.in.ino})
		return
	}
	fs.keepLost(lostKey{ino: t.in.ino}, t.in, err)
}

// noteLostPage notes that the kernel was refused what it wrote back.
func (fs *FS) noteLostPage(in *inode, err error) { fs.keepLost(lostKey{in.ino, in}, in, err) }

// toldLostPage: somebody was told of the pages of a file that were lost, or nobody will miss them.
func (fs *FS) toldLostPage(in *inode) { fs.lost.told(lostKey{in.ino, in}) }

func (fs *FS) keepLost(k lostKey, in *inode, err error) {
	if errKeep := fs.lost.add(k, in, fmt.Sprintf("%q: %v", in.path(), errnoOf(err))); errKeep != nil {
		fs.log.WithError(errKeep).WithField("path", in.path()).Error("overlay: that writes were lost is not kept over an unmount")
	}
}

// errnoOf is the errno in an error, or the error.
func errnoOf(err error) error {
	if errno := unix.Errno(0); errors.As(err, &errno) {
		return errno
	}
	return err
}

// add keeps a line for a file, unless it has no name any more.
func (l *lostWrites) add(k lostKey, in *inode, line string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.files[k]; ok || in.isDead() || len(l.files)+len(l.before) >= mostLost {
		return nil
	}
	l.files[k] = line
	fd, err := openIn(l.dir.fd, lostName, unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("workdir %s/%s: %w", l.dir.path, lostName, err)
	}
	f := os.NewFile(uintptr(fd), lostName)
	_, err = f.WriteString(line + "\n")
	return errors.Join(err, f.Close())
}

// told forgets what was lost of a file.
func (l *lostWrites) told(k lostKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.files[k]; ok {
		delete(l.files, k)
		l.removeIfNoneLocked()
	}
}

// forget forgets all that was lost of a file.
func (l *lostWrites) forget(ino uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	had := len(l.files)
	maps.DeleteFunc(l.files, func(k lostKey, _ string) bool { return k.ino == ino })
	if len(l.files) < had {
		l.removeIfNoneLocked()
	}
}

// removeIfNoneLocked removes the list once it is empty. What is left in it of files that were told of is told once more.
func (l *lostWrites) removeIfNoneLocked() {
	if len(l.files)+len(l.before) == 0 {
		_ = unix.Unlinkat(l.dir.fd, lostName, 0) // it was never made, or is told once more
	}
}

// take tells of all, once.
//
// Errors: EIO, with the files.
func (l *lostWrites) take() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := slices.Concat(l.before, slices.Sorted(maps.Values(l.files)))
	if len(all) == 0 {
		return nil
	}
	l.before = nil
	clear(l.files)
	l.removeIfNoneLocked()
	return fmt.Errorf("writes were lost before they reached the disk, and what was there before shows in their place: %s (told once; "+
		"flush again to go on without them): %w", strings.Join(all, "; "), unix.EIO)
}
