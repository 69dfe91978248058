package powercut_test

import (
	"slices"
	"strings"
	"testing"
)

// modelCase is a small world with one lower file of four blocks, some operations, and what is found.
type modelCase struct {
	ops    []op
	undone bool // the last operation may not have happened
	keeps  keeps
	steps  bool
	found  func(w *world) tree
	wrong  string // part of what the check must say; "": nothing
}

const (
	lowerID = 0x01000001
	newID   = 0x010003e8
	fourK   = 4 * blockSize
)

// made is a file whose pieces are of these sources.
func made(w *world, name string, size int64, pieces ...span) *seen {
	s := &seen{Name: name, Mode: lowerMode, Size: size, N: size, data: make([]byte, size)}
	for _, p := range pieces {
		fill(w.seed, p.src, p.lo, s.data[p.lo:p.hi])
	}
	return s
}

func one(name string, size int64, pieces ...span) func(*world) tree {
	return func(w *world) tree { return tree{name: made(w, name, size, pieces...)} }
}

// TestModel is the check against itself: what it must accept and what it must find.
func TestModel(t *testing.T) {
	lower, first, second := source{file: lowerID}, source{lowerID, 1001}, source{lowerID, 1003}
	write := op{N: 1001, Kind: opWrite, File: lowerID, Name: "f", Off: blockSize, Len: blockSize}
	dsync := op{N: 1004, Kind: opWrite, File: lowerID, Name: "f", Off: 2 * blockSize, Len: blockSize, Sync: true}
	again := op{N: 1003, Kind: opWrite, File: lowerID, Name: "f", Off: blockSize, Len: blockSize}
	sync := op{N: 1002, Kind: opFsync, File: lowerID, Name: "f"}
	chmod := op{N: 1001, Kind: opChmod, File: lowerID, Name: "f", Mode: 0o600}
	rename := op{N: 1001, Kind: opRename, File: lowerID, Name: "f", To: "g"}
	all := span{0, fourK, lower}
	block := func(src source) span { return span{blockSize, 2 * blockSize, src} }
	tail := func(src source) span { return span{blockSize, fourK, src} }
	down := op{N: 1001, Kind: opTruncate, File: lowerID, Name: "f", Len: blockSize}
	up := op{N: 1003, Kind: opTruncate, File: lowerID, Name: "f", Len: fourK}
	chmodNext := op{N: 1002, Kind: opChmod, File: lowerID, Name: "f", Mode: 0o600}
	punch := op{N: 1001, Kind: opPunch, File: lowerID, Name: "f", Off: blockSize, Len: blockSize}
	rewrite := op{N: 1001, Kind: opRewrite, File: lowerID, Name: "f", Len: blockSize}
	for name, c := range map[string]modelCase{
		"nothing happened":                  {found: one("f", fourK, all)},
		"unsynced write is lost":            {ops: []op{write}, found: one("f", fourK, all)},
		"unsynced write is kept":            {ops: []op{write}, found: one("f", fourK, all, block(first))},
		"unsynced write is kept in part":    {ops: []op{write}, found: one("f", fourK, all, span{blockSize, 5000, first})},
		"unsynced write became zeros":       {ops: []op{write}, found: one("f", fourK, all, block(source{})), wrong: "which is zeros"},
		"synced write is lost":              {ops: []op{write, sync}, found: one("f", fourK, all), wrong: "lower data"},
		"synced write is kept":              {ops: []op{write, sync}, found: one("f", fourK, all, block(first))},
		"sync was not done":                 {ops: []op{write, sync}, undone: true, found: one("f", fourK, all)},
		"synced write is replaced":          {ops: []op{write, sync, again}, found: one("f", fourK, all, block(second))},
		"older than the synced write":       {ops: []op{write, again, sync}, found: one("f", fourK, all, block(first)), wrong: "op 1001"},
		"one synced sector became zeros":    {ops: []op{write, sync}, found: one("f", fourK, all, block(first), span{6144, 6656, source{}}), wrong: "which is zeros"},
		"another file's bytes":              {found: one("f", fourK, all, block(source{newID, 1001})), wrong: "nobody's"},
		"a synced write is lost":            {ops: []op{dsync}, found: one("f", fourK, all), wrong: "lower data"},
		"only a synced write is there":      {ops: []op{write, dsync}, found: one("f", fourK, all, span{2 * blockSize, 3 * blockSize, source{lowerID, 1004}})},
		"truncated, not synced":             {ops: []op{down}, found: one("f", fourK, all)},
		"truncated and synced":              {ops: []op{down, sync}, found: one("f", fourK, all), wrong: "size 16384"},
		"lower shows after an extension":    {ops: []op{down, sync, up}, found: one("f", fourK, all), wrong: "lower data"},
		"zeros after an extension":          {ops: []op{down, sync, up}, found: one("f", fourK, all, tail(source{}))},
		"truncated in part":                 {ops: []op{down}, found: one("f", 2*blockSize, span{0, 2 * blockSize, lower}), wrong: "size 8192"},
		"truncated in steps":                {ops: []op{down}, steps: true, found: one("f", 2*blockSize, span{0, 2 * blockSize, lower})},
		"steps of a synced truncation":      {ops: []op{down, sync}, steps: true, found: one("f", 2*blockSize, span{0, 2 * blockSize, lower}), wrong: "size 8192"},
		"a size between":                    {found: one("f", fourK-1, span{0, fourK - 1, lower}), wrong: "size 16383"},
		"mode lost":                         {ops: []op{chmod, sync}, found: one("f", fourK, all), wrong: "mode 644"},
		"mode not synced":                   {ops: []op{chmod}, found: one("f", fourK, all)},
		"renamed":                           {ops: []op{rename}, found: one("g", fourK, all)},
		"not renamed":                       {ops: []op{rename}, found: one("f", fourK, all)},
		"gone":                              {found: func(*world) tree { return tree{} }, wrong: "is gone"},
		"lost between two names":            {ops: []op{rename}, found: func(*world) tree { return tree{} }, wrong: "has none of its names"},
		"under both names":                  {ops: []op{rename}, found: both(all), wrong: "several names"},
		"a name that nobody gave":           {found: both(all), wrong: "nobody gave"},
		"killed: a completed write is lost": {ops: []op{write}, keeps: keepsAll, found: one("f", fourK, all), wrong: "lower data"},
		"killed: a write under way is lost": {ops: []op{write}, keeps: keepsAll, undone: true, found: one("f", fourK, all)},
		"killed: not renamed":               {ops: []op{rename}, keeps: keepsAll, found: one("f", fourK, all), wrong: "g: is gone"},
		"killed: a store without msync":     {ops: []op{{N: 1001, Kind: opStore, File: lowerID, Name: "f", Len: 9}}, keeps: keepsAll, found: one("f", fourK, all)},
		"killed: a store with msync":        {ops: []op{{N: 1001, Kind: opStore, File: lowerID, Name: "f", Len: 9, Sync: true}}, keeps: keepsAll, found: one("f", fourK, all), wrong: "bytes wrong"},
		"writeback: a write is lost":        {ops: []op{write}, keeps: keepsRequests, found: one("f", fourK, all)},
		"writeback: a synced write is lost": {ops: []op{write, sync}, keeps: keepsRequests, found: one("f", fourK, all), wrong: "lower data"},
		"writeback: not renamed":            {ops: []op{rename}, keeps: keepsRequests, found: one("f", fourK, all), wrong: "g: is gone"},
		"writeback: mode lost":              {ops: []op{chmod}, keeps: keepsRequests, found: one("f", fourK, all), wrong: "mode 644"},
		"writeback: a write, the mode kept": {ops: []op{write, chmodNext}, keeps: keepsRequests, found: mode(0o600, one("f", fourK, all))},
		"writeback: not truncated":          {ops: []op{down}, keeps: keepsRequests, found: one("f", fourK, all), wrong: "size 16384"},
		"writeback: not extended":           {ops: []op{down, up}, keeps: keepsRequests, found: one("f", blockSize, span{0, blockSize, lower}), wrong: "size 4096"},
		"writeback: an append is lost":      {ops: []op{down, again}, keeps: keepsRequests, found: one("f", blockSize, span{0, blockSize, lower})},
		"writeback: not punched":            {ops: []op{punch}, keeps: keepsRequests, found: one("f", fourK, all), wrong: "lower data"},
		"writeback: made empty alone":       {ops: []op{rewrite}, keeps: keepsRequests, found: one("f", 0)},
		"writeback: not made empty":         {ops: []op{rewrite}, keeps: keepsRequests, found: one("f", fourK, all), wrong: "size 16384"},
		"cannot be read":                    {found: func(*world) tree { return tree{"f": {Name: "f", Err: "input/output error"}} }, wrong: "input/output error"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(7, c.keeps, []lowerFile{{id: lowerID, name: "f", size: fourK, data: spans{{0, fourK, lower}}}})
			w.steps = c.steps
			for i, o := range c.ops {
				w.apply(o, !c.undone || i < len(c.ops)-1)
			}
			wrong, _ := w.check(c.found(w))
			text := strings.Join(wrong, "\n")
			if c.wrong == "" && text != "" {
				t.Errorf("must be accepted: %s", text)
			}
			if !strings.Contains(text, c.wrong) {
				t.Errorf("says %q, and nothing of %q", text, c.wrong)
			}
		})
	}
}

