package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// system is what a workload runs on.
type system string

const (
	kernel        system = "kernel" // its overlayfs, with metacopy=off
	fuseOverlayfs system = "fuse-overlayfs"
	ours          system = "ours"
	oursWriteback system = "ours-writeback" // with its option io=writeback
	oursNoStream  system = "ours-no-stream" // with its option stream=0
	plain         system = "plain"          // a copy of the lower directory
	mirror        system = "mirror"         // mirrorFS on a copy of the lower directory
)

// optionsOfSystem are the options that make a system of ours.
var optionsOfSystem = map[system]string{
	oursWriteback: "io=writeback",
	oursNoStream:  "stream=0",
	oursPartial:   "partial_above=0",
	oursWhole:     "partial_above=1099511627776",
}

var (
	overlays = []system{kernel, fuseOverlayfs, ours}
	all      = []system{kernel, fuseOverlayfs, ours, plain}
)

// mounted is a system at work on a fresh upper directory.
type mounted struct {
	system system
	lower  *lower
	dir    string    // holds upper, work, the mount point and the server's log
	server *exec.Cmd // nil: the kernel's, plain, or ended
	exited chan ending
}

// root is the directory that the workload works in.
func (m *mounted) root() string { return filepath.Join(m.dir, "mnt") }

// upper is where what was written is found; in a plain directory that is the directory itself.
func (m *mounted) upper() string {
	if m.system == plain {
		return m.root()
	}
	return filepath.Join(m.dir, "upper")
}

// mount puts y with an empty upper above low, and returns when it answers.
func (b *bench) mount(y system, low *lower, deadline time.Duration) (*mounted, error) {
	m := &mounted{system: y, lower: low, dir: filepath.Join(b.base, fmt.Sprintf("%d-%s", b.serial, y))}
	b.serial++
	b.mounts = append(b.mounts, m)
	for _, d := range []string{"upper", "work", "mnt"} {
		if err := os.MkdirAll(filepath.Join(m.dir, d), 0o755); err != nil {
			return nil, errors.Join(err, b.discard(m))
		}
	}
	var err error
	switch {
	case y == plain && low.shared:
		err = bindReadOnly(low.dir, m.root())
	case y == plain, y == mirror && !low.shared && !low.flat:
		err = b.child(deadline, nil, exec.Command("cp", "-a", low.dir+"/.", m.upper()))
	}
	if err == nil {
		err = b.attach(m)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mount %s: %w", y, err), b.discard(m))
	}
	return m, nil
}

// attach mounts m's layers on its mount point.
//
// Preconditions: m is not mounted.
func (b *bench) attach(m *mounted) error {
	work := filepath.Join(m.dir, "work")
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", strings.Join(m.lower.layers(), ":"), m.upper(), work)
	switch m.system {
	case plain:
		return nil
	case kernel:
		if len(m.lower.layers()) > 1 {
			return mountLayers(m.root(), m.lower.layers(), m.upper(), work)
		}
		return unix.Mount("overlay", m.root(), "overlay", 0, options+",metacopy=off")
	case mirror:
		of, above := m.upper(), ""
		switch {
		case m.lower.shared:
			of = m.lower.dir
		case m.lower.flat:
			above = m.lower.dir
		}
		return b.serve(m, exec.Command("/proc/self/exe", "-worker", "mirror", of, above, m.root()))
	case fuseOverlayfs:
		return b.serve(m, exec.Command("fuse-overlayfs", "-f", "-o", options, m.root()))
	default:
		for _, o := range []string{b.options, optionsOfSystem[m.system]} {
			if o != "" {
				options += "," + o
			}
		}
		return b.serve(m, exec.Command(b.overlayfuse, "-f", "-o", options, m.root()))
	}
}

// serve starts a FUSE server for m and returns when it answers.
func (b *bench) serve(m *mounted, server *exec.Cmd) error {
	if b.group != nil {
		b.group.enter(server)
	}
	log, err := os.Create(filepath.Join(m.dir, "log"))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the server has its own descriptor
	server.Stdout, server.Stderr = log, log
	server.SysProcAttr = childAttributes()
	if err := server.Start(); err != nil {
		return err
	}
	m.server, m.exited = server, make(chan ending, 1)
	go func() { m.exited <- ending{server.Wait()} }()
	for {
		points, err := mountPoints()
		if err != nil {
			return err
		}
		if slices.Contains(points, m.root()) {
			break
		}
		select {
		case e := <-m.exited:
			m.server = nil
			said, _ := os.ReadFile(log.Name()) // only to explain the error at hand
			return fmt.Errorf("%w: %s", errors.Join(e.err, unix.ENODEV), strings.TrimSpace(string(said)))
		case <-b.ctx.Done():
			return b.ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	_, err = b.worker(10*time.Second, m, "stat", m.root())
	return err
}

// detach unmounts m and waits for its server to end. It may be called at any time.
func (m *mounted) detach() error {
	var err error
	if m.system != plain || m.lower.shared {
		err = unix.Unmount(m.root(), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			err = nil // not mounted
		}
	}
	if m.server == nil {
		return err
	}
	select {
	case <-m.exited:
	case <-time.After(30 * time.Second): // it may have data to write back
		m.kill()
		<-m.exited
	}
	m.server = nil
	return err
}

// kill ends m's server at once. The kernel then fails what still waits for it.
func (m *mounted) kill() {
	if m.server != nil {
		_ = m.server.Process.Kill() // it may have ended already
	}
}

// discard unmounts m and removes its upper.
func (b *bench) discard(m *mounted) error {
	if err := m.detach(); err != nil {
		return fmt.Errorf("unmount %s: %w", m.root(), err)
	}
	points, err := mountPoints()
	if err != nil {
		return err
	}
	if slices.Contains(points, m.root()) {
		return fmt.Errorf("%s is still mounted: %w", m.root(), unix.EBUSY)
	}
	b.mounts = slices.DeleteFunc(b.mounts, func(o *mounted) bool { return o == m })
	return os.RemoveAll(m.dir)
}

// mountPoints lists what this process sees mounted.
func mountPoints() ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 {
			points = append(points, f[4]) // proc_pid_mountinfo(5); our paths need none of its escapes
		}
	}
	return points, nil
}

// bindReadOnly has dir at point, read-only.
func bindReadOnly(dir, point string) error {
	if err := unix.Mount(dir, point, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return unix.Mount("", point, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
}

// mountLayers mounts the kernel's overlayfs. Compare: fs/overlayfs/params.c:ovl_parse_layer() (Linux 6.18); mount(2)
// takes a page of options, which 128 paths exceed.
func mountLayers(point string, layers []string, upper, work string) error {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen: %w", err)
	}
	defer func() { _ = unix.Close(fs) }() // it is only the context
	set := func(key, value string) {
		if err == nil {
			if err = unix.FsconfigSetString(fs, key, value); err != nil {
				err = fmt.Errorf("%s=%s: %w", key, value, err)
			}
		}
	}
	for _, l := range layers {
		set("lowerdir+", l)
	}
	set("upperdir", upper)
	set("workdir", work)
	set("metacopy", "off")
	if err != nil {
		return err
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("fsmount: %w", err)
	}
	err = unix.MoveMount(mount, "", unix.AT_FDCWD, point, unix.MOVE_MOUNT_F_EMPTY_PATH)
	return errors.Join(err, unix.Close(mount))
}
