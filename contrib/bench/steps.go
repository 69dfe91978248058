package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// step is a shell script that is timed.
type step struct {
	Key    string // in values; "" is not timed
	Script string
	Cold   bool // caches are dropped before
	Times  int  // how often it runs, for the median; 0 is once
}

// steps runs scripts on m one after the other. In their environment are ROOT, where m is, LOWER, the lower directory, and
// SCRATCH, a directory beside m.
func (b *bench) steps(deadline time.Duration, m *mounted, list ...step) (values, error) {
	text, err := json.Marshal(list)
	if err != nil {
		return nil, err
	}
	return b.worker(deadline, m, "steps", string(text), m.root(), m.lower.dir, m.dir, b.base)
}

// timeSteps is the worker. Its arguments: the steps as JSON; ROOT, LOWER and SCRATCH; a directory of the scratch file system.
func timeSteps(args []string) (values, error) {
	var list []step
	if err := json.Unmarshal([]byte(args[0]), &list); err != nil {
		return nil, err
	}
	env := append(gitEnvironment(), "ROOT="+args[1], "LOWER="+args[2], "SCRATCH="+args[3], "LC_ALL=C")
	v := values{}
	for _, s := range list {
		var took []float64
		for range max(1, s.Times) {
			if s.Cold {
				if err := dropCaches(args[4]); err != nil {
					return nil, err
				}
			}
			cmd := exec.Command("sh", "-e", "-c", s.Script)
			cmd.Dir, cmd.Env = args[1], env
			cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
			start := time.Now()
			said, err := cmd.CombinedOutput()
			took = append(took, since(start))
			if err != nil {
				return nil, fmt.Errorf("%s: %w: %s", s.Script, err, last(string(said), 500))
			}
		}
		if s.Key != "" {
			v[s.Key] = middle(took)
		}
	}
	return v, nil
}

// last is the last n bytes of what was said.
func last(said string, n int) string { return strings.TrimSpace(said[max(0, len(said)-n):]) }

// lacks says which of the commands this machine does not have; "" is none.
func lacks(commands ...string) func() string {
	return func() string {
		for _, c := range commands {
			if _, err := exec.LookPath(c); err != nil {
				return err.Error()
			}
		}
		return ""
	}
}

// exists reports whether path does.
func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
