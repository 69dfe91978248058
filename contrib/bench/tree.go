package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Reading a real tree: Go's own, of some 15,000 files.

// goTree holds Go's tree in go/, as go env GOROOT has it, in a git repository without history.
func (b *bench) goTree() (*lower, error) {
	return b.lowerOnce("go", func(dir string) error {
		root, err := exec.Command("go", "env", "GOROOT").Output()
		if err != nil {
			return fmt.Errorf("go env GOROOT: %w", err)
		}
		script := `set -e
			cp -a "$1/." "$2/go"
			rm -rf "$2/go/.git"
			cd "$2/go"
			git init -q
			git add -A -f
			git -c user.name=bench -c user.email=bench@localhost commit -q -m tree
			git repack -adq --window=0 --depth=0
			git status >/dev/null`
		cp := exec.Command("sh", "-c", script, "sh", strings.TrimSpace(string(root)), dir)
		cp.Env = gitEnvironment()
		return b.child(10*time.Minute, nil, cp)
	})
}

// readOnly is the lower layer that of returns, for experiments that change nothing: plain is that very directory.
func (b *bench) readOnly(of func() (*lower, error)) func() (*lower, error) {
	return func() (*lower, error) {
		l, err := of()
		if err != nil {
			return nil, err
		}
		shared := *l
		shared.shared = true
		return &shared, nil
	}
}

func (b *bench) trees() []experiment {
	var list []experiment
	for _, c := range []struct {
		pass, title string
		cold, warm  float64 // what the kernel's may be exceeded by; 0 is nothing said
	}{
		{"walk", "readdir of each directory, stat of each object", 1.5, 1.1},
		{"stat", "stat of each object by its path", 0, 1.1},
		{"missing", "stat of a missing name beside each file", 0, 1.1},
		{"readdir", "open, readdir, close of each directory", 0, 1.1},
		{"read", "open, read, close of each file", 1.3, 2},
	} {
		x := experiment{
			name:     "tree-" + c.pass,
			systems:  all,
			deadline: b.within(3 * time.Minute),
			lower:    b.readOnly(b.goTree),
			rows: []row{
				{key: "cold", title: "Go's tree, cold: " + c.title, must: ifSaid(kernel, c.cold)},
				{key: "warm", title: "the same, warm", must: ifSaid(kernel, c.warm)},
			},
		}
		x.measure = func(m *mounted, _ int) (values, error) {
			return b.worker(x.deadline, m, "tree", c.pass, filepath.Join(m.root(), "go"), filepath.Join(m.lower.dir, "go"), b.base)
		}
		list = append(list, x)
	}
	return list
}

func (b *bench) everyRound(system) int { return b.rounds }

// ifSaid is the bound against y, or none for 0.
func ifSaid(y system, limit float64) []bound {
	if limit == 0 {
		return nil
	}
	return []bound{against(y, limit)}
}

// gitEnvironment is this process's with a git that reads no configuration but the repository's, and leaves nothing running.
func gitEnvironment() []string {
	return append(unix.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_COUNT=3",
		"GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*", "GIT_CONFIG_KEY_1=gc.auto", "GIT_CONFIG_VALUE_1=0",
		"GIT_CONFIG_KEY_2=maintenance.auto", "GIT_CONFIG_VALUE_2=false")
}
