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
	o.sort(first, 10, true, 0)
	if got := []uint64{first[0].pos, first[1].pos, first[2].pos}; !slices.Equal(got, []uint64{10, 11, 12}) {
		t.Fatalf("positions %v", got)
	}
	// The file system gives them in another order, one is gone, and two have come.
	then := entriesOf("x", "b", "y", "c")
	o.sort(then, 10, true, 0)
	for i, want := range []dirent{{name: "c", pos: 10}, {name: "b", pos: 12}, {name: "x", pos: 13}, {name: "y", pos: 14}} {
		if then[i] != want {
			t.Errorf("place %d: %+v, want %+v", i, then[i], want)
		}
	}
	back := entriesOf("a")
	if o.sort(back, 10, true, 0); back[0].pos != 11 {
		t.Errorf("a name that came back is at %d", back[0].pos)
	}
}

// TestOrderIsMadeAnewOnlyWhenNobodyIsInIt: and no position is given twice.
func TestOrderIsMadeAnewOnlyWhenNobodyIsInIt(t *testing.T) {
	d := newDirOrders()
	in := &inode{}
	o := d.of(in)
	const places = 2 * orderLeast
	for i := range places {
		o.sort(entriesOf(fmt.Sprint(i)), 0, true, 0)
	}
	d.keep(&picture{in: in, number: d.begin(), entries: entriesOf("0")})
	began := time.Duration(o.behind.Load())
	if began == 0 {
		t.Error("who is at the first names is not in the middle")
	}
	last := entriesOf("last")
	if o.sort(last, 0, true, began+orderUnread); last[0].pos != places {
		t.Errorf("position %d while somebody may read on", last[0].pos)
	}
	if o.sort(last, 0, false, began+orderUnread+1); last[0].pos != places {
		t.Errorf("position %d for who reads on", last[0].pos)
	}
	if o.sort(last, 0, true, began+orderUnread+1); last[0].pos != places+1 || len(o.hashes) != 1 {
		t.Errorf("position %d, %d places", last[0].pos, len(o.hashes))
	}
	d.close()
}

func TestPicturesAreBounded(t *testing.T) {
	d := newDirOrders()
	defer d.close()
	ins := make([]inode, picturesKept+2)
	show := func(i, entries int) *picture {
		p := &picture{in: &ins[i], number: d.begin(), entries: make([]dirent, entries)}
		d.keep(p)
		return p
	}
	for i := range picturesKept + 1 {
		show(i, 1)
	}
	if d.find(&ins[0]) != nil || d.find(&ins[1]) == nil || d.find(&ins[1]) == nil {
		t.Error("not the oldest picture went, or one went when it was used")
	}
	d.drop(&ins[2])
	if d.find(&ins[2]) != nil || len(d.pictures) != picturesKept-1 {
		t.Errorf("%d pictures", len(d.pictures))
	}
	show(3, 2*entriesKept) // the newest stays, whatever its size
	if len(d.pictures) != picturesKept-1 || d.find(&ins[3]) == nil {
		t.Errorf("%d pictures beside a large one", len(d.pictures))
	}
	show(picturesKept+1, 1)
	if len(d.pictures) != 1 || d.find(&ins[3]) != nil {
		t.Errorf("%d pictures behind a large one", len(d.pictures))
	}
}

func TestOlderPictureDoesNotReplaceANewerOne(t *testing.T) {
	d := newDirOrders()
	defer d.close()
	in := &inode{}
	old := &picture{in: in, number: d.begin()}
	now := &picture{in: in, number: d.begin()}
	d.keep(now)
	d.keep(old)
	if d.find(in) != now {
		t.Error("the older picture is there")
	}
	if d.done(old); d.find(in) != now {
		t.Error("who has read the older one has dropped the newer one")
	}
	if d.done(now); d.find(in) != nil {
		t.Error("a picture that was read stays")
	}
}

func TestUnusedPicturesGo(t *testing.T) {
	d := newDirOrders()
	defer d.close()
	in := &inode{}
	d.keep(&picture{in: in, number: d.begin()})
	d.began = d.began.Add(-pictureFor)
	if d.sweep(); d.find(in) != nil {
		t.Error("an unused picture stays")
	}
}
