package overlayfuse_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/control"
	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/internal/fstool"
)

// mismatch is a difference of the twins, or something that must not happen to ours.
type mismatch struct {
	kind string // equal for what looks like the same fault
	text string
}

func (m *mismatch) Error() string { return m.kind + ": " + m.text }

func fault(kind string, err error) *mismatch {
	if err == nil {
		return nil
	}
	return &mismatch{kind, err.Error()}
}

// rig is an overlay (m) and its twin (r), a plain directory that was a copy of the merged lower layers. A server of its own
// serves the overlay.
type rig struct {
	*script
	client     *control.Client
	server     *exec.Cmd
	lowerNames []string // topmost first
	generation int
	mounted    bool
	flushed    bool // since the layers were mounted first
	partial    bool // no file is copied whole at its first write
	stray      bool // the kernel's overlayfs lists whiteouts of the lower layers

	inos   map[string]uint64 // handle of an object of the twin -> st_ino in the overlay
	hidden map[uint64]uint32 // by st_ino: how many links of a lower file have no name in the overlay
	fdInos map[string]string // by descriptor
}

// newRig makes random layers, see makeLayers, and mounts them.
func newRig(dir string, layers *rand.Rand, tops ...string) (*rig, error) {
	r := &rig{script: &script{system: "overlayfuse", dir: dir, agents: map[string]*fstool.Agent{}, lowers: map[string]string{}}, partial: layers.IntN(2) == 0}
	for _, d := range []string{"", "m", "r", "k"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return r, err
		}
	}
	if err := os.Link(serverBinary(), r.script.server()); err != nil {
		return r, err
	}
	if err := r.serve(); err != nil {
		return r, err
	}
	var err error
	if r.lowerNames, err = makeLayers(layers, dir, tops); err != nil {
		return r, err
	}
	for _, l := range r.lowerNames {
		if err := r.recordLower(l); err != nil {
			return r, err
		}
	}
	if err := r.kernelMount(); err != nil {
		return r, err
	}
	// A stray whiteout is listed, but can't be copied: the comparison tells what else went wrong.
	out, err := exec.Command("cp", "-a", filepath.Join(dir, "k")+"/.", filepath.Join(dir, "r")).CombinedOutput()
	if err != nil {
		if r.stray = strings.Contains(string(out), "No such file"); !r.stray {
			return r, fmt.Errorf("copy the merged layers: %w: %s", err, out)
		}
	}
	mis, err := r.checkKernel()
	if err == nil && mis != nil {
		err = mis
	}
	if err != nil {
		return r, err
	}
	if mis := r.nextUpper(); mis != nil {
		return r, mis
	}
	return r, nil
}

