package overlayfuse

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// listPlus lists a directory as the kernel does for getdents(2): the nodeid of each name, 0 where no lookup came with it.
func listPlus(t *testing.T, fs *FS, dir uint64) map[string]uint64 {
	t.Helper()
	names := map[string]uint64{}
	for off := uint64(0); ; {
		buf := make([]byte, 4096)
		out := fuse.NewDirEntryList(buf, off)
		if s := fs.ReadDirPlus(nil, &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: dir}, Offset: off}, out); !s.Ok() {
			t.Fatal(s)
		}
		if out.Offset == off {
			return names
		}
		const header = 24 // struct fuse_dirent up to the name
		entry := int(unsafe.Sizeof(fuse.EntryOut{}))
		for at, i := 0, off; i < out.Offset; i++ {
			d := buf[at+entry:]
			size := int(binary.NativeEndian.Uint32(d[16:]))
			name := string(d[header : header+size])
			if name != "." && name != ".." {
				names[name] = binary.NativeEndian.Uint64(buf[at:])
			}
			at += entry + header + (size+7)&^7
		}
		off = out.Offset
	}
}

// treeForTest makes dirs directories with as many files, each in the one before up to 4 deep, and returns its path.
func treeForTest(t *testing.T, dirs, files int) string {
	t.Helper()
	root := t.TempDir()
	dir := root
	for i := range dirs {
		if i%4 == 0 {
			dir = root
		}
		dir = filepath.Join(dir, fmt.Sprint("d", i))
		must(t, os.Mkdir(dir, 0o755))
		for j := range files {
			must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint("f", j)), nil, 0o644))
		}
	}
	return root
}

// walkForTest lists a tree and looks up what of each directory pick says, unless the listing has. It counts both kinds of lookups.
func walkForTest(t *testing.T, fs *FS, dir uint64, pick func(names []string) []string, asked, came *int) {
	t.Helper()
	names := listPlus(t, fs, dir)
	all := []string{}
	for name, id := range names {
		all = append(all, name)
		if id != 0 {
			*came++
		}
	}
	slices.Sort(all)
	for _, name := range pick(all) {
		id := names[name]
		if id == 0 {
			*asked++
			id = lookupForTest(t, fs, dir, name)
		}
		if name[0] == 'd' {
			walkForTest(t, fs, id, pick, asked, came)
		}
	}
}

// TestListingsComeWithTheLookupsThatAreWanted: who looks at everything gets nearly all of it with the listings, who looks at few
// names gets few lookups that it did not ask for.
func TestListingsComeWithTheLookupsThatAreWanted(t *testing.T) {
	const dirs, files = 400, 20
	lower := treeForTest(t, dirs, files)
	all := func(names []string) []string { return names }
	some := func(names []string) []string {
		var few []string
		for i, name := range names {
			if name[0] == 'd' || i%2 == 0 {
				few = append(few, name)
			}
		}
		return few
	}
	const most = dirs * (files + 1) / 10
	t.Run("all", func(t *testing.T) {
		var asked, came int
		walkForTest(t, openFS(t, Config{Lower: []string{lower}}), fuse.FUSE_ROOT_ID, all, &asked, &came)
		if asked > most || asked+came != dirs*(files+1) {
			t.Errorf("%d lookups were asked for, %d came with listings; want at most %d, all together %d", asked, came, most, dirs*(files+1))
		}
	})
	t.Run("some", func(t *testing.T) {
		fs := openFS(t, Config{Lower: []string{lower}})
		var asked, came int
		walkForTest(t, fs, fuse.FUSE_ROOT_ID, some, &asked, &came)
		if came > 0 {
			t.Errorf("%d lookups came with listings of which half of the names were wanted", came)
		}
	})
	t.Run("all, then some", func(t *testing.T) {
		fs := openFS(t, Config{Lower: []string{lower}})
		var asked, came int
		walkForTest(t, fs, fuse.FUSE_ROOT_ID, all, &asked, &came)
		for range 4 { // what was expected to go on ends
			asked, came = 0, 0
			walkForTest(t, fs, fuse.FUSE_ROOT_ID, some, &asked, &came)
		}
		if came > 0 {
			t.Errorf("%d lookups came with the listings of the last of several walks that look at half of the names", came)
		}
	})
}
