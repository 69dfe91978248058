package overlayfuse

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A lower file of two names, a and b, of which a is in the upper and in the index.
func indexedRig(t *testing.T) (*fsckRig, string) {
	r := newFsckRig(t)
	r.mkdir("w/index", "w/work")
	r.file("l/a", 3*block, 0, 1, 2)
	r.link("l/a", "l/b")
	entry := r.indexEntry("a")
	r.file("u/a", 3*block)
	r.mark("u/a", "metacopy", "")
	r.mark("u/a", "nlink", "L+0")
	r.mark("u/a", "sole", "")
	r.link("u/a", entry)
	return r, entry
}

func TestCheckTakesTheIndexAsAMountLeavesIt(t *testing.T) {
	r, entry := indexedRig(t)
	r.cycle(nil)
	r.link("u/a", "u/b")
	r.cycle(nil)
	for _, n := range []string{"/u/a", "/u/b"} { // names in the lower layers only
		r.must(unix.Unlink(r.dir + n))
	}
	r.cycle(nil)
	r.mark(entry, "metacopy", "p") // of which all is missing
	r.cycle(nil)
	r.must(unix.Mknod(r.dir+"/w/index/00", unix.S_IFCHR, 0))
	r.mkdir("w/index/01")
	r.cycle(nil)
	r.must(unix.Mkfifo(r.dir+"/u/fifo", 0o600))
	r.link("u/fifo", "u/fifo2")
	r.cycle(nil)
}

func TestCheckFindsTheDataOfAnIndexedFileOnce(t *testing.T) {
	r, entry := indexedRig(t)
	r.mark("u/a", "metacopy", "p")
	r.mark("u/a", "limit", limitValue(0))
	r.link("u/a", "u/b")
	r.cycle([]wanted{{"u/a", "but complete", SeverityNote, true}})
	if strings.Contains(strings.Join(r.marks(entry), " "), "limit") {
		t.Errorf("marks of the index entry: %v", r.marks(entry))
	}
}

func TestCheckFindsStaleDataBehindAnIndexEntryAlone(t *testing.T) {
	r, entry := indexedRig(t)
	r.must(unix.Unlink(r.dir + "/u/a"))
	r.file(entry, 3*block, 1)
	r.mark(entry, "metacopy", "")
	r.cycle([]wanted{{entry, "data of its own", SeverityError, true}})
}

func TestCheckReplacesALinkCountThatMakesNoSense(t *testing.T) {
	for _, v := range []string{"", "2", "L", "X+1", "L-9", "L+99999999999999999999", "U-7", strings.Repeat("L", 3000)} {
		r, entry := indexedRig(t)
		r.mark(entry, "nlink", v)
		r.cycle([]wanted{{entry, "link count", SeverityError, true}})
		got, err := getXattr(onHost(r.dir+"/"+entry), mark+"nlink")
		if err != nil || string(got) != "L+1" { // both names below and one more link: not too small
			t.Errorf("%q became %q, %v", v, got, err)
		}
	}
}

func TestCheckFindsIndexEntriesThatLeadNowhere(t *testing.T) {
	r, _ := indexedRig(t)
	good := r.indexEntry("b")
	r.file("w/index/README", 0)
	r.file("w/index/00fb", 0)
	wrong := good[:len(good)-8] + "deadbeef" // of another generation
	r.file(wrong, 0)
	got := map[string]Finding{}
	for _, f := range r.check(false).Findings {
		got[strings.TrimPrefix(f.Path, r.dir+"/")] = f
	}
	for path, want := range map[string]string{"w/index/README": "not named for an origin", "w/index/00fb": "not named for an origin",
		wrong: "the lower layers have no such file"} {
		if !strings.Contains(got[path].Problem, want) {
			t.Errorf("%s: %+v, want %q", path, got[path], want)
		}
	}
	if len(got) != 3 {
		t.Errorf("findings: %+v", got)
	}
}

func TestCheckFindsEachNameWithoutLowerData(t *testing.T) {
	r := newFsckRig(t)
	r.file("u/x", block)
	r.mark("u/x", "metacopy", "")
	r.link("u/x", "u/y")
	r.cycle([]wanted{{"u/x", "without lower data", SeverityError, false}, {"u/y", "without lower data", SeverityError, false}})
}

func TestRepairLeavesAFileAloneThatHasNamesElsewhere(t *testing.T) {
	r := newFsckRig(t)
	r.file("l/f", 3*block, 0, 1, 2)
	r.mark("l/f", "limit", limitValue(7))
	r.link("l/f", "u/f")
	r.cycle([]wanted{{"u/f", "left over: limit", SeverityNote, false}})
	if !strings.Contains(r.check(true).Findings[0].Problem, "1 of its names are not in the upper") {
		t.Error("no reason given")
	}
}
