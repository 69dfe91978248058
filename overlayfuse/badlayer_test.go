package overlayfuse_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestUnreadableXattrs: a layer whose file system can't read a directory's xattrs any more makes that directory an error,
// logged with layer and path, and leaves the rest as it is.
func TestUnreadableXattrs(t *testing.T) {
	dir, err := os.MkdirTemp(testRoot, "badlayer-")
	if err != nil {
		t.Fatal(err)
	}
	image, lower, m := filepath.Join(dir, "image"), filepath.Join(dir, "l"), filepath.Join(dir, "m")
	must := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command("timeout", append([]string{"60", name}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	lazily := func(path string) {
		t.Cleanup(func() {
			if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
				t.Errorf("unmount %s: %v", path, err)
			}
		})
	}
	for _, d := range []string{lower, m, dir + "/u", dir + "/w"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	must("truncate", "-s", "16M", image)
	must("mkfs.ext4", "-q", "-b", "1024", "-O", "^metadata_csum", image)
	must("mount", "-o", "loop", image, lower)
	lazily(lower)
	for _, d := range []string{"bad", "good"} {
		if err := os.MkdirAll(filepath.Join(lower, d, "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// Too long for the inode: it gets a block of its own.
	if err := unix.Setxattr(lower+"/bad", "trusted.overlay.redirect", bytes.Repeat([]byte("r"), 600), 0); err != nil {
		t.Fatal(err)
	}
	must("umount", lower)
	block := regexp.MustCompile(`File ACL: (\d+)`).FindStringSubmatch(must("debugfs", "-R", "stat /bad", image))
	if block == nil || block[1] == "0" {
		t.Fatalf("no xattr block: %v", block)
	}
	n, err := strconv.ParseInt(block[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xff}, 1024), n*1024); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	must("mount", "-o", "loop", image, lower)

	log := new(bytes.Buffer)
	server := exec.Command(serverBinary(), "-f", "-o", "lowerdir="+lower+",upperdir="+dir+"/u,workdir="+dir+"/w", m)
	server.Stderr, server.Stdout = log, log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	lazily(m)
	must("sh", "-c", "until mountpoint -q "+m+"; do sleep 0.05; done")
	out, err := exec.Command("timeout", "20", "ls", m+"/bad").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "Structure needs cleaning") {
		t.Errorf("ls of the bad directory: %v: %s", err, out)
	}
	if out := must("ls", m+"/good"); strings.TrimSpace(out) != "sub" {
		t.Errorf("good directory: %q", out)
	}
	must("umount", m)
	if err := server.Wait(); err != nil {
		t.Errorf("server: %v", err)
	}
	must("umount", lower)
	if want := lower + "/bad"; !strings.Contains(log.String(), want) {
		t.Errorf("log does not name %s:\n%s", want, log)
	}
}
