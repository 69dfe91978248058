package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMountReturnsOnceTheMountIsUp(t *testing.T) {
	for name, c := range map[string]struct {
		name    string
		args    func(dir string) []string
		want    string // start of the mount's line, DIR for the directory
		options []string
		not     []string
	}{
		"writable": {"overlayfuse", func(d string) []string { return []string{"-o", writable(d), d + "/m"} },
			"overlayfuse DIR/m fuse.overlayfuse rw,", nil, []string{"nosuid", "nodev", "noexec"}},
		"no upper": {"overlayfuse", func(d string) []string { return []string{"-olowerdir=" + d + "/l", d + "/m"} },
			"overlayfuse DIR/m fuse.overlayfuse ro,", []string{"relatime"}, []string{"nosuid"}},
		"options of mount(8)": {"overlayfuse", func(d string) []string {
			return []string{"-o", writable(d), "-o", "nosuid,nodev,noexec,noatime,fsname=a b", "src", d + "/m"}
		}, `a\040b DIR/m fuse.overlayfuse rw,`, []string{"nosuid", "nodev", "noexec", "noatime"}, nil},
		"source": {"overlayfuse", func(d string) []string { return []string{"-o", writable(d), "src", d + "/m"} },
			"src DIR/m fuse.overlayfuse rw,", nil, nil},
		"relative paths": {"overlayfuse", func(string) []string { return []string{"-o", "lowerdir=l,upperdir=u,workdir=w", "m"} },
			"overlayfuse DIR/m fuse.overlayfuse rw,", nil, nil},
		"mount.overlayfuse": {"mount.overlayfuse", func(d string) []string {
			return []string{"src", d + "/m", "-n", "-v", "-o", "rw," + writable(d), "-t", "overlayfuse"}
		}, "src DIR/m fuse.overlayfuse rw,", nil, nil},
		"mount.fuse.overlayfuse": {"mount.fuse.overlayfuse", func(d string) []string {
			return []string{"src", d + "/m", "-o", "ro," + writable(d)}
		}, "src DIR/m fuse.overlayfuse ro,", nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := testDirs(t)
			mustMount(t, dir, c.name, c.args(dir)...)
			line := mountLine(t, dir)
			if !strings.HasPrefix(line, strings.ReplaceAll(c.want, "DIR", dir)) {
				t.Errorf("mounted as %q, want %q", line, c.want)
			}
			options := strings.Split(strings.Fields(line)[3], ",")
			has := func(o string) bool { return strings.Contains(","+strings.Join(options, ",")+",", ","+o+",") }
			for _, o := range append(c.options, "default_permissions", "allow_other") {
				if !has(o) {
					t.Errorf("no %s in %v", o, options)
				}
			}
			for _, o := range c.not {
				if has(o) {
					t.Errorf("%s in %v", o, options)
				}
			}
			if err := unix.Unmount(dir+"/m", 0); err != nil {
				t.Fatal(err)
			}
			// The server is gone when the upper is free again.
			eventually(t, "the second mount", func() bool {
				code, _, _ := runIn(t, dir, "overlayfuse", "-o", writable(dir), dir+"/m")
				return code == exitOK
			})
		})
	}
}

