package overlayfuse_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/internal/fstool"
)

// kernelDefaults make the kernel's overlayfs as able as it gets: directories of a lower layer can be renamed, hard links
// stay links. -ko replaces them.
const kernelDefaults = "redirect_dir=on,index=on,metacopy=off"

// mountSpec is one mount command:
//
//	mount [-k] [-l A:B] [-u UPPER] [-w WORK] [-ro] [-o OPTS] [-ko OPTS] [-fo OPTS] [DIR]
//
// -k: the kernel's overlayfs, whatever the script runs on; -ro: no upper; -o: options of both systems; -ko, -fo: of the
// kernel (instead of kernelDefaults) and of overlayfuse only. A ! before it: it must fail.
type mountSpec struct {
	kernel                bool
	lowers                []string // topmost first
	upper, work           string
	both, forKernel, fuse string
	target                string
}

func (s *script) parseMount(args []string) (mountSpec, error) {
	m := mountSpec{kernel: s.system == "kernel", upper: "u", work: "w", forKernel: kernelDefaults, target: "m"}
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		flag := args[0]
		args = args[1:]
		switch flag {
		case "-k":
			m.kernel = true
			continue
		case "-ro":
			m.upper, m.work = "", ""
			continue
		}
		if len(args) == 0 {
			return m, fmt.Errorf("mount: no value for %s", flag)
		}
		value := args[0]
		args = args[1:]
		switch flag {
		case "-l":
			m.lowers = strings.Split(value, ":")
		case "-u":
			m.upper = value
		case "-w":
			m.work = value
		case "-o":
			m.both = value
		case "-ko":
			m.forKernel = value
		case "-fo":
			m.fuse = value
		default:
			return m, fmt.Errorf("mount: unknown flag %s", flag)
		}
	}
	if len(args) > 0 {
		m.target = args[0]
	}
	if m.lowers == nil {
		for i := 1; ; i++ {
			name := fmt.Sprintf("l%d", i)
			if _, err := os.Lstat(filepath.Join(s.dir, name)); err != nil {
				break
			}
			m.lowers = append(m.lowers, name)
		}
	}
	if len(m.lowers) == 0 {
		return m, errors.New("mount: no lower layer")
	}
	return m, nil
}

func cmdMount(ts *testscript.TestScript, neg bool, args []string) {
	s := scriptOf(ts)
	m, err := s.parseMount(args)
	ts.Check(err)
	err = s.mount(m)
	if neg {
		if err == nil {
			ts.Fatalf("mount succeeded")
		}
		_, werr := fmt.Fprintln(ts.Stderr(), err)
		ts.Check(werr)
		return
	}
	ts.Check(err)
}

func cmdUmount(ts *testscript.TestScript, neg bool, args []string) {
	m := unmountArg(ts, neg, args)
	ts.Check(m)
}

func unmountArg(ts *testscript.TestScript, neg bool, args []string) error {
	if neg || len(args) > 1 {
		ts.Fatalf("usage: umount [DIR]")
	}
	target := "m"
	if len(args) == 1 {
		target = args[0]
	}
	_, err := scriptOf(ts).umount(target)
	return err
}

func cmdRemount(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 1 {
		ts.Fatalf("usage: remount [DIR]")
	}
	target := "m"
	if len(args) == 1 {
		target = args[0]
	}
	s := scriptOf(ts)
	m, err := s.umount(target)
	ts.Check(err)
	ts.Check(s.mount(m))
}

func (s *script) mount(m mountSpec) error {
	dirs := []string{m.target}
	if m.upper != "" {
		dirs = append(dirs, m.upper, m.work)
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(filepath.Join(s.dir, dir), 0o755); err != nil {
			return err
		}
	}
	for _, layer := range m.lowers {
		if err := s.recordLower(layer); err != nil {
			return err
		}
	}
	mount := s.mountOurs
	if m.kernel {
		mount = s.mountKernel
	}
	if err := mount(m); err != nil {
		return err
	}
	s.mounts = append(s.mounts, m)
	return nil
}

// genericOptions are mount(2) flags, not data.
var genericOptions = map[string]bool{
	"ro": true, "nosuid": true, "nodev": true, "noexec": true, "noatime": true, "nodiratime": true, "relatime": true, "strictatime": true,
}

