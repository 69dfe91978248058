package overlayfuse

import (
	"math/rand/v2"
	"testing"
)

// TestInodeMapIsAMap: random puts and removals leave what a map of Go's has.
func TestInodeMapIsAMap(t *testing.T) {
	seed := rand.Uint64()
	g := rand.New(rand.NewPCG(seed, 0))
	m := newTable().byKey
	want := map[objKey]*inode{}
	check := func() {
		t.Helper()
		all := m.all()
		if len(all) != len(want) || m.n != len(want) {
			t.Fatalf("seed %d: %d inodes, counted %d, want %d", seed, len(all), m.n, len(want))
		}
		for _, in := range all {
			if want[in.key] != in {
				t.Fatalf("seed %d: %v is not what was put in", seed, in.key)
			}
		}
	}
	for grow := 0; grow < 4; grow++ {
		for range 3000 {
			k := objKey{g.Uint64N(3), g.Uint64N(1000)}
			if got := m.get(k); got != want[k] {
				t.Fatalf("seed %d: %v is %p, want %p", seed, k, got, want[k])
			}
			switch in := want[k]; {
			case in == nil && (grow%2 == 0 || g.IntN(8) == 0):
				want[k] = &inode{key: k}
				m.put(want[k])
			case in == nil:
				m.remove(&inode{key: k})
			case grow%2 == 1 || g.IntN(8) == 0:
				m.remove(in)
				m.remove(in)
				delete(want, k)
			}
		}
		check()
	}
	for k, in := range want {
		m.remove(in)
		delete(want, k)
	}
	check()
	if len(m.heads) > fewestHeads*8 {
		t.Errorf("%d heads for no inode", len(m.heads))
	}
}
