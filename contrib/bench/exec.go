package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Programs of the lower layer.

const execs = 500

func (b *bench) execLower() (*lower, error) {
	return b.lowerOnce("exec", func(dir string) error {
		return b.copyPrograms(dir, "/bin/true", "/bin/bash")
	})
}

func (b *bench) programs() []experiment {
	x := experiment{
		name:     "exec",
		systems:  all,
		rounds:   b.everyRound,
		deadline: b.within(2 * time.Minute),
		lower:    b.readOnly(b.execLower),
		rows: []row{
			{key: "true", title: fmt.Sprintf("%d × fork, exec and exit of true", execs), must: []bound{against(kernel, 1.05)}},
			{key: "bash", title: fmt.Sprintf("%d × of bash -c :", execs), must: []bound{against(kernel, 1.05)}},
			{key: "cold", title: "the first bash, cold"},
		},
	}
	x.measure = func(m *mounted, _ int) (values, error) {
		return b.worker(x.deadline, m, "exec", m.root(), b.base)
	}
	return []experiment{x}
}

// timeExec runs programs of a directory. Its arguments: the directory, one of the scratch file system.
func timeExec(args []string) (values, error) {
	program := func(n int, argv ...string) (float64, error) {
		path := filepath.Join(args[0], argv[0])
		start := time.Now()
		for range n {
			if err := run(path, argv); err != nil {
				return 0, err
			}
		}
		return since(start), nil
	}
	v := values{}
	if err := dropCaches(args[1]); err != nil {
		return nil, err
	}
	var err error
	for _, c := range []struct {
		key  string
		n    int
		argv []string
	}{
		{"cold", 1, []string{"bash", "-c", ":"}},
		{"bash", execs, []string{"bash", "-c", ":"}},
		{"", 1, []string{"true"}},
		{"true", execs, []string{"true"}},
	} {
		if v[c.key], err = program(c.n, c.argv...); err != nil {
			return nil, err
		}
	}
	delete(v, "")
	return v, nil
}

// run executes a program and waits for its success.
func run(path string, argv []string) error {
	pid, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{})
	if err != nil {
		return named("exec", path, err)
	}
	var status unix.WaitStatus
	for {
		_, err = unix.Wait4(pid, &status, 0, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err == nil && status.ExitStatus() != 0 {
		err = fmt.Errorf("exit status %d: %w", status.ExitStatus(), unix.ECHILD)
	}
	return named("wait for", path, err)
}