// serve starts the control server.
func (r *rig) serve() error {
	log, err := os.Create(filepath.Join(r.dir, ".log-server"))
	if err != nil {
		return err
	}
	socket := r.dir + ".s" // not in the directory: the server keeps its lock open
	r.server = exec.Command(r.script.server(), "serve", "--socket", socket)
	r.server.Stdout, r.server.Stderr = log, log
	if err := r.server.Start(); err != nil {
		return err
	}
	if err := log.Close(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
	defer cancel()
	for {
		if r.client, err = control.Dial(ctx, socket); err == nil || ctx.Err() != nil {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// close ends a rig in whatever state, and returns what is not as it has to be.
func (r *rig) close() error {
	errs := []error{r.stopAgents()}
	if r.mounted {
		errs = append(errs, r.unmount())
	}
	if r.mounted {
		errs = append(errs, r.abort())
	}
	if r.server != nil && r.server.Process != nil {
		done := make(chan error, 1)
		go func() { done <- r.server.Wait() }()
		_ = r.server.Process.Signal(unix.SIGTERM) // it may have ended
		select {
		case err := <-done:
			if err != nil {
				errs = append(errs, fmt.Errorf("server: %w", err))
			}
		case <-time.After(opTimeout):
			errs = append(errs, errors.New("the server does not stop"), r.server.Process.Kill(), <-done)
		}
		log, err := os.ReadFile(filepath.Join(r.dir, ".log-server"))
		errs = append(errs, err)
		if strings.Contains(string(log), "panic") || strings.Contains(string(log), "goroutine ") {
			errs = append(errs, fmt.Errorf("the server's log:\n%s", log))
		}
	}
	if _, mounted := r.isMounted("k"); mounted {
		errs = append(errs, unix.Unmount(filepath.Join(r.dir, "k"), unix.MNT_DETACH))
	}
	for l := range r.lowers {
		errs = append(errs, r.checkLower(l))
	}
	errs = append(errs, leftover(r.dir))
	if r.generation > 0 {
		errs = append(errs, os.Remove(r.dir+".s.lock"))
	}
	return errors.Join(append(errs, fstool.RemoveTree(r.dir))...)
}

// isMounted looks a mount point up in the mount table.
func (r *rig) isMounted(name string) (string, bool) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", false
	}
	for _, line := range strings.Split(string(table), "\n") {
		if f := strings.Fields(line); len(f) > 4 && f[4] == filepath.Join(r.dir, name) {
			return line, true
		}
	}
	return "", false
}

func (r *rig) spec() control.Spec {
	s := control.Spec{ID: "twin", MountPoint: filepath.Join(r.dir, "m"), Upper: filepath.Join(r.dir, r.upper()), Work: filepath.Join(r.dir, fmt.Sprint("w", r.generation))}
	s.Options = []string{"io=" + ioMode()}
	if r.partial {
		s.Options = append(s.Options, "partial_above=0", "complete_hot=1s", "settle_after=2s", "drop_after=1s")
	}
	for _, l := range r.lowerNames {
		s.Lower = append(s.Lower, filepath.Join(r.dir, l))
	}
	return s
}

func (r *rig) upper() string { return fmt.Sprint("u", r.generation) }

// withServer makes a request of the server, with a deadline; a server that does not answer is ended with its mounts.
func (r *rig) withServer(what string, call func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
	defer cancel()
	err := call(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = errors.Join(err, r.abort())
		r.mounted = false
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func (r *rig) mount() error {
	err := r.withServer("mount", func(ctx context.Context) error { return r.client.Mount(ctx, r.spec()) })
	if err == nil {
		r.mounted = true
		r.mounts = []mountSpec{{target: "m"}}
	}
	return err
}

// unmount wants nobody in the way, and the server to hold no file.
func (r *rig) unmount() error {
	if err := errors.Join(r.stopAgents(), r.checkServerFiles()); err != nil {
		return err
	}
	err := r.withServer("unmount", func(ctx context.Context) error { return r.client.Unmount(ctx, "twin", false) })
	if err == nil {
		r.mounted, r.mounts = false, nil
	}
	return err
}

func (r *rig) flush() error {
	return r.withServer("flush", func(ctx context.Context) error {
		_, err := r.client.Flush(ctx, r.spec())
		return err
	})
}

// kernelMount mounts the lower layers with the kernel's overlayfs on k, read-only.
func (r *rig) kernelMount() error {
	_, err := r.must("mount", "overlay", "overlay", "k", "ro", "lowerdir="+strings.Join(r.lowerNames, ":")+",redirect_dir=follow,metacopy=off")
	return err
}

// checkKernel compares the kernel's view with the twin, and unmounts it.
func (r *rig) checkKernel() (*mismatch, error) {
	twin, err := r.snapshot("r", true)
	if err != nil {
		return nil, err
	}
	kernel, err := r.snapshot("k", false)
	if err != nil {
		return nil, err
	}
	if err := r.stopAgents(); err != nil {
		return nil, err
	}
	if _, err := r.must("umount", "k"); err != nil {
		return nil, err
	}
	if r.stray {
		kernel = withoutStray(kernel)
	}
	return compareTrees("kernel", twin, kernel, kernelView), nil
}

// withoutStray leaves out what is listed and does not exist.
func withoutStray(tree []fstool.Object) []fstool.Object {
	return slices.DeleteFunc(tree, func(o fstool.Object) bool { return o.Err == "stat: no such file or directory" })
}

// nextUpper mounts the lowers with a new upper, whose root is as the twin's.
func (r *rig) nextUpper() *mismatch {
	r.generation++
	upper, twin := filepath.Join(r.dir, r.upper()), filepath.Join(r.dir, "r")
	for _, dir := range []string{upper, r.spec().Work} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fault("setup", err)
		}
	}
	err := errors.Join(copyRoot(twin, upper), r.mount())
	if err != nil {
		return fault("setup", err)
	}
	r.flushed = false
	r.inos, r.hidden, r.fdInos = map[string]uint64{}, nil, map[string]string{}
	return r.check()
}

// copyRoot gives a directory the attributes of another.
func copyRoot(from, to string) error {
	var st unix.Stat_t
	if err := unix.Stat(from, &st); err != nil {
		return err
	}
	names := make([]byte, 4096)
	n, err := unix.Listxattr(from, names)
	if err != nil {
		return err
	}
	for _, name := range strings.Split(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		value := make([]byte, 4096)
		if name == "" {
			continue
		}
		n, err := unix.Getxattr(from, name, value)
		if err == nil {
			err = unix.Setxattr(to, name, value[:n], 0)
		}
		if err != nil {
			return err
		}
	}
	return errors.Join(unix.Chown(to, int(st.Uid), int(st.Gid)), unix.Chmod(to, st.Mode&0o7777),
		unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{st.Atim, st.Mtim}, 0))
}

// run makes one step. The reply is the twin's.
func (r *rig) run(s step) (fstool.Reply, *mismatch) {
	var none fstool.Reply
	switch s.words[0] {
	case actCheck:
		return none, r.check()
	case actDrop:
		_, err := r.must("mount", "", "", "m", "remount", "")
		return none, fault("drop", err)
	case actFlush:
		r.flushed = true
		return none, fault("flush", r.flush())
	case actRemount:
		if mis := r.check(); mis != nil {
			return none, mis
		}
		if err := errors.Join(r.unmount(), r.mountAgain()); err != nil {
			return none, fault("remount", err)
		}
		return none, r.check().in("after remount ")
	case actCommit:
		return none, r.commit()
	}
	if s.words[0] == "linkfd" && r.outOfSight(s.who, s.words[1]) {
		return none, nil
	}
	twin, err := r.do(s.who, s.on("r"))
	if err != nil {
		return none, fault("twin", err)
	}
	if twin.Bad != "" && !strings.HasPrefix(twin.Bad, "no descriptor") {
		return none, fault("request", fmt.Errorf("%v: %s", s, twin.Bad))
	}
	ours, err := r.do(s.who, s.on("m"))
	if err != nil {
		return none, fault("hang", fmt.Errorf("%v: %w", s, err))
	}
	return twin, r.compareReplies(s, twin, ours)
}

// outOfSight tells that a removed file has links left, but in the overlay alone, where they are out of sight: such a file can get a name
// again, as on the kernel's overlayfs.
func (r *rig) outOfSight(who, fd string) bool {
	stat := step{who, []string{"fstat", fd, "nlink"}}
	twin, err := r.do(who, stat.on("r"))
	if err != nil || twin.Out != "0" {
		return false
	}
	ours, err := r.do(who, stat.on("m"))
	return err == nil && ours.Out != "0"
}

func (r *rig) mountAgain() error {
	if r.mounted {
		return nil
	}
	r.fdInos = map[string]string{}
	return r.mount()
}

// commit does what a snapshot's commit does, and looks at the result with the kernel's overlayfs.
func (r *rig) commit() *mismatch {
	if mis := r.check(); mis != nil {
		return mis
	}
	if err := r.unmount(); err != nil {
		return fault("commit", err)
	}
	if err := r.flush(); err != nil {
		return fault("commit", err)
	}
	r.lowerNames = append([]string{r.upper()}, r.lowerNames...)
	if err := r.recordLower(r.upper()); err != nil {
		return fault("commit", err)
	}
	if err := r.kernelMount(); err != nil {
		return fault("commit", err)
	}
	mis, err := r.checkKernel()
	if err != nil {
		return fault("commit", err)
	}
	if mis != nil {
		return mis
	}
	return r.nextUpper().in("after commit ")
}

// on is the request for one of the trees.
func (s step) on(tree string) []string {
	words := slices.Clone(s.words)
	for i, w := range words {
		switch {
		case strings.HasPrefix(w, "%"):
			words[i] = tree + w[1:]
		case strings.HasPrefix(w, "#"):
			words[i] = tree + w[1:]
		}
	}
	return words
}

func (m *mismatch) in(where string) *mismatch {
	if m == nil {
		return nil
	}
	return &mismatch{where + m.kind, m.text}
}
