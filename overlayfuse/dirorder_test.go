package overlayfuse

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// entriesOf makes entries of names.
func entriesOf(names ...string) []dirent {
	var es []dirent
	for _, n := range names {
		es = append(es, dirent{name: n})
	}
	return es
}

func TestUpperNamesKeepTheirPositions(t *testing.T) {
	var o upperOrder
	first := entriesOf("c", "a", "b")
	o.sort(first, 10, 0)
	if got := []uint64{first[0].pos, first[1].pos, first[2].pos}; !slices.Equal(got, []uint64{10, 11, 12}) {
		t.Fatalf("positions %v", got)
	}
	// The file system gives them in another order, one is gone, and two have come.
	then := entriesOf("x", "b", "y", "c")
	o.sort(then, 10, 0)
	for i, want := range []dirent{{name: "c", pos: 10}, {name: "b", pos: 12}, {name: "x", pos: 13}, {name: "y", pos: 14}} {
		if then[i] != want {
			t.Errorf("place %d: %+v, want %+v", i, then[i], want)
		}
	}
	back := entriesOf("a")
	if o.sort(back, 10, 0); back[0].pos != 11 {
		t.Errorf("a name that came back is at %d", back[0].pos)
	}
}

func TestOrderShrinksOnlyWhenNobodyIsInIt(t *testing.T) {
	var o upperOrder
	for i := range 2 * orderLeast {
		o.sort(entriesOf(fmt.Sprint(i)), 0, 0)
	}
	o.read(time.Minute)
	last := entriesOf("last")
	if o.sort(last, 0, time.Minute+orderUnread); last[0].pos != 2*orderLeast {
		t.Errorf("position %d while somebody may read on", last[0].pos)
	}
	if o.sort(last, 0, time.Minute+orderUnread+1); last[0].pos != 0 || len(o.hashes) != 1 {
		t.Errorf("position %d, %d places", last[0].pos, len(o.hashes))
	}
}

func TestPicturesAreBounded(t *testing.T) {
	d := newDirOrders()
	ins := make([]inode, picturesKept+1)
	for i := range ins {
		d.keep(picture{in: &ins[i], entries: entriesOf("f")})
	}
	if d.take(&ins[0]).in != nil || d.take(&ins[1]).in == nil || d.take(&ins[1]).in != nil {
		t.Error("not the oldest picture went, or one was taken twice")
	}
	d.drop(&ins[2])
	if d.take(&ins[2]).in != nil || len(d.pictures) != picturesKept-2 {
		t.Errorf("%d pictures", len(d.pictures))
	}
}
