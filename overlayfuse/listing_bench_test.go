package overlayfuse

import (
	"fmt"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// BenchmarkLookup is a lookup by the kernel in one directory that all layers have, with the one or two allocations of an inode that is
// forgotten at once. "layers" is the same search without a listing, for comparison.
func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{1, 16, 128} {
		fs := openFS(b, deepLayers(b, n))
		var out fuse.EntryOut
		if s := fs.Lookup(nil, &fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, "d", &out); !s.Ok() {
			b.Fatal(s)
		}
		d := fs.tab.get(out.NodeId)
		for _, name := range []string{fmt.Sprint("f", n-1), "none"} {
			kind := map[bool]string{true: "miss", false: "hit"}[name == "none"]
			b.Run(fmt.Sprint(kind, "/", n), func(b *testing.B) {
				b.ReportAllocs()
				h := &fuse.InHeader{NodeId: out.NodeId}
				for b.Loop() {
					var e fuse.EntryOut
					if s := fs.Lookup(nil, h, name, &e); !s.Ok() {
						b.Fatal(s)
					}
					if e.NodeId != 0 {
						fs.Forget(e.NodeId, 1)
					}
				}
			})
			b.Run(fmt.Sprint("layers/", kind, "/", n), func(b *testing.B) {
				for b.Loop() {
					if _, err := fs.chain.lookup(d.lower, name); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