func (s *script) mountKernel(m mountSpec) error {
	lowers := m.lowers
	if m.upper == "" && len(lowers) == 1 { // the kernel wants two: an empty one below changes nothing
		empty := filepath.Join(s.dir, ".empty")
		if err := os.MkdirAll(empty, 0o755); err != nil {
			return err
		}
		lowers = append(lowers[:1:1], ".empty")
	}
	data := []string{"lowerdir=" + strings.Join(lowers, ":")}
	if m.upper != "" {
		data = append(data, "upperdir="+m.upper, "workdir="+m.work)
	}
	var flags []string
	for _, o := range strings.Split(m.both, ",") {
		switch {
		case genericOptions[o]:
			flags = append(flags, o)
		case o != "":
			data = append(data, o)
		}
	}
	if m.forKernel != "" {
		data = append(data, m.forKernel)
	}
	// EBUSY: a mount namespace that somebody made meanwhile (a container that starts) keeps the unmounted overlay alive, with its
	// upper, until it has let go of what it inherited.
	for end := time.Now().Add(busyTime); ; time.Sleep(20 * time.Millisecond) {
		r, err := s.do("", []string{"mount", "overlay", "overlay", m.target, strings.Join(flags, ","), strings.Join(data, ",")})
		if err != nil || r == (fstool.Reply{}) {
			return err
		}
		if r.Errno != "EBUSY" || time.Now().After(end) {
			return fmt.Errorf("mount the kernel's overlayfs on %s: %s%s", m.target, r.Errno, r.Bad)
		}
	}
}

// busyTime is how long another mount namespace may keep what was unmounted.
const busyTime = 10 * time.Second

func cmdFlush(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 1 {
		ts.Fatalf("usage: flush [DIR]")
	}
	s, target := scriptOf(ts), "m"
	if len(args) == 1 {
		target = args[0]
	}
	m, err := s.umount(target)
	ts.Check(err)
	if m.kernel {
		return
	}
	if out, err := s.flush(m); err != nil {
		ts.Fatalf("flush: %v: %s", err, out)
	}
}

// flush runs "overlayfuse flush" on the directories of a mount of ours.
func (s *script) flush(m mountSpec) (out string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
	defer cancel()
	text, err := exec.CommandContext(ctx, serverBinary(), "flush", "-o", s.optionsOf(m)).CombinedOutput()
	return string(text), err
}

func (s *script) mountOurs(m mountSpec) error {
	return serve(s.server(), s.optionsOf(m), filepath.Join(s.dir, m.target))
}

// optionsOf is the text of -o for a mount of ours.
func (s *script) optionsOf(m mountSpec) string {
	lowers := make([]string, len(m.lowers))
	for i, l := range m.lowers {
		lowers[i] = filepath.Join(s.dir, l)
	}
	options := []string{"lowerdir=" + strings.Join(lowers, ":")}
	if m.upper != "" {
		options = append(options, "upperdir="+filepath.Join(s.dir, m.upper), "workdir="+filepath.Join(s.dir, m.work))
	}
	for _, o := range []string{"io=" + ioMode(), os.Getenv(EnvOptions), m.both, m.fuse} {
		if o != "" {
			options = append(options, o)
		}
	}
	return strings.Join(options, ",")
}

// serve starts a server in the background: it returns when the mount is up.
func serve(binary, options, target string) error {
	ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
	defer cancel()
	log, err := os.CreateTemp(filepath.Dir(target), ".log-") // not a pipe: the server in the background would hold it open
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, binary, "-o", options, target)
	cmd.Stdout, cmd.Stderr = log, log
	err = cmd.Run()
	out, rerr := os.ReadFile(log.Name())
	err = errors.Join(err, rerr, log.Close())
	if err != nil {
		return fmt.Errorf("overlayfuse: %w: %s", err, out)
	}
	return nil
}

// umount ends the script's processes and unmounts without any force: nothing may be in the way.
func (s *script) umount(target string) (mountSpec, error) {
	for i := len(s.mounts) - 1; i >= 0; i-- {
		m := s.mounts[i]
		if m.target != target {
			continue
		}
		if err := s.stopAgents(); err != nil {
			return m, err
		}
		if !m.kernel {
			if err := s.checkServerFiles(); err != nil {
				return m, err
			}
		}
		if _, err := s.must("umount", target); err != nil {
			return m, err
		}
		s.mounts = append(s.mounts[:i:i], s.mounts[i+1:]...)
		if !m.kernel && !s.oursMounted() {
			return m, waitServers(s.server())
		}
		return m, nil
	}
	return mountSpec{}, fmt.Errorf("%s is not mounted", target)
}

func (s *script) oursMounted() bool {
	for _, m := range s.mounts {
		if !m.kernel {
			return true
		}
	}
	return false
}
