package overlayfuse_test

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/internal/fstool"
)

// step is one operation on both twins: a request of fstool, in which %/PATH is a path of either tree and #FD a descriptor
// of either, or one of the acts below (in who's place).
type step struct {
	who   string
	words []string
}

const (
	actCheck   = "CHECK"   // compare the trees
	actDrop    = "DROP"    // the kernel forgets what it cached of the mount
	actFlush   = "FLUSH"   // the mounted upper is made complete
	actRemount = "REMOUNT" // unmount, mount the same, compare
	actCommit  = "COMMIT"  // unmount, flush, compare the kernel's overlayfs; the upper becomes the topmost lower
)

func act(name string) step { return step{words: []string{name}} }

func (s step) String() string {
	if s.who == "" {
		return strings.Join(s.words, " ")
	}
	return "as " + s.who + " " + strings.Join(s.words, " ")
}

// stepMaker draws steps. What it draws depends on the seed, and on what the twin tree has, which it may look at.
type stepMaker struct {
	*rand.Rand
	twin   string // the plain directory
	prefix string // of every path
	users  []string
	fds    []string

	age   int
	paths map[string][]string // by type, "" is all
	open  map[string]openFD
}

type openFD struct{ who, kind string }

func newStepMaker(g *rand.Rand, twin, prefix string) *stepMaker {
	return &stepMaker{
		Rand: g, twin: twin, prefix: prefix, users: []string{"", "", "", "", "1000:1000,2000"}, fds: []string{"1", "2", "3", "4", "5"},
		open: map[string]openFD{},
	}
}

// saw tells the maker what became of a step.
func (g *stepMaker) saw(s step, r fstool.Reply) {
	if len(s.words) > 1 && (s.words[0] == "rename" || s.words[0] == "rmtree" || s.words[0] == "mkdir") {
		g.age = 0
	}
	switch s.words[0] {
	case actRemount, actCommit:
		g.open = map[string]openFD{}
	case "open", "tmpfile", "opendir":
		if r.Errno != "" || r.Bad != "" {
			return
		}
		g.open[s.words[1][1:]] = openFD{s.who, g.kind(s)}
	case "close":
		delete(g.open, s.words[1][1:])
	}
}

// kind is what a step opened.
func (g *stepMaker) kind(s step) string {
	if s.words[0] == "tmpfile" {
		return "file"
	}
	st, err := os.Stat(filepath.Join(g.twin, strings.TrimPrefix(s.words[2], "%")))
	switch {
	case err == nil && st.IsDir():
		return "dir"
	case err == nil && st.Mode().IsRegular():
		return "file"
	}
	return "other"
}

func (g *stepMaker) pick(words ...string) string { return words[g.IntN(len(words))] }

// look reads the names of the twin tree.
func (g *stepMaker) look() {
	if g.age--; g.age > 0 {
		return
	}
	g.age = 12
	g.paths = map[string][]string{}
	top := filepath.Join(g.twin, strings.TrimPrefix(g.prefix, "%"))
	_ = filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error { // a tree that is gone has no names
		if err != nil || path == top {
			return nil
		}
		name := g.prefix + strings.TrimPrefix(path, top)
		kind := "other"
		switch {
		case e.IsDir():
			kind = "dir"
		case e.Type().IsRegular():
			kind = "file"
		}
		g.paths[kind] = append(g.paths[kind], name)
		g.paths[""] = append(g.paths[""], name)
		return nil
	})
}

// some is mostly an existing name of this kind ("": any).
func (g *stepMaker) some(kind string) string {
	if all := g.paths[kind]; len(all) > 0 && g.IntN(10) > 0 {
		return all[g.IntN(len(all))]
	}
	return g.fresh()
}

