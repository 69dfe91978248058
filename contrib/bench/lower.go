package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// errLower says that a lower layer was written to, the one thing that no overlay may do.
var errLower = fmt.Errorf("the lower layer changed: %w", unix.EUCLEAN)

// lower is a lower layer, or several.
type lower struct {
	dir   string
	under []string // layers below dir, the topmost first
	// shared has plain work in dir itself: the experiment changes nothing.
	shared bool
	flat   bool                     // it holds files alone, which the mirror copies up instead of mirroring a copy
	times  map[string]unix.Timespec // each object's ctime, which no write leaves as it is
}

// lowerOnce returns the lower layer called name, made by fill at the first call.
func (b *bench) lowerOnce(name string, fill func(dir string) error) (*lower, error) {
	if l := b.lowers[name]; l != nil {
		return l, nil
	}
	dir := filepath.Join(b.base, "lower-"+name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	if err := fill(dir); err != nil {
		return nil, fmt.Errorf("make lower layer %s: %w", name, err)
	}
	if err := b.settle(); err != nil {
		return nil, err
	}
	l := &lower{dir: dir}
	var err error
	if l.times, err = changeTimes(dir); err != nil {
		return nil, err
	}
	b.lowers[name] = l
	return l, nil
}

// flatOnce is lowerOnce for a layer of files alone.
func (b *bench) flatOnce(name string, fill func(dir string) error) (*lower, error) {
	l, err := b.lowerOnce(name, fill)
	if err == nil {
		l.flat = true
	}
	return l, err
}

// layers are the directories of l, the topmost first.
func (l *lower) layers() []string { return append([]string{l.dir}, l.under...) }

// dropLower removes the lower layer called name, if it was made.
func (b *bench) dropLower(name string) error {
	l := b.lowers[name]
	if l == nil {
		return nil
	}
	delete(b.lowers, name)
	return os.RemoveAll(l.dir)
}

// unchanged checks that nothing in l was written to.
func (l *lower) unchanged() error {
	now, err := changeTimes(l.dir)
	if err != nil {
		return err
	}
	if len(now) != len(l.times) {
		return fmt.Errorf("%s: %w", l.dir, errLower)
	}
	for path, t := range l.times {
		if now[path] != t {
			return fmt.Errorf("%s: %w", path, errLower)
		}
	}
	return nil
}

func changeTimes(dir string) (map[string]unix.Timespec, error) {
	times := map[string]unix.Timespec{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return named("stat", path, err)
		}
		times[path] = st.Ctim
		return nil
	})
	return times, err
}

// random is a stream of bytes that do not compress, the same for the same seed.
type random struct{ *rand.ChaCha8 }

func newRandom(seed uint64) random {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	return random{rand.NewChaCha8(key)}
}

// writeRandom makes a file of size random bytes. It is in the page cache then.
func writeRandom(path string, size int64, seed uint64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, io.LimitReader(newRandom(seed), size), make([]byte, 1<<20))
	return errors.Join(err, f.Close())
}

// writeSparse makes a file of size bytes with 1 MiB of data at its start and in its middle.
func writeSparse(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	piece := make([]byte, 1<<20)
	for _, offset := range []int64{0, size / 2} {
		if err == nil {
			_, _ = newRandom(uint64(offset)).Read(piece) // never fails
			_, err = f.WriteAt(piece, offset)
		}
	}
	return errors.Join(err, f.Close())
}

// warm reads a file of a lower layer, so that its data is in the page cache.
func warm(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, make([]byte, 1<<20))
	return errors.Join(err, f.Close())
}

// age sets an old modification time, as files of an image have.
func age(path string) error {
	old := time.Date(2020, 2, 2, 2, 2, 2, 0, time.UTC)
	return os.Chtimes(path, old, old)
}

// copyPrograms copies executables into dir.
func (b *bench) copyPrograms(dir string, paths ...string) error {
	return b.child(time.Minute, nil, exec.Command("cp", append(append([]string{"-L"}, paths...), dir)...))
}
