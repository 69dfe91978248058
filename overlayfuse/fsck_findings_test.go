package overlayfuse

import (
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fsckCases are uppers with something wrong in them, or nothing. l/f has three blocks, l/d/f one.
var fsckCases = map[string]struct {
	make func(r *fsckRig)
	want []wanted
}{
	"nothing": {func(*fsckRig) {}, nil},
	"what a mount leaves": {func(r *fsckRig) {
		r.file("u/f", 3*block, 1) // partial
		r.mark("u/f", "metacopy", "p")
		r.mark("u/f", "origin", "some handle")
		r.file("u/d/f", block) // metacopy
		r.mark("u/d/f", "metacopy", "")
		r.mark("u/d", "impure", "y")
		r.file("u/own", 2*block, 0, 1)
		r.mkdir("u/opaque", "u/xwhiteouts", "u/moved")
		r.mark("u/opaque", "opaque", "y")
		r.mark("u/xwhiteouts", "opaque", "x")
		r.mark("u/moved", "redirect", "/d")
		r.file("u/moved/f", block/2)
		r.mark("u/moved/f", "metacopy", "\x00\x08\x00\x01hash")
		r.file("u/opaque/g", 3*block)
		r.mark("u/opaque/g", "metacopy", "")
		r.mark("u/opaque/g", "redirect", "/f")
		r.file("u/sibling", 3*block)
		r.mark("u/sibling", "metacopy", "")
		r.mark("u/sibling", "redirect", "f")
		r.must(unix.Mknod(r.dir+"/u/whiteout", unix.S_IFCHR, 0))
		r.must(os.Symlink("/", r.dir+"/u/symlink"))
	}, nil},
	"a partial file that the limit cuts": {func(r *fsckRig) {
		r.file("u/f", 3*block, 2)
		r.mark("u/f", "metacopy", "p")
		r.mark("u/f", "limit", limitValue(block+1))
	}, nil},
	"a partial file with a last block that is not whole": {func(r *fsckRig) {
		r.file("u/f", 2*block+100, 2)
		r.mark("u/f", "metacopy", "p")
	}, nil},

	"metacopy: data of its own": {func(r *fsckRig) {
		r.file("u/f", 3*block, 2)
		r.mark("u/f", "metacopy", "")
	}, []wanted{{"u/f", "data of its own, from offset 8192", SeverityError, true}}},
	"metacopy: data in a last block that is not whole": {func(r *fsckRig) {
		r.file("u/f", 2*block+1, 2)
		r.mark("u/f", "metacopy", "")
	}, []wanted{{"u/f", "data of its own, from offset 8192", SeverityError, true}}},
	"metacopy: a completion that was killed": {func(r *fsckRig) {
		r.file("u/f", 3*block, 0, 1, 2)
		r.mark("u/f", "metacopy", "")
		r.mark("u/f", "was", string(quiet{}.encode()))
	}, []wanted{{"u/f", "a completion was killed", SeverityNote, true}, {"u/f", "data of its own", SeverityNote, true}}},
	"metacopy: no lower": {func(r *fsckRig) {
		r.file("u/gone", block)
		r.mark("u/gone", "metacopy", "")
	}, []wanted{{"u/gone", "metacopy file without lower data", SeverityError, false}}},
	"metacopy: no lower, and data that nobody else has": {func(r *fsckRig) {
		r.file("u/gone", block, 0)
		r.mark("u/gone", "metacopy", "")
	}, []wanted{{"u/gone", "metacopy file without lower data", SeverityError, false},
		{"u/gone", "data of its own", SeverityError, false}}},
	"metacopy: the lower is a directory": {func(r *fsckRig) {
		r.file("u/d", block)
		r.mark("u/d", "metacopy", "")
	}, []wanted{{"u/d", "metacopy file without lower data", SeverityError, false}}},
	"metacopy: hidden by an opaque directory": {func(r *fsckRig) {
		r.file("u/d/f", block)
		r.mark("u/d", "opaque", "y")
		r.mark("u/d/f", "metacopy", "")
	}, []wanted{{"u/d/f", "metacopy file without lower data", SeverityError, false}}},
	"metacopy: redirect to nothing": {func(r *fsckRig) {
		r.file("u/f", block)
		r.mark("u/f", "metacopy", "")
		r.mark("u/f", "redirect", "/d/gone")
	}, []wanted{{"u/f", "metacopy file without lower data", SeverityError, false}}},
	"metacopy: redirect out of the layer": {func(r *fsckRig) {
		r.file("u/f", block)
		r.mark("u/f", "metacopy", "")
		r.mark("u/f", "redirect", "/../f")
	}, []wanted{{"u/f", `redirect "/../f": neither a name`, SeverityError, false}}},
	"metacopy: unknown": {func(r *fsckRig) {
		for _, v := range []string{"q", "\x00", "pp", "pp\n"} {
			r.file("u/"+printedName(v), block)
			r.mark("u/"+printedName(v), "metacopy", v)
		}
	}, []wanted{{"u/" + printedName("\x00"), `metacopy mark "\x00" is unknown`, SeverityError, false},
		{"u/" + printedName("pp"), `metacopy mark "pp" is unknown`, SeverityError, false},
		{"u/" + printedName("pp\n"), `metacopy mark "pp\n" is unknown`, SeverityError, false},
		{"u/" + printedName("q"), `metacopy mark "q" is unknown`, SeverityError, false}}},
	"metacopy: not the kernel's form": {func(r *fsckRig) {
		r.file("u/f", block)
		r.mark("u/f", "metacopy", "\x00\x05\x00\x01")
		r.file("u/d/f", block)
		r.mark("u/d/f", "metacopy", "\x01\x04\x00\x00")
	}, []wanted{{"u/f", "not in the kernel's form", SeverityWarning, false}, {"u/d/f", "not in the kernel's form", SeverityWarning, false}}},
	"metacopy: a limit": {func(r *fsckRig) {
		r.file("u/f", 3*block)
		r.mark("u/f", "metacopy", "")
		r.mark("u/f", "limit", limitValue(1))
	}, []wanted{{"u/f", "left over: limit", SeverityNote, true}}},

	"complete: a limit and a redirect": {func(r *fsckRig) {
		r.file("u/f", 3*block, 0)
		r.mark("u/f", "limit", "nonsense too long")
		r.mark("u/f", "redirect", "../..")
	}, []wanted{{"u/f", "left over: limit", SeverityNote, true}, {"u/f", "left over: redirect", SeverityNote, true}}},

	"partial: complete": {func(r *fsckRig) {
		r.file("u/f", 3*block, 0, 1, 2)
		r.mark("u/f", "metacopy", "p")
		r.mark("u/f", "redirect", "/f")
	}, []wanted{{"u/f", "marked partial, but complete", SeverityNote, true}}},
	"partial: complete below its limit": {func(r *fsckRig) {
		r.file("u/f", 3*block, 0)
		r.mark("u/f", "metacopy", "p")
		r.mark("u/f", "limit", limitValue(block))
	}, []wanted{{"u/f", "marked partial, but complete", SeverityNote, true}}},
	"partial: complete as far as the lower goes": {func(r *fsckRig) {
		r.file("u/d/f", 3*block, 0)
		r.mark("u/d/f", "metacopy", "p")
	}, []wanted{{"u/d/f", "marked partial, but complete", SeverityNote, true}}},
	"partial: limit 0": {func(r *fsckRig) {
		r.file("u/f", 3*block)
		r.mark("u/f", "metacopy", "p")
		r.mark("u/f", "limit", limitValue(0))
	}, []wanted{{"u/f", "marked partial, but complete", SeverityNote, true}}},
	"partial: malformed limits": {func(r *fsckRig) {
		for _, v := range []string{"", "1234567", "123456789", limitValue(1 << 63)} {
			r.file("u/"+printedName(v), block)
			r.mark("u/"+printedName(v), "metacopy", "p")
			r.mark("u/"+printedName(v), "limit", v)
		}
	}, []wanted{{"u/" + printedName(""), "lower limit  is not a number of 8 bytes", SeverityError, false},
		{"u/" + printedName("1234567"), "lower limit 31323334353637 is not a number", SeverityError, false},
		{"u/" + printedName("123456789"), "lower limit 313233343536373839 is not a number", SeverityError, false},
		{"u/" + printedName(limitValue(1<<63)), "lower limit 0000000000000080 is not a number", SeverityError, false}}},
	"partial: no lower": {func(r *fsckRig) {
		r.file("u/gone", 3*block, 1)
		r.mark("u/gone", "metacopy", "p")
	}, []wanted{{"u/gone", "without lower data, 8192 bytes of which are missing", SeverityError, false}}},
	"partial: no lower, but complete": {func(r *fsckRig) {
		r.file("u/gone", 3*block, 0, 1)
		r.mark("u/gone", "metacopy", "p")
		r.mark("u/gone", "limit", limitValue(2*block))
	}, []wanted{{"u/gone", "without lower data, but none is missing", SeverityError, true}}},

	"partial: a completion that was killed": {func(r *fsckRig) {
		r.file("u/f", 3*block, 1)
		r.mark("u/f", "metacopy", "p")
		r.mark("u/f", "was", string(quiet{}.encode()))
		r.file("u/d/f", block)
		r.mark("u/d/f", "metacopy", "p")
		r.mark("u/d/f", "was", "short")
		r.file("u/own", block, 0)
		r.mark("u/own", "was", "anything")
	}, []wanted{{"u/f", "a completion was killed", SeverityNote, true}, {"u/own", "left over: was", SeverityNote, true},
		{"u/d/f", "mark was of 5 bytes", SeverityError, true}}},
	"size 0: lost in a crash": {func(r *fsckRig) {
		r.btrfs()
		r.file("u/f", 0)
		r.mark("u/f", "metacopy", "p")
		r.file("u/d/f", 0)
		r.mark("u/d/f", "metacopy", "")
		r.file("u/cut", 0)
		r.mark("u/cut", "metacopy", "p")
		r.mark("u/cut", "redirect", "/f")
		r.mark("u/cut", "limit", limitValue(5))
	}, []wanted{{"u/cut", "it has 5 bytes in the lower", SeverityNote, true},
		{"u/f", "it has 12288 bytes in the lower", SeverityNote, true},
		{"u/d/f", "it has 4096 bytes in the lower", SeverityNote, true}}},
	"size 0: not lost where the order is kept": {func(r *fsckRig) {
		r.ext4()
		r.file("u/f", 0)
		r.mark("u/f", "metacopy", "p")
		r.file("u/d/f", 0)
		r.mark("u/d/f", "metacopy", "")
	}, []wanted{{"u/f", "marked partial, but complete", SeverityNote, true}}},
	"size 0: a truncation": {func(r *fsckRig) {
		r.btrfs()
		r.file("u/f", 0)
		r.mark("u/f", "metacopy", "p0")
	}, []wanted{{"u/f", "marked partial, but complete", SeverityNote, true}}},
	"size 0: a limit that is left over does not count": {func(r *fsckRig) {
		r.btrfs()
		for name, limit := range map[string]uint64{"a": 0, "b": 7} {
			r.file("u/"+name, 0)
			r.mark("u/"+name, "metacopy", "")
			r.mark("u/"+name, "redirect", "/f")
			r.mark("u/"+name, "limit", limitValue(limit))
		}
	}, []wanted{{"u/a", "left over: limit", SeverityNote, true}, {"u/a", "it has 12288 bytes", SeverityNote, true},
		{"u/b", "left over: limit", SeverityNote, true}, {"u/b", "it has 12288 bytes", SeverityNote, true}}},
	"size 0: meant": {func(r *fsckRig) {
		r.file("l/empty", 0)
		r.file("u/empty", 0)
		r.mark("u/empty", "metacopy", "p")
		r.file("u/f", 0)
		r.mark("u/f", "metacopy", "p")
		r.mark("u/f", "limit", limitValue(0))
	}, []wanted{{"u/empty", "but complete", SeverityNote, true}, {"u/f", "but complete", SeverityNote, true}}},
	"size 0: no lower": {func(r *fsckRig) {
		r.btrfs()
		r.file("u/gone", 0)
		r.mark("u/gone", "metacopy", "p")
		r.file("u/gone2", 0)
		r.mark("u/gone2", "metacopy", "")
		r.mark("u/gone2", "redirect", "a/b") // found once
	}, []wanted{{"u/gone", "without lower data", SeverityError, false}, {"u/gone2", `redirect "a/b"`, SeverityError, false}}},

	"directory: malformed redirects": {func(r *fsckRig) {
		for _, v := range []string{"", "a/b", "/d/", "..", strings.Repeat("n", 256)} {
			r.mkdir("u/" + printedName(v))
			r.mark("u/"+printedName(v), "redirect", v)
			r.file("u/"+printedName(v)+"/f", block) // not reported: what is below cannot be known
			r.mark("u/"+printedName(v)+"/f", "metacopy", "")
		}
	}, []wanted{{"u/" + printedName(""), `redirect "":`, SeverityError, false},
		{"u/" + printedName(".."), `redirect "..":`, SeverityError, false},
		{"u/" + printedName("/d/"), `redirect "/d/":`, SeverityError, false},
		{"u/" + printedName("a/b"), `redirect "a/b":`, SeverityError, false},
		{"u/" + printedName(strings.Repeat("n", 256)), `redirect "nnn`, SeverityError, false}}},
	"directory: redirect to nothing": {func(r *fsckRig) {
		r.mkdir("u/moved", "u/onto-a-file")
		r.mark("u/moved", "redirect", "/gone")
		r.mark("u/onto-a-file", "redirect", "f")
	}, []wanted{{"u/moved", "leads to no lower directory", SeverityWarning, false},
		{"u/onto-a-file", "leads to no lower directory", SeverityWarning, false}}},
	"directory: unknown opaque": {func(r *fsckRig) {
		r.mkdir("u/d")
		r.mark("u/d", "opaque", "n")
		r.mark("u", "opaque", "")
		r.file("u/d/f", block, 0)
		r.mark("u/d/f", "opaque", "n")
	}, []wanted{{"u", `opaque ""`, SeverityWarning, false}, {"u/d", `opaque "n"`, SeverityWarning, false}}},

	"workdir: unfinished objects": {func(r *fsckRig) {
		r.file("w/work/#1", block, 0)
		r.mkdir("w/work/#2/a/b")
	}, []wanted{{"w/work", "2 unfinished objects", SeverityNote, true}}},
	"workdir: something in the way": {func(r *fsckRig) {
		r.file("w/work", 0)
		r.must(os.Symlink(r.dir+"/l", r.dir+"/w/index"))
	}, []wanted{{"w/work", "not a directory", SeverityWarning, false}, {"w/index", "not a directory", SeverityWarning, false}}},
	"workdir: volatile, in another boot": {func(r *fsckRig) {
		r.mkdir("w/work/incompat/volatile/boot-0")
		r.file("u/f", 3*block, 2)
		r.mark("u/f", "metacopy", "")
	}, []wanted{{"w/work/incompat/volatile", "last written by a volatile mount, perhaps before a crash", SeverityError, false},
		{"u/f", "data of its own", SeverityError, false}}},
	"workdir: volatile, in this boot": {func(r *fsckRig) {
		boot, err := bootID()
		r.must(err)
		r.mkdir("w/work/incompat/volatile/boot-" + boot)
	}, []wanted{{"w/work/incompat/volatile", "in this boot", SeverityNote, false}}},
	"workdir: a feature of the future": {func(r *fsckRig) {
		r.mkdir("w/work/incompat/future")
	}, []wanted{{"w/work/incompat", `feature "future"`, SeverityError, false}}},
}

// printedName is a file name that sorts and reads like v.
func printedName(v string) string {
	return "v" + strings.Map(func(c rune) rune {
		if c < ' ' || c == '/' || c > '~' {
			return '_'
		}
		return c
	}, v[:min(len(v), 40)])
}

func TestCheckFindsWhatIsWrongAndRepairsWhatCanBe(t *testing.T) {
	for name, c := range fsckCases {
		t.Run(name, func(t *testing.T) {
			r := newFsckRig(t)
			r.lowers()
			c.make(r)
			r.cycle(c.want)
		})
	}
}

func TestRepairCompletesAPartialFile(t *testing.T) {
	r := newFsckRig(t)
	r.file("l/f", 3*block, 0, 1, 2)
	r.file("u/f", 3*block, 0, 1)
	r.mark("u/f", "metacopy", "p")
	r.mark("u/f", "limit", limitValue(2*block))
	before := r.read(r.dir + "/u/f")
	r.check(true)
	if got := r.marks("u/f"); len(got) != 1 || got[0] != "origin" {
		t.Errorf("marks of the completed file: %v, want its origin", got)
	}
	if string(r.read(r.dir+"/u/f")) != string(before) {
		t.Error("the data is another")
	}
}

// TestRepairPutsBack what a completion that was killed has changed, also if the file is made plain by it.
func TestRepairPutsBack(t *testing.T) {
	for _, blocks := range [][]int64{{0, 1, 2}, {0}} {
		r := newFsckRig(t)
		r.lowers()
		r.file("u/f", 3*block, blocks...)
		r.mark("u/f", "metacopy", "p")
		capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
		was := quiet{atime: unix.Timespec{Sec: 11}, mtime: unix.Timespec{Sec: 22, Nsec: 5}, caps: []byte(capability)}
		r.mark("u/f", "was", string(was.encode()))
		r.check(true)
		var st unix.Stat_t
		r.must(unix.Stat(r.dir+"/u/f", &st))
		if st.Atim != was.atime || st.Mtim != was.mtime {
			t.Errorf("blocks %v: times %v, %v", blocks, st.Atim, st.Mtim)
		}
		if v, err := getXattr(onHost(r.dir+"/u/f"), capabilityXattr); err != nil || string(v) != capability {
			t.Errorf("blocks %v: capability %q, %v", blocks, v, err)
		}
		if marks := r.marks("u/f"); slices.Contains(marks, "was") || slices.Contains(marks, "metacopy") != (len(blocks) < 3) {
			t.Errorf("blocks %v: marks %v", blocks, marks)
		}
	}
}

func TestRepairKeepsAttributes(t *testing.T) {
	for name, size := range map[string]int64{"data of its own": 3 * block, "size 0": 0} {
		t.Run(name, func(t *testing.T) { repairKeepsAttributes(t, size) })
	}
}

func repairKeepsAttributes(t *testing.T, size int64) {
	r := newFsckRig(t)
	r.btrfs()
	if size > 0 {
		r.file("u/f", size, 1)
	} else {
		r.file("u/f", 0)
	}
	r.mark("u/f", "metacopy", "")
	r.must(os.Chmod(r.dir+"/u/f", 0o755|os.ModeSetuid))
	// struct vfs_ns_cap_data of revision 2 with CAP_NET_RAW (linux/capability.h)
	r.set("u/f", capabilityXattr, "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	r.must(unix.UtimesNanoAt(unix.AT_FDCWD, r.dir+"/u/f", []unix.Timespec{{Sec: 11}, {Sec: 22, Nsec: 5}}, 0))
	var st, now unix.Stat_t
	r.must(unix.Stat(r.dir+"/u/f", &st))
	if f := r.check(true).Findings; len(f) != 1 || !f[0].Repaired {
		t.Fatalf("findings %+v", f)
	}
	r.must(unix.Stat(r.dir+"/u/f", &now))
	if now.Mode != st.Mode || now.Atim != st.Atim || now.Mtim != st.Mtim || now.Size != 3*block {
		t.Errorf("now %+v, was %+v", now, st)
	}
	if v, err := getXattr(onHost(r.dir+"/u/f"), capabilityXattr); err != nil || len(v) != 20 {
		t.Errorf("capability: %q, %v", v, err)
	}
	if now.Blocks > st.Blocks {
		t.Errorf("%d blocks, %d before", now.Blocks, st.Blocks)
	}
}

func TestCheckWithoutLowersSaysWhatItLeavesOut(t *testing.T) {
	r := newFsckRig(t)
	r.cfg.Lower = nil
	r.file("u/gone", block)
	r.mark("u/gone", "metacopy", "")
	r.mkdir("u/moved")
	r.mark("u/moved", "redirect", "/gone")
	r.file("u/partial", 3*block, 1)
	r.mark("u/partial", "metacopy", "p")
	r.file("u/stale", 3*block, 1)
	r.mark("u/stale", "metacopy", "")
	r.file("u/whole", 3*block, 0)
	r.mark("u/whole", "metacopy", "p")
	r.mark("u/whole", "limit", limitValue(block))
	r.cycle([]wanted{{"u/stale", "data of its own", SeverityError, false}, {"u/whole", "but complete", SeverityNote, true}})
	if u := r.check(false).Unchecked; len(u) != 1 || !strings.Contains(u[0], "no lowerdir") {
		t.Errorf("unchecked: %q", u)
	}
}

func TestCheckCountsWhatItSaw(t *testing.T) {
	r := newFsckRig(t)
	r.file("l/f", 3*block, 0)
	r.file("u/d/e/own", block)
	r.file("u/f", 3*block)
	r.mark("u/f", "metacopy", "p")
	r.must(unix.Mknod(r.dir+"/u/whiteout", unix.S_IFCHR, 0))
	got := r.check(false)
	if got.Dirs != 3 || got.Files != 3 || got.Partials != 1 || got.Metacopies != 0 {
		t.Errorf("%+v", got)
	}
}

func TestCheckChangesNoAccessTime(t *testing.T) {
	r := newFsckRig(t)
	r.file("l/d/f", 3*block, 0)
	r.file("u/d/f", 3*block, 1)
	r.mark("u/d/f", "metacopy", "p")
	r.mkdir("w/index", "w/work/incompat/volatile")
	paths := []string{"l", "l/d", "l/d/f", "u", "u/d", "u/d/f", "w", "w/index", "w/work", "w/work/incompat", "w/work/incompat/volatile"}
	old := unix.Timespec{Sec: 1000}
	for _, p := range paths { // older than the change: relatime would renew it
		r.must(unix.UtimesNanoAt(unix.AT_FDCWD, r.dir+"/"+p, []unix.Timespec{old, {Nsec: unix.UTIME_OMIT}}, 0))
	}
	r.check(false)
	for _, p := range paths {
		var st unix.Stat_t
		r.must(unix.Lstat(r.dir+"/"+p, &st))
		if st.Atim != old {
			t.Errorf("%s was accessed at %v", p, st.Atim)
		}
	}
}