// fresh is a name that may exist or not, mostly in an existing directory.
func (g *stepMaker) fresh() string {
	name := twinNames[g.IntN(len(twinNames))]
	switch g.IntN(60) {
	case 0:
		name = strings.Repeat("n", 255)
	case 1:
		name = strings.Repeat("n", 256)
	}
	dirs := g.paths["dir"]
	if len(dirs) == 0 || g.IntN(5) == 0 {
		return g.prefix + "/" + name
	}
	dir := dirs[g.IntN(len(dirs))]
	if strings.Count(dir, "/") > 6 {
		dir = g.prefix
	}
	return dir + "/" + name
}

// goal is where a rename or link goes.
func (g *stepMaker) goal(kind string) string {
	if g.IntN(2) == 0 {
		return g.fresh()
	}
	return g.some(kind)
}

func (g *stepMaker) offset() string {
	switch g.IntN(4) {
	case 0:
		return fmt.Sprint(4096 * g.IntN(30))
	case 1:
		return fmt.Sprint(g.IntN(300000))
	default:
		return fmt.Sprint(g.IntN(9000))
	}
}

func (g *stepMaker) count() string {
	if g.IntN(4) == 0 {
		return fmt.Sprint(1 + g.IntN(150000))
	}
	return fmt.Sprint(1 + g.IntN(5000))
}

func (g *stepMaker) seed() string { return fmt.Sprint(g.IntN(1000)) }

func (g *stepMaker) mode() string { return fmt.Sprintf("%04o", randomMode(g.Rand)) }

func (g *stepMaker) xattr() string {
	return g.pick("user.u", "user.x", "trusted.t", "trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.foo")
}

// step draws the next one.
func (g *stepMaker) step() step {
	g.look()
	if len(g.open) > 0 && g.IntN(3) == 0 {
		if s, ok := g.onDescriptor(); ok {
			return s
		}
	}
	who := g.users[g.IntN(len(g.users))]
	n := g.IntN(100)
	var words []string
	switch {
	case n < 26:
		words = g.opening()
	case n < 58:
		words = g.naming()
	case n < 80:
		words = g.dressing()
	default:
		words = g.looking()
	}
	return step{who: who, words: words}
}

func (g *stepMaker) opening() []string {
	fd := "#" + g.fds[g.IntN(len(g.fds))]
	switch g.IntN(12) {
	case 0:
		return []string{"tmpfile", fd, g.some("dir"), g.mode()}
	case 1:
		return []string{"opendir", fd, g.some("dir")}
	case 2:
		return []string{"truncate", g.some("file"), g.offset()}
	case 3:
		return []string{"echo", g.some("file"), "x*" + g.count()}
	case 4:
		return []string{"append", g.some("file"), "y*" + g.count()}
	default:
		how := g.pick("r", "rw", "rw", "w", "rw,creat", "rw,creat,excl", "rw,trunc", "w,creat,trunc", "rw,append", "w,creat,append", "rw,creat,nofollow")
		return []string{"open", fd, g.some("file"), how + ",nonblock", g.mode()}
	}
}

func (g *stepMaker) naming() []string {
	kind := g.pick("", "file", "dir")
	switch g.IntN(20) {
	case 0, 1:
		return []string{"unlink", g.some("file")}
	case 2:
		return []string{"unlink", g.some("")}
	case 3:
		return []string{"rmdir", g.some("dir")}
	case 4:
		if len(g.paths[""]) > 60 {
			return []string{"rmtree", g.some("dir")}
		}
		return []string{"mkdir", g.fresh(), g.mode()}
	case 5, 6:
		return []string{"mkdir", g.fresh(), g.mode()}
	case 7, 8, 9, 10:
		return []string{"rename", g.some(kind), g.goal(kind)}
	case 11:
		return []string{"rename", g.some(kind), g.goal(""), "noreplace"}
	case 12, 13:
		return []string{"rename", g.some(kind), g.some(""), "exchange"}
	case 14, 15:
		return []string{"link", g.some("file"), g.fresh()}
	case 16:
		return []string{"link", g.some(""), g.goal("")}
	case 17:
		return []string{"symlink", g.pick("a", "b/c", "none", "a/b"), g.fresh()}
	default:
		return []string{"mknod", g.fresh(), g.pick("fifo", "socket", "file", "char"), g.mode(), "1", "3"}
	}
}

