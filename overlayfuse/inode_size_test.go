package overlayfuse

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// TestMemoryOfLiveInodes: an inode that the kernel holds costs at most 500 bytes, with all that the tables and the listings have
// of it.
func TestMemoryOfLiveInodes(t *testing.T) {
	const dirs, files, most = 50, 200, 500
	dir := t.TempDir()
	for i := range dirs {
		p := fmt.Sprint(dir, "/directory_", i)
		must(t, os.Mkdir(p, 0o755))
		for j := range files {
			f, err := os.Create(fmt.Sprint(p, "/file_name.", j))
			must(t, err)
			must(t, f.Close())
		}
	}
	fs := openFS(t, Config{Lower: []string{dir}})
	before := heapInUse()
	for i := range dirs {
		d := lookupForTest(t, fs, fuse.FUSE_ROOT_ID, fmt.Sprint("directory_", i))
		for j := range files {
			lookupForTest(t, fs, d, fmt.Sprint("file_name.", j))
		}
	}
	each := (heapInUse() - before) / (dirs*files + dirs)
	t.Logf("%d bytes for each of %d inodes, %d of them in listings; inode %d, entry %d, slot %d", each, len(fs.tab.all()),
		allListings.bytes/(dirs*files), unsafe.Sizeof(inode{}), unsafe.Sizeof(entry{}), unsafe.Sizeof(slot{}))
	if each > most {
		t.Errorf("an inode costs %d bytes, more than %d", each, most)
	}
	runtime.KeepAlive(fs)
}

func lookupForTest(t *testing.T, fs *FS, dir uint64, name string) uint64 {
	t.Helper()
	var out fuse.EntryOut
	if s := fs.Lookup(nil, &fuse.InHeader{NodeId: dir}, name, &out); !s.Ok() || out.NodeId == 0 {
		t.Fatalf("lookup of %q: %v, node %d", name, s, out.NodeId)
	}
	return out.NodeId
}

func heapInUse() int64 {
	runtime.GC()
	runtime.GC() // what finalizers and pools held through the first
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
