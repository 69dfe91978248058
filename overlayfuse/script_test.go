package overlayfuse_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse"
	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/internal/fstool"
)

// The scripts in testdata/script are the specification of the file system. Each runs on the kernel's overlayfs, the
// oracle, and then on overlayfuse, with one text. Commands (all else is testscript's own; [kernel] and [overlayfuse]
// are its conditions, and [io:MODE] for overlayfuse with this io=, see EnvIO):
//
//	fs OP ARG...            one system call of package fstool, which must succeed
//	fs OP ARG... => RESULT  ... must have this result; an errno's name is a result
//	fs OP ARG... !=> RESULT ... must succeed with another
//	fs OP ARG... -> VAR     ... sets $VAR to the result
//	as UID[:GID[,GROUP]] OP ...   the same from a process with these ids (gid as uid if not given)
//	p2 OP ...               the same from a second process of root
//	mount [FLAG...] [DIR]   see script_mount_test.go; default: layers l1 (topmost), l2, ..., upper u, work w, on m
//	umount [DIR], remount [DIR]    end the script's processes and unmount (and mount again the same way)
//	flush [DIR]             umount, and make the upper complete with "overlayfuse flush" (the kernel's always is)
//	intact LAYER...         the layer is as it was when it was first mounted (checked at the end of every script too)
const (
	opTimeout = 20 * time.Second

	// EnvSystems selects the systems that the scripts run on: "kernel", "overlayfuse", or both by a comma (default).
	EnvSystems = "OVERLAYFUSE_SYSTEMS"
	// EnvOptions are further options of every mount of overlayfuse, such as partial_above=0.
	EnvOptions = "OVERLAYFUSE_OPTIONS"
	// EnvIO is the io= of every mount of overlayfuse that says none itself: auto (default), cached or writeback.
	EnvIO = "OVERLAYFUSE_TEST_IO"
)

// testRoot is the directory of everything that tests mount: on a disk file system with trusted xattrs, and open to the
// unprivileged callers.
var testRoot string

// agentBinary is a copy of the test binary that every user may run.
func agentBinary() string { return filepath.Join(testRoot, "fstool") }

// serverBinary is the file system under test.
func serverBinary() string { return filepath.Join(testRoot, "overlayfuse") }

func TestMain(m *testing.M) {
	if os.Getenv(fstool.EnvAgent) != "" {
		fstool.Main()
		return
	}
	if os.Getenv(envPosix) != "" {
		posixMain()
	}
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// runTests gives the tests their directory and their binaries, and fails a run that leaves a mount or a server.
func runTests(m *testing.M) (code int, err error) {
	if testRoot, err = os.MkdirTemp("", "overlayfuse-test-"); err != nil {
		return 1, err
	}
	defer func() {
		if left := leftover(testRoot); left != nil {
			err = errors.Join(err, left)
		}
		err = errors.Join(err, os.RemoveAll(testRoot))
	}()
	if err := os.Chmod(testRoot, 0o755); err != nil {
		return 1, err
	}
	// Children sleep a second at their end otherwise, and nobody reads what the server in the background says.
	races := filepath.Join(testRoot, "race")
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0 log_path="+races); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, readRaces(races)) }()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return 1, err
	}
	if err := os.WriteFile(agentBinary(), self, 0o755); err != nil {
		return 1, err
	}
	if slices.Contains(systems(), "overlayfuse") {
		args := []string{"build", "-o", serverBinary()}
		if raceEnabled {
			args = append(args, "-race")
		}
		build := exec.Command("go", append(args, "../cmd/overlayfuse")...)
		if out, err := build.CombinedOutput(); err != nil {
			return 1, fmt.Errorf("build the server: %w\n%s", err, out)
		}
	}
	return m.Run(), nil
}

// readRaces is what the race detector wrote in any child.
func readRaces(prefix string) error {
	logs, err := filepath.Glob(prefix + ".*")
	for _, l := range logs {
		b, rerr := os.ReadFile(l)
		err = errors.Join(err, rerr, fmt.Errorf("data race in a child:\n%s", b))
	}
	return err
}

func systems() []string {
	if s := os.Getenv(EnvSystems); s != "" {
		return strings.Split(s, ",")
	}
	return []string{"kernel", "overlayfuse"}
}

// ioMode is the io= that mounts of overlayfuse get.
func ioMode() string {
	if mode := os.Getenv(EnvIO); mode != "" {
		return mode
	}
	return overlayfuse.IOAuto.String()
}

func TestScripts(t *testing.T) {
	for _, system := range systems() {
		t.Run(system, func(t *testing.T) {
			root := testDir(t, "scripts-"+system)
			testscript.Run(t, testscript.Params{
				Dir:         "testdata/script",
				WorkdirRoot: root,
				Setup:       func(env *testscript.Env) error { return newScript(env, system) },
				Condition: func(cond string) (bool, error) {
					if cond == "kernel" || cond == "overlayfuse" {
						return cond == system, nil
					}
					if mode, ok := strings.CutPrefix(cond, "io:"); ok {
						return system == "overlayfuse" && mode == ioMode(), nil
					}
					return false, fmt.Errorf("unknown condition %s", cond)
				},
				Cmds: map[string]func(*testscript.TestScript, bool, []string){
					"fs": cmdFS, "as": cmdAs, "p2": cmdP2, "mount": cmdMount, "umount": cmdUmount, "remount": cmdRemount, "flush": cmdFlush, "intact": cmdIntact,
				},
				RequireExplicitExec: true,
				RequireUniqueNames:  true,
			})
		})
	}
}

// testDir makes a directory of its own for a test, which every user may enter.
func testDir(t *testing.T, name string) string {
	dir, err := os.MkdirTemp(testRoot, name+"-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// script is the state of one running script.
type script struct {
	system string
	dir    string // $WORK
	agents map[string]*fstool.Agent
	mounts []mountSpec       // what is mounted now, oldest first
	lowers map[string]string // layer -> its description when it was first mounted as a lower
}

type scriptKey struct{}

func scriptOf(ts *testscript.TestScript) *script { return ts.Value(scriptKey{}).(*script) }

func newScript(env *testscript.Env, system string) error {
	s := &script{system: system, dir: env.WorkDir, agents: map[string]*fstool.Agent{}, lowers: map[string]string{}}
	env.Values[scriptKey{}] = s
	if err := os.Chmod(s.dir, 0o755); err != nil {
		return err
	}
	if system == "overlayfuse" {
		if err := os.Link(serverBinary(), s.server()); err != nil {
			return err
		}
	}
	t := env.T()
	env.Defer(func() {
		err := s.finish()
		if rerr := fstool.RemoveTree(s.dir); rerr != nil {
			err = errors.Join(err, rerr)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	return nil
}

// server is the name of the server's binary that only this script's servers run: they are known by it.
func (s *script) server() string { return filepath.Join(s.dir, ".overlayfuse") }

func cmdIntact(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: intact LAYER...")
	}
	for _, layer := range args {
		ts.Check(scriptOf(ts).checkLower(layer))
	}
}
