package overlayfuse_test

import (
	"context"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/posixtest"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/internal/fstool"
)

// go-fuse's posixtest, each of its tests in a merged directory of a fresh mount and in a process of its own: the test process
// does not touch the mount, and the server is no part of it either.
const (
	// envPosix names the posixtest that the process is to run, envPosixDir the directory to run it in.
	envPosix    = "OVERLAYFUSE_POSIX"
	envPosixDir = "OVERLAYFUSE_POSIX_DIR"

	posixTimeout = 60 * time.Second
)

// kernelFails lists the posixtests that the kernel's overlayfs does not pass, with the cause. They must fail there.
var kernelFails = map[string]string{
	"FcntlFlockLocksFile": "it wants EAGAIN for a lock that the process itself holds, which fcntl(2) never says (go-fuse leaves it out of its own run)",
}

func TestPosix(t *testing.T) {
	for _, system := range systems() {
		t.Run(system, func(t *testing.T) {
			for _, name := range slices.Sorted(maps.Keys(posixtest.All)) {
				t.Run(name, func(t *testing.T) { posix(t, system, name) })
			}
		})
	}
}

func posix(t *testing.T, system, name string) {
	dir := testDir(t, "posix-"+system+"-"+name)
	for _, d := range []string{"l1", "l2"} {
		if err := os.MkdirAll(filepath.Join(dir, d, "merged"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s := &script{system: system, dir: dir, agents: map[string]*fstool.Agent{}, lowers: map[string]string{}}
	defer func() {
		if err := s.finish(); err != nil {
			t.Error(err)
		}
	}()
	if system == "overlayfuse" {
		if err := os.Link(serverBinary(), s.server()); err != nil {
			t.Fatal(err)
		}
	}
	m, err := s.parseMount(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.mount(m); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), posixTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, agentBinary(), "-test.v", "-test.timeout=50s")
	cmd.Env = append(os.Environ(), envPosix+"="+name, envPosixDir+"="+filepath.Join(dir, "m", "merged"))
	out, err := cmd.CombinedOutput()
	cause, fails := kernelFails[name]
	switch {
	case system == "kernel" && fails && err == nil:
		t.Errorf("the kernel's overlayfs passes: it is said to fail because %s", cause)
	case fails && err != nil:
		t.Logf("fails as it does on the kernel's overlayfs (%s)", cause)
	case err != nil:
		t.Errorf("%v\n%s", err, out)
	}
}

// posixMain runs the one posixtest that the environment names, and exits.
func posixMain() {
	name := os.Getenv(envPosix)
	run, ok := posixtest.All[name]
	if !ok {
		os.Exit(2)
	}
	all := func(string, string) (bool, error) { return true, nil }
	testing.Main(all, []testing.InternalTest{{Name: name, F: func(t *testing.T) { run(t, os.Getenv(envPosixDir)) }}}, nil, nil)
}
