package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Containers from start to exit, with nerdctl on a private containerd of contrib/stack.

const (
	containerImage  = "localhost/demo:16"
	containersTimed = 5 // in a round
)

// stack is a containerd with one snapshotter.
type stack struct {
	system  system
	dir     string
	scripts string   // contrib/stack
	env     []string // that nerdctl needs
}

// snapshotterOf is the name of y's snapshotter in contrib/stack.
var snapshotterOf = map[system]string{kernel: "overlayfs", fuseOverlayfs: "fuse-overlayfs", ours: "overlayfuse", oursWriteback: "overlayfuse"}

// stackScripts is contrib/stack, beside the binary of ours, or below the working directory.
func (b *bench) stackScripts() string {
	for _, root := range []string{".", filepath.Dir(filepath.Dir(b.overlayfuse))} {
		if dir, err := filepath.Abs(filepath.Join(root, "contrib/stack")); err == nil && exists(filepath.Join(dir, "stack.sh")) {
			return dir
		}
	}
	return ""
}

// stackLacks says why no containers can be started; "" is that they can.
func (b *bench) stackLacks() string {
	dir := b.stackScripts()
	if dir == "" {
		return "contrib/stack is not here"
	}
	script := `. "$1/env.sh" && for c in containerd ctr runc nerdctl overlayfuse containerd-overlayfuse-grpc \
		containerd-fuse-overlayfs-grpc debootstrap; do
		command -v $c >/dev/null || { echo "$c is not installed: contrib/stack/install.sh run bench"; exit; }; done`
	said, err := exec.Command("bash", "-c", script, "bash", dir).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("contrib/stack: %v: %s", err, last(string(said), 300))
	}
	return strings.TrimSpace(string(said))
}

func (b *bench) containers() []experiment {
	x := experiment{
		name:     "container",
		systems:  overlays,
		rounds:   b.everyRound,
		deadline: b.within(5 * time.Minute),
		needs:    b.stackLacks,
		finish: func() error {
			var errs []error
			for _, k := range b.stacks {
				errs = append(errs, b.down(k))
			}
			return errors.Join(errs...)
		},
		rows: []row{
			{
				key: "run", title: fmt.Sprintf("nerdctl run --rm of true, start to exit, median of %d", containersTimed),
				must: []bound{against(kernel, 1.1)},
			},
			{key: "write", title: "nerdctl run --rm of a shell that writes 100 files, start to exit"},
			{key: "daemon", title: "resident memory of the snapshotter's daemon after these (the kernel's is in containerd)", unit: bytesUnit},
		},
	}
	x.run = func(y system, _ int) (values, error) {
		k, err := b.up(y)
		if err != nil {
			return nil, err
		}
		v := values{}
		for key, command := range map[string]string{"run": "true", "write": "mkdir /n; for i in $(seq 100); do echo $i >/n/$i; done"} {
			var took []float64
			for range containersTimed {
				cmd := k.command("nerdctl", "run", "--rm", "--net", "none", containerImage, "bash", "-c", command)
				if key == "run" {
					cmd = k.command("nerdctl", "run", "--rm", "--net", "none", containerImage, "true")
				}
				t, err := b.timed(time.Minute, nil, cmd)
				if err != nil {
					return nil, err
				}
				took = append(took, t)
			}
			v[key] = middle(took)
		}
		if y == kernel {
			return v, nil
		}
		pid, err := os.ReadFile(filepath.Join(k.dir, "daemon.pid"))
		if err != nil {
			return nil, err
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(pid)))
		if err != nil {
			return nil, err
		}
		v["daemon"], err = inMemory(n, "VmRSS")
		return v, err
	}
	return []experiment{x}
}

// up returns the stack of y, started and with the image loaded at the first call.
func (b *bench) up(y system) (*stack, error) {
	if k := b.stacks[y]; k != nil {
		return k, nil
	}
	k := &stack{system: y, dir: filepath.Join(b.base, "s-"+string(y)), scripts: b.stackScripts()}
	k.env = append(os.Environ(), "SNAPSHOTTER="+snapshotterOf[y])
	if y == oursWriteback {
		k.env = append(k.env, "OVERLAYFUSE_IO=writeback")
	}
	b.stacks[y] = k
	image, err := b.output(10*time.Minute, k.script("image.sh", "debian", "16"))
	if err != nil {
		return nil, err
	}
	if err := b.child(2*time.Minute, nil, k.script("stack.sh", "up", k.dir)); err != nil {
		return nil, err
	}
	env, err := b.output(time.Minute, k.script("stack.sh", "env", k.dir))
	if err != nil {
		return nil, err
	}
	k.env = append(k.env, strings.Split(strings.TrimSpace(env), "\n")...)
	load := k.command("nerdctl", "load", "--quiet", "-i", strings.TrimSpace(image))
	return k, b.child(5*time.Minute, nil, load)
}

// down ends the stack and everything that it started. It runs to its end even if the run was interrupted.
func (b *bench) down(k *stack) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	script := k.script("stack.sh", "down", k.dir)
	cmd := exec.CommandContext(ctx, script.Path, script.Args[1:]...)
	cmd.Env = script.Env
	cmd.SysProcAttr = childAttributes()
	said, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("end the stack in %s: %w: %s", k.dir, err, last(string(said), 300))
	}
	delete(b.stacks, k.system)
	return nil
}

func (k *stack) script(name string, args ...string) *exec.Cmd {
	return k.command(filepath.Join(k.scripts, name), args...)
}

// command is a command in k's environment, found in k's PATH.
func (k *stack) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("/usr/bin/env", append([]string{name}, args...)...)
	cmd.Env = k.env
	return cmd
}

// output runs cmd to its end and returns what it wrote.
func (b *bench) output(deadline time.Duration, cmd *exec.Cmd) (string, error) {
	// A file and not a pipe: daemons that cmd leaves running may keep it open.
	out, err := os.CreateTemp(b.base, "output-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.Remove(out.Name()) }() // it goes with the scratch directory otherwise
	cmd.Stdout = out
	err = b.child(deadline, nil, cmd)
	text, err2 := os.ReadFile(out.Name())
	if err = errors.Join(err, err2, out.Close()); err != nil {
		return "", err
	}
	if len(bytes.TrimSpace(text)) == 0 {
		return "", fmt.Errorf("%s wrote nothing: %w", strings.Join(cmd.Args, " "), unix.ENODATA)
	}
	return string(text), nil
}
