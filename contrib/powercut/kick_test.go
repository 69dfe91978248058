package powercut_test

import (
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// kick makes the kernel write back files of a disk's upper and work directories at random, some data without its metadata,
// as memory pressure and the flusher threads would in the course of minutes. It may: that breaks no promise.
func kick(disk string, seed uint64) (stop func()) {
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		r := rand.New(rand.NewPCG(seed, 2))
		for {
			select {
			case <-quit:
				return
			case <-time.After(time.Duration(10+r.IntN(120)) * time.Millisecond):
			}
			var files []string
			for _, d := range []string{"upper", "work"} {
				// A file that goes meanwhile is none to kick.
				_ = filepath.WalkDir(filepath.Join(disk, d), func(path string, e fs.DirEntry, err error) error {
					if err == nil && e.Type().IsRegular() {
						files = append(files, path)
					}
					return nil
				})
			}
			if len(files) > 0 {
				writeBack(r, files[r.IntN(len(files))])
			}
		}
	}()
	return func() { close(quit); <-ended }
}

// writeBack starts the writing of a random part of a file, or syncs its file system.
func writeBack(r *rand.Rand, path string) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	if r.IntN(12) == 0 {
		_ = unix.Syncfs(int(f.Fd())) // only a kick
		return
	}
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return
	}
	off := r.Int64N(st.Size())
	_ = unix.SyncFileRange(int(f.Fd()), off, r.Int64N(st.Size()-off)+1, unix.SYNC_FILE_RANGE_WRITE) // only a kick
}
