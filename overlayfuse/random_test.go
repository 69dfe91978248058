package overlayfuse_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/internal/fstool"
)

// EnvSeed repeats one random run: the number that a failure told.
const EnvSeed = "OVERLAYFUSE_SEED"

// The seeds are the same in every run, so that a run fails for what changed; EnvSeed tries others.
const (
	randomRuns  = 6
	randomSteps = 500
)

// TestRandomOperationsAsTheKernelDoes makes the same random operations on the kernel's overlayfs and on ours, over equal
// layers: every result is the same, and after every remount every name has the same type, attributes, links, xattrs
// and content.
func TestRandomOperationsAsTheKernelDoes(t *testing.T) {
	if !slices.Equal(systems(), []string{"kernel", "overlayfuse"}) {
		t.Logf("%s is set: there is nothing to compare", EnvSystems)
		return
	}
	first, runs := uint64(1), randomRuns
	if s := os.Getenv(EnvSeed); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		first, runs = n, 1
	}
	for i := range runs {
		seed := first + uint64(i)
		t.Run(fmt.Sprint(seed), func(t *testing.T) { randomRun(t, seed) })
	}
}

func randomRun(t *testing.T, seed uint64) {
	pair := make([]*script, 2)
	for i, system := range []string{"kernel", "overlayfuse"} {
		s, err := newPlainScript(t, system, fmt.Sprintf("random-%d", seed))
		if err != nil {
			t.Fatal(err)
		}
		pair[i] = s
	}
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 0))}
	var done []string
	both := func(who string, words ...string) string {
		var got [2]fstool.Reply
		for i, s := range pair {
			r, err := s.do(who, words)
			if err != nil || r.Bad != "" && !strings.HasPrefix(r.Bad, "no descriptor") {
				t.Fatalf("seed %d: %s: %v: %v %s\nafter %s", seed, s.system, words, err, r.Bad, history(done))
			}
			got[i] = r
		}
		if got[0] != got[1] {
			t.Fatalf("seed %d: %s %v\nkernel      %+v\noverlayfuse %+v\nafter %s", seed, who, words, got[0], got[1], history(done))
		}
		done = append(done, strings.TrimSpace(who+" "+strings.Join(words, " ")))
		return got[0].Out
	}
	for _, layer := range []string{"l2", "l1"} {
		both("", "dirs", layer)
		for range 25 {
			both("", g.layerStep(layer)...)
		}
	}
	again := func() {
		for _, s := range pair {
			if _, err := s.umount("m"); err != nil && len(s.mounts) > 0 {
				t.Fatal(err)
			}
			var flags []string
			if seed%2 == 0 {
				flags = []string{"-fo", "partial_above=0"}
			}
			m, err := s.parseMount(flags)
			if err == nil {
				err = s.mount(m)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		g.learn(both("", "shape", "m"))
		done = append(done, "REMOUNT")
	}
	again()
	both("", "chmod", "m", g.pick("0777", "1777", "2777"))
	for i := range randomSteps {
		both(g.who(), g.step()...)
		if i%10 == 9 {
			g.learn(both("", "shape", "m"))
		}
		if i%100 == 99 {
			again()
		}
	}
}

// newPlainScript is a script without a text: the caller makes the requests. Its end is the test's.
func newPlainScript(t *testing.T, system, name string) (*script, error) {
	dir := testDir(t, system+"-"+name)
	s := &script{system: system, dir: dir, agents: map[string]*fstool.Agent{}, lowers: map[string]string{}}
	t.Cleanup(func() {
		if err := s.finish(); err != nil {
			t.Error(err)
		}
	})
	if system == "overlayfuse" {
		return s, os.Link(serverBinary(), s.server())
	}
	return s, nil
}

// history is what a failure needs to be understood: the latest steps.
func history(done []string) string {
	return "\n  " + strings.Join(done[max(0, len(done)-250):], "\n  ")
}

// generator makes random requests over few names, so that they meet.
type generator struct {
	*rand.Rand
	known []string // names in the mount
}

func (g *generator) pick(words ...string) string { return words[g.IntN(len(words))] }

// learn takes the names that there are from a shape of the mount.
func (g *generator) learn(shape string) {
	g.known = g.known[:0]
	for line := range strings.Lines(shape) {
		name, _, _ := strings.Cut(line, " ")
		g.known = append(g.known, filepath.Join("m", name))
	}
}

// path is a name of depth 1 to 3 below root, mostly one that is there or could be made.
func (g *generator) path(root string) string {
	p := root
	if len(g.known) > 0 && g.IntN(4) > 0 {
		p = g.pick(g.known...)
		if p != root && g.IntN(3) > 0 {
			return p
		}
		return p + "/" + g.pick("a", "b", "c")
	}
	for range 1 + g.IntN(3) {
		p += "/" + g.pick("a", "b", "c")
	}
	return p
}

func (g *generator) mode() string {
	special := 0
	if g.IntN(3) == 0 {
		special = g.IntN(8) << 9
	}
	if special&0o2000 != 0 {
		special |= 0o010 // setgid without it is another thing: see the killpriv scripts
	}
	return fmt.Sprintf("%04o", special|0o600|g.IntN(0o200))
}

// who is root or, for a quarter of the requests, a user.
func (g *generator) who() string {
	if g.IntN(4) == 0 {
		return g.pick("1:1,2", "2:2")
	}
	return ""
}

func (g *generator) acl() string {
	perm := func() string { return g.pick("r--", "rw-", "rwx", "--x", "---") }
	return "u=rwx,u:1=" + perm() + ",g=" + perm() + ",g:2=" + perm() + ",m=" + g.pick("r-x", "rwx") + ",o=" + perm()
}

func (g *generator) text() string { return fmt.Sprintf("%s*%d", g.pick("x", "y", "z"), 1+g.IntN(6000)) }

func (g *generator) offset() string { return fmt.Sprint(g.IntN(9000)) }

// layerStep fills a lower layer.
func (g *generator) layerStep(layer string) []string {
	switch g.IntN(8) {
	case 0, 1:
		return []string{"mkdir", g.path(layer), g.pick("0755", "0777", "2777", "1777")}
	case 2:
		return []string{"symlink", g.pick("a", "b/c", "none"), g.path(layer)}
	case 3:
		return []string{"mknod", g.path(layer), g.pick("fifo", "socket"), g.mode()}
	case 4:
		if layer == "l1" { // it could link a whiteout
			return []string{"setcap", g.path(layer), "10"}
		}
		return []string{"link", g.path(layer), g.path(layer)}
	case 5:
		if layer == "l1" {
			// In the root, which is merged: the kernel lists a whiteout in a directory that has no other layer below.
			return []string{"mknod", layer + "/" + g.pick("a", "b", "c"), "char", "0600", "0", "0"}
		}
		return []string{"mkdir", g.path(layer), "0711"}
	default:
		return []string{"echo", g.path(layer), g.text()}
	}
}

// step is an operation in the mount, by its name or on one of the open descriptors. There is no fchmod: of a lower file that was
// removed while open it confuses the oracle, which copies the file up under its old name (then a later object of that name has
// link count 0, or a rename of it says ESTALE).
func (g *generator) step() []string {
	p, q, fd := g.path("m"), g.path("m"), g.pick("f1", "f1", "f2")
	steps := [][]string{
		{"echo", p, g.text()},
		{"append", p, g.text()},
		{"over", p, g.text()},
		{"truncate", p, g.offset()},
		{"unlink", p},
		{"unlink", p},
		{"rmdir", p},
		{"mkdir", p, g.mode()},
		{"mkdir", p, g.mode()},
		{"rename", p, q},
		{"rename", p, q},
		{"rename", p, q, "noreplace"},
		{"rename", p, q, "exchange"},
		{"link", p, p + g.pick("a", "b", "c")},
		{"link", p, q},
		{"symlink", g.pick("a", "../b", "none"), p},
		{"mknod", p, g.pick("fifo", "socket", "file"), g.mode()},
		{"chmod", p, g.mode()},
		{"chown", p, fmt.Sprint(g.IntN(3)), fmt.Sprint(g.IntN(3))},
		{"setxattr", p, g.pick("trusted.a", "trusted.overlay.opaque", "user.b"), g.pick("1", "y", "")},
		{"rmxattr", p, g.pick("trusted.a", "trusted.overlay.opaque", "user.b")},
		{"lsxattr", p},
		{"setacl", p, "access", g.acl()},
		{"setacl", p, "default", g.acl()},
		{"setcap", p, "10"},
		{"utimes", p, "100", "200"},
		{"access", p, g.pick("1", "2", "4")},
		{"ls", p},
		{"lstypes", p},
		{"readlink", p},
		{"stat", p, "type", "mode", "uid", "gid"},
		{"same", p, q},
		{"open", fd, p, g.pick("r", "rw", "rw,creat", "rw,trunc") + ",nofollow,nonblock"},
		{"open", fd, p, g.pick("r", "rw", "rw,creat") + ",nofollow,nonblock"},
		{"open", fd, p, g.pick("r", "rw", "rw,creat", "rw,creat,excl") + ",nofollow,nonblock"},
		{"tmpfile", fd, p},
		{"linkfd", fd, p},
		{"pread", fd, g.offset(), "2000"},
		{"pread", fd, g.offset(), "2000"},
		{"pwrite", fd, g.offset(), g.text()},
		{"pwrite", fd, g.offset(), g.text()},
		{"ftruncate", fd, g.offset()},
		{"fallocate", fd, g.pick("extend", "keep", "punch,keep", "zero", "zero,keep"), g.offset(), "3000"},
		{"fstat", fd, "type", "mode", "uid", "gid"},
		{"fsync", fd},
		{"copyrange", fd, g.offset(), g.pick("f1", "f2"), g.offset(), "3000"},
		{"close", fd},
	}
	return steps[g.IntN(len(steps))]
}