func mode(m uint32, found func(*world) tree) func(*world) tree {
	return func(w *world) tree {
		t := found(w)
		for _, s := range t {
			s.Mode = m
		}
		return t
	}
}

// TestNarrowed is what stays possible of a file once it was seen.
func TestNarrowed(t *testing.T) {
	lower, first, second := source{file: lowerID}, source{lowerID, 1001}, source{lowerID, 1002}
	w := newWorld(7, keepsRequests, []lowerFile{{id: lowerID, name: "f", size: fourK, data: spans{{0, fourK, lower}}}})
	for _, o := range []op{{N: 1001, Off: blockSize, Len: 2 * blockSize}, {N: 1002, Off: 2 * blockSize, Len: 2 * blockSize}} {
		o.Kind, o.File, o.Name = opWrite, lowerID, "f"
		w.apply(o, true)
	}
	// The second write is there in a half of the third block and in the fourth, the first in the second.
	half := int64(2*blockSize + blockSize/2)
	found := one("f", fourK, span{0, fourK, lower}, span{blockSize, 2 * blockSize, first}, span{half, fourK, second})(w)
	w.resolve(found, map[string]uint32{"f": lowerID})
	for at, want := range map[int64][]source{0: {lower}, blockSize: {first}, 3 * blockSize: {second}, half: {lower, first, second}, fourK: {{}}} {
		here := w.files[lowerID].disk.within(at, at+1)
		if len(here) != len(want) || slices.ContainsFunc(here, func(p span) bool { return !slices.Contains(want, p.src) }) {
			t.Errorf("at %d: %s, want %v", at, sources(here), want)
		}
	}
}

func both(pieces ...span) func(*world) tree {
	return func(w *world) tree {
		return tree{"f": made(w, "f", fourK, pieces...), "g": made(w, "g", fourK, pieces...)}
	}
}
