package overlayfuse

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWorkdirIsEmptiedWithoutLeavingIt(t *testing.T) {
	dir := tree(t, "l", "u", "w/work/full/er", "w/work/dir", "outside", "mounted")
	for _, p := range []string{"outside/keep", "mounted/keep", "w/work/file", "w/work/full/er/file", "w/work/dir/file"} {
		if err := os.WriteFile(filepath.Join(dir, p), nil, 0o000); err != nil {
			t.Fatal(err)
		}
	}
	deep := filepath.Join(dir, "w/work/deep")
	if err := os.Mkdir(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 3000 { // deeper than PATH_MAX: only built by moving
		if err := os.Mkdir(deep+".new", 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(deep, deep+".new/d"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(deep+".new", deep); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{"w/work/link", "w/work/full/link", "w/work/#lifted-1"} {
		if err := os.Symlink(dir+"/outside", filepath.Join(dir, p)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mknod(dir+"/w/work/whiteout", unix.S_IFCHR, 0); err != nil {
		t.Fatal(err)
	}
	openForTest(t, writableConfig(dir))
	left, err := os.ReadDir(dir + "/w/work")
	if err != nil || len(left) != 0 {
		t.Errorf("left in work: %v, %v", left, err)
	}
	if _, err := os.Stat(dir + "/outside/keep"); err != nil {
		t.Errorf("behind a symlink: %v", err)
	}
}

func TestNothingMountedInTheWorkdirIsTouched(t *testing.T) {
	dir := tree(t, "l", "u", "w/work/m", "mounted")
	if err := os.WriteFile(dir+"/mounted/keep", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m := dir + "/w/work/m"
	if err := unix.Mount(dir+"/mounted", m, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(m, unix.MNT_DETACH) })
	l, err := openLayers(writableConfig(dir))
	if err == nil {
		_ = l.close()
	}
	if _, err := os.Stat(dir + "/mounted/keep"); err != nil {
		t.Errorf("what was mounted in work: %v", err)
	}
}

func TestFileInTheWayOfTheWorkSubdirectoryIsReplaced(t *testing.T) {
	dir := tree(t, "l", "u", "w", "outside")
	if err := os.Symlink(dir+"/outside", dir+"/w/work"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(dir+"/w/index", 0o644); err != nil {
		t.Fatal(err)
	}
	openForTest(t, writableConfig(dir))
	for _, n := range []string{"work", "index"} {
		if st, err := os.Lstat(dir + "/w/" + n); err != nil || !st.IsDir() {
			t.Errorf("%s is not a directory: %v %v", n, st, err)
		}
	}
	if left, err := os.ReadDir(dir + "/outside"); err != nil || len(left) != 0 {
		t.Errorf("through the symlink: %v %v", left, err)
	}
}

func TestUpperOnAFileSystemThatCannotCarryOneIsRefused(t *testing.T) {
	// ramfs has no extended attributes and no O_TMPFILE.
	dir := tree(t, "l", "m")
	if err := unix.Mount("ramfs", dir+"/m", "ramfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir+"/m", unix.MNT_DETACH) })
	for _, d := range []string{"/m/u", "/m/w"} {
		if err := os.Mkdir(dir+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	_, err := openLayers(Config{Lower: []string{dir + "/l"}, Upper: dir + "/m/u", Work: dir + "/m/w"})
	if err == nil || !strings.Contains(err.Error(), "has no trusted.* extended attributes") {
		t.Errorf("got %v", err)
	}
}

func TestUpperOnAReadOnlyMountIsRefused(t *testing.T) {
	dir := tree(t, "l", "m/u", "m/w")
	if err := unix.Mount(dir+"/m", dir+"/m", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir+"/m", unix.MNT_DETACH) })
	if err := unix.Mount("", dir+"/m", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	_, err := openLayers(Config{Lower: []string{dir + "/l"}, Upper: dir + "/m/u", Work: dir + "/m/w"})
	if err == nil || !strings.Contains(err.Error(), "is on a read-only file system") {
		t.Errorf("got %v", err)
	}
}