func (g *stepMaker) dressing() []string {
	p := g.some("")
	switch g.IntN(10) {
	case 0, 1:
		return []string{"chmod", p, g.mode()}
	case 2, 3:
		// Not -1 and -1: that takes the set-id bits away, but FUSE does not tell the server.
		if g.IntN(4) == 0 {
			return []string{"chown", p, "-1", g.pick("0", "1000", "2000")}
		}
		return []string{"chown", p, g.pick("0", "1000", "2000"), g.pick("-1", "0", "1000", "2000")}
	case 4, 5:
		return []string{"utimes", p, "omit", g.pick(fmt.Sprint(oldTime+100000+g.IntN(100000)), "now")}
	case 6, 7:
		return []string{"setxattr", p, g.xattr(), g.pick("", "y", "size:300", "size:3000"), g.pick("create", "replace", "create,replace")}
	case 8:
		return []string{"setcap", g.some("file"), fmt.Sprint(g.IntN(20))}
	default:
		return []string{"rmxattr", p, g.xattr()}
	}
}

func (g *stepMaker) looking() []string {
	switch g.IntN(8) {
	case 0:
		return []string{"lstypes", g.some("dir")}
	case 1:
		return []string{"readlink", g.some("other")}
	case 2:
		return []string{"lsxattr", g.some("")}
	case 3:
		return []string{"getxattr", g.some(""), g.xattr()}
	case 4:
		return []string{"access", g.some(""), g.pick("0004", "0002", "0001", "0006")}
	case 5:
		return []string{"same", g.some("file"), g.some("file")}
	default:
		return []string{"stat", g.some(""), "type", "mode", "uid", "gid", "rdev"}
	}
}

// onDescriptor draws a step on what is open.
func (g *stepMaker) onDescriptor() (step, bool) {
	name := g.fds[g.IntN(len(g.fds))]
	o, ok := g.open[name]
	if !ok {
		return step{}, false
	}
	fd := "#" + name
	words := []string{"fstat", fd, "type", "mode", "uid", "gid", "size", "nlink", "ino"}
	switch n := g.IntN(24); {
	case n == 0:
		words = []string{"close", fd}
	case n == 1:
		words = []string{"fchmod", fd, g.mode()}
	case n == 2:
		words = []string{"fchown", fd, "1000", g.pick("0", "1000", "2000")}
	case o.kind == "dir" && n < 12:
		words = []string{"seekdir", fd, "0"}
	case o.kind != "file" || n < 5:
	case n < 8:
		words = []string{"digest", fd, g.offset(), g.count()}
	case n < 12:
		words = []string{"scribble", fd, g.pick(g.offset(), "-1"), g.count(), g.seed()}
	case n == 12:
		words = []string{"mapscribble", fd, g.offset(), g.count(), g.seed()}
	case n < 15:
		words = []string{"ftruncate", fd, g.offset()}
	case n < 18:
		words = []string{"fallocate", fd, g.pick("extend", "keep", "punch,keep", "punch,keep", "zero", "zero,keep"), g.offset(), g.count()}
	case n < 20:
		other := g.fds[g.IntN(len(g.fds))]
		if g.open[other].kind != "file" || g.open[other].who != o.who {
			return step{}, false
		}
		words = []string{"copyrange", fd, g.offset(), "#" + other, g.offset(), g.count()}
	case n == 20:
		words = []string{"linkfd", fd, g.fresh()}
	case n == 21:
		words = []string{"fsync", fd}
	case n == 22:
		words = []string{"fsetxattr", fd, g.xattr(), g.pick("", "w", "size:200")}
	case n == 23:
		words = []string{"digest", fd, "0", "600000"}
	}
	return step{who: o.who, words: words}, true
}