func TestFailureIsOneLineAndAnExitCode(t *testing.T) {
	dir := testDirs(t)
	if err := os.Mkdir(dir+"/l/in", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		name string
		args []string
		code int
		want string
	}{
		"unknown option":     {"overlayfuse", []string{"-o", "lowerdir=l,frob", "m"}, exitUsage, `option "frob": unknown option`},
		"no layer":           {"overlayfuse", []string{"m"}, exitUsage, "lowerdir= is missing"},
		"no mount point":     {"overlayfuse", []string{"-o", "lowerdir=l"}, exitUsage, "got 0 arguments"},
		"unknown flag":       {"overlayfuse", []string{"--frob"}, exitUsage, "unknown flag: --frob"},
		"layer missing":      {"overlayfuse", []string{"-o", "lowerdir=gone", "m"}, exitMount, "lower layer gone: no such file"},
		"in the foreground":  {"overlayfuse", []string{"-f", "-o", "lowerdir=gone", "m"}, exitMount, "lower layer gone: no such file"},
		"mount point gone":   {"overlayfuse", []string{"-o", "lowerdir=l", "gone"}, exitMount, "mount on gone: no such file"},
		"mount on a file":    {"overlayfuse", []string{"-o", "lowerdir=l", "l/lower"}, exitMount, "is a regular file"},
		"upper in lower":     {"overlayfuse", []string{"-o", "lowerdir=l,upperdir=l/in,workdir=w", "m"}, exitMount, "is inside lower layer"},
		"501 layers":         {"overlayfuse", []string{"-o", "lowerdir=l" + strings.Repeat(":l", 500), "m"}, exitUsage, "501 lower layers"},
		"helper, one word":   {"mount.overlayfuse", []string{"m", "-o", "lowerdir=l"}, exitUsage, "expected SOURCE and DIR"},
		"helper, sloppy":     {"mount.overlayfuse", []string{"s", "m", "-s", "-o", "lowerdir=l"}, exitUsage, "-s: unknown options"},
		"helper, namespace":  {"mount.overlayfuse", []string{"s", "m", "-N", "/x", "-o", "lowerdir=l"}, exitUsage, "-N /x"},
		"helper, fake mount": {"mount.overlayfuse", []string{"s", "m", "-f", "-o", "lowerdir=gone"}, exitMount, "lower layer gone"},
		"serve, no socket":   {"overlayfuse", []string{"serve"}, exitUsage, "--socket PATH is missing"},
		"serve, bad level":   {"overlayfuse", []string{"serve", "--socket", "s", "--log-level", "loud"}, exitUsage, "--log-level"},
		"serve, bad format":  {"overlayfuse", []string{"serve", "--socket", "s", "--log-format", "xml"}, exitUsage, "must be text or json"},
		"serve, no place":    {"overlayfuse", []string{"serve", "--socket", "gone/s"}, exitSystem, "gone/s"},
		"inspect, no socket": {"overlayfuse", []string{"inspect"}, exitUsage, "--socket PATH is missing"},
		"inspect, nobody":    {"overlayfuse", []string{"inspect", "--socket", "gone"}, exitSystem, "gone: connect: no such file"},
		"serve, long path":   {"overlayfuse", []string{"serve", "--socket", strings.Repeat("x", 108)}, exitSystem, "at most 107"},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errOut := runIn(t, dir, c.name, c.args...)
			if code != c.code || out != "" || strings.Count(errOut, "\n") != 1 || !strings.Contains(errOut, c.want) {
				t.Errorf("exit code %d, want %d; output %q; error output %q, want one line with %q", code, c.code, out, errOut, c.want)
			}
			if line := mountLine(t, dir); line != "" {
				t.Errorf("mounted: %s", line)
			}
		})
	}
	if code, _, errOut := runIn(t, dir, "mount.overlayfuse", "s", "m", "-f", "-o", "lowerdir=l"); code != exitOK || mountLine(t, dir) != "" {
		t.Errorf("fake mount: exit code %d, %q, %q", code, errOut, mountLine(t, dir))
	}
}

func TestHelpAndVersionAreOnStandardOutput(t *testing.T) {
	for arg, want := range map[string]string{"--help": "Usage: overlayfuse", "--version": "overlayfuse ", "-h": "serve "} {
		if code, out, errOut := runIn(t, "/", "overlayfuse", arg); code != exitOK || !strings.Contains(out, want) || errOut != "" {
			t.Errorf("%s: %d, %q, %q", arg, code, out, errOut)
		}
	}
}

func TestColonsAndCommasInPaths(t *testing.T) {
	dir := testDirs(t)
	if err := os.Rename(dir+"/l", dir+`/a:b,c\d`); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir+"/u", dir+"/u,1:2"); err != nil {
		t.Fatal(err)
	}
	mustMount(t, dir, "overlayfuse", "-o", `lowerdir=a\:b\,c\\d,upperdir=u\,1:2,workdir=w`, "m")
}

