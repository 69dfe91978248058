package overlayfuse

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// TestDirectoryIsListedOnceForAllItsReads: also for the last one, which says that there is nothing more.
func TestDirectoryIsListedOnceForAllItsReads(t *testing.T) {
	lower := t.TempDir()
	for i := range 100 {
		must(t, os.WriteFile(filepath.Join(lower, fmt.Sprint("f", i)), nil, 0o644))
	}
	fs := openFS(t, Config{Lower: []string{lower}})
	reads := 0
	for off := uint64(0); ; reads++ {
		out := fuse.NewDirEntryList(make([]byte, 1024), off)
		if s := fs.ReadDir(nil, &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, Offset: off}, out); !s.Ok() {
			t.Fatal(s)
		}
		if out.Offset == off {
			break
		}
		off = out.Offset
	}
	if fs.orders.listed != 1 || reads < 3 {
		t.Errorf("%d listings for %d reads", fs.orders.listed, reads)
	}
	if len(fs.orders.pictures) != 0 {
		t.Errorf("%d pictures are kept of a directory that was read to the end", len(fs.orders.pictures))
	}
}
