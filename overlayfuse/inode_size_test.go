package overlayfuse

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// TestMemoryOfLiveInodes: an inode that the kernel holds costs at most 400 bytes, with all that the tables and the listings have
// of it.
func TestMemoryOfLiveInodes(t *testing.T) {
	const dirs, files, most = 50, 200, 400
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

// TestMemoryOfForgottenInodesIsFree: what was looked at and forgotten again leaves nothing, however often.
func TestMemoryOfForgottenInodesIsFree(t *testing.T) {
	const most = 256 << 10
	fs := openFS(t, Config{Lower: []string{treeForTest(t, 100, 50)}})
	walk := func() {
		var asked, came int
		walkForTest(t, fs, fuse.FUSE_ROOT_ID, func(names []string) []string { return names }, &asked, &came)
		if asked+came != 100*51 {
			t.Fatalf("a walk saw %d names", asked+came)
		}
		for _, in := range fs.tab.all() {
			if !in.root {
				fs.Forget(in.id.Load(), 1)
			}
		}
		if n := len(fs.tab.all()); n != 1 {
			t.Fatalf("%d inodes after all were forgotten", n)
		}
	}
	walk() // the listings stay
	before := heapInUse()
	for range 20 {
		walk()
	}
	if grown := heapInUse() - before; grown > most {
		t.Errorf("20 walks of 5,100 names left %d bytes", grown)
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