func TestFiveHundredLayersMount(t *testing.T) {
	dir := testDirs(t)
	lower := "lowerdir=l"
	for i := 1; i < 500; i++ {
		n := fmt.Sprintf("l%d", i)
		if err := os.Mkdir(filepath.Join(dir, n), 0o755); err != nil {
			t.Fatal(err)
		}
		lower += ":" + n
	}
	if err := os.WriteFile(dir+"/l499/bottom", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	mustMount(t, dir, "overlayfuse", "-o", lower, "m")
	if _, err := os.Stat(dir + "/m/bottom"); err != nil {
		t.Error(err)
	}
}

func TestSignalUnmountsAForegroundMount(t *testing.T) {
	for name, busy := range map[string]bool{"idle": false, "in use": true} {
		t.Run(name, func(t *testing.T) {
			dir := testDirs(t)
			cmd := exec.Command(command, "-f", "-o", writable(dir), dir+"/m")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() {
				_ = cmd.Wait() // its exit code is in ProcessState
				close(ended)
			}()
			t.Cleanup(func() {
				if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
					t.Error(err)
				}
				<-ended
			})
			eventually(t, "the mount", func() bool { return mountLine(t, dir) != "" })
			f, err := os.Open(dir + "/m/lower")
			if err != nil {
				t.Fatal(err)
			}
			if !busy {
				if err := f.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the mount to go", func() bool { return mountLine(t, dir) == "" })
			if busy {
				if got, err := io.ReadAll(f); err != nil || string(got) != "hello" {
					t.Errorf("read after the signal: %q, %v", got, err)
				}
				if err := f.Close(); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, "the end", func() bool {
				select {
				case <-ended:
					return true
				default:
					return false
				}
			})
			if code := cmd.ProcessState.ExitCode(); code != exitOK {
				t.Errorf("exit code %d, want 0", code)
			}
		})
	}
}

func TestMountInAUserNamespace(t *testing.T) {
	dir := testDirs(t)
	out, err := exec.Command("timeout", "30", "unshare", "-Urm", "sh", "-c", fmt.Sprintf(`set -e; cd %s
		%s -o lowerdir=l,upperdir=u,workdir=w m
		cat m/lower; mkdir m/d; touch m/d/f; rm m/lower; umount m`, dir, command)).CombinedOutput()
	if err != nil || string(out) != "hello" {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := os.Stat(dir + "/u/d/f"); err != nil {
		t.Error(err)
	}
}

// TestUserNamespaceReadsLowersOnly: no look at a lower object changes its access time there either.
func TestUserNamespaceReadsLowersOnly(t *testing.T) {
	dir := testDirs(t)
	out, err := exec.Command("timeout", "30", "unshare", "-Urm", "sh", "-c", fmt.Sprintf(`set -e; cd %s
		mkdir l/d; ln -s lower l/s; touch -h -a -d @1000 l/lower l/d l/s
		%s -f -o lowerdir=l,upperdir=u,workdir=w m &
		until grep -q "$PWD/m fuse.overlayfuse" /proc/self/mounts; do sleep 0.05; done
		cat m/lower; ls m/d; readlink m/s >/dev/null; echo x >>m/lower
		umount m; wait; stat -c %%X l/lower l/d l/s`, dir, command)).CombinedOutput()
	if err != nil || string(out) != "hello1000\n1000\n1000\n" {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestUserNamespaceWritesBack: no passthrough is to be had there, and the kernel's writeback cache is the next best.
func TestUserNamespaceWritesBack(t *testing.T) {
	dir := testDirs(t)
	out, err := exec.Command("timeout", "30", "unshare", "-Urm", "sh", "-c", fmt.Sprintf(`set -e; cd %s
		%s -f -o lowerdir=l,upperdir=u,workdir=w,debug m 2>log &
		until grep -q "$PWD/m fuse.overlayfuse" /proc/self/mounts; do sleep 0.05; done
		cat m/lower m/lower; echo x >>m/lower; umount m; wait; cat u/lower`, dir, command)).CombinedOutput()
	if err != nil || string(out) != "hellohellohellox\n" {
		t.Fatalf("%v: %s", err, out)
	}
	log, err := os.ReadFile(dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	var answer string
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, `msg="tx 2:`) {
			answer = line
		}
	}
	if !strings.Contains(answer, "WRITEBACK_CACHE") || strings.Contains(answer, "PASSTHROUGH") {
		t.Errorf("INIT was answered %q", answer)
	}
	if n := strings.Count(string(log), ": OPEN "); n != 1 {
		t.Errorf("%d OPENs were sent, want the first one", n)
	}
}

func TestMountProgramRunsTheHelper(t *testing.T) {
	// /usr/sbin with the helpers in it, in a mount namespace of its own, for mount(8) to find them.
	dir := testDirs(t)
	out, err := exec.Command("timeout", "30", "unshare", "-m", "sh", "-c", fmt.Sprintf(`set -e; cd %s
		mkdir helpers
		cp -a %[2]s/overlayfuse %[2]s/mount.overlayfuse %[2]s/mount.fuse.overlayfuse helpers
		for h in helpers/mount.*; do ln -sf overlayfuse $h; done
		mount -t overlay -o lowerdir=helpers:/usr/sbin none /usr/sbin
		for type in overlayfuse fuse.overlayfuse; do
			mount -t $type src m -o noatime,lowerdir=l,upperdir=u,workdir=w
			cat m/lower
			grep -c "^src $PWD/m fuse.overlayfuse rw,noatime," /proc/self/mounts
			umount m
			sleep 0.2
		done`, dir, filepath.Dir(command))).CombinedOutput()
	if err != nil || string(out) != "hello1\nhello1\n" {
		t.Fatalf("%v: %s", err, out)
	}
}
