package overlayfuse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/copyup"
)

func TestCheckRefusesAnUpperOrWorkdirOfAMount(t *testing.T) {
	r := newFsckRig(t)
	r.mkdir("u2", "w2")
	openForTest(t, r.cfg)
	for _, repair := range []bool{false, true} {
		for name, cfg := range map[string]Config{
			"upperdir " + r.dir + "/u": {Upper: r.dir + "/u", Work: r.dir + "/w2"},
			"workdir " + r.dir + "/w":  {Upper: r.dir + "/u2", Work: r.dir + "/w"},
		} {
			_, err := Check(context.Background(), cfg, CheckOptions{Repair: repair})
			if !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), name+" is in use by another mount") {
				t.Errorf("repair %v: %v, want EBUSY for %s", repair, err, name)
			}
		}
	}
}

func TestMountRefusesAnUpperThatIsChecked(t *testing.T) {
	r := newFsckRig(t)
	c, err := openCheck(context.Background(), r.cfg, CheckOptions{})
	r.must(err)
	l, err := openLayers(r.cfg)
	if err == nil {
		_ = l.close()
	}
	if !errors.Is(err, unix.EBUSY) {
		t.Errorf("%v, want EBUSY", err)
	}
	r.must(c.close())
	openForTest(t, r.cfg)
}

func TestCheckNamesWhatKeepsItFromChecking(t *testing.T) {
	r := newFsckRig(t)
	for name, c := range map[string]struct {
		cfg  Config
		want error
	}{
		"no upper":          {Config{Lower: []string{r.dir + "/l"}}, unix.EINVAL},
		"no workdir":        {Config{Upper: r.dir + "/u"}, unix.EINVAL},
		"upper not there":   {Config{Upper: r.dir + "/gone", Work: r.dir + "/w"}, unix.ENOENT},
		"lower not there":   {Config{Lower: []string{r.dir + "/gone"}, Upper: r.dir + "/u", Work: r.dir + "/w"}, unix.ENOENT},
		"upper is the work": {Config{Upper: r.dir + "/u", Work: r.dir + "/u"}, unix.ELOOP},
	} {
		if _, err := Check(context.Background(), c.cfg, CheckOptions{}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Check(ctx, r.cfg, CheckOptions{}); !errors.Is(err, context.Canceled) || !errors.Is(err, unix.EINTR) {
		t.Errorf("canceled: %v", err)
	}
}

func TestCheckOfAReadOnlyFileSystem(t *testing.T) {
	r := newFsckRig(t)
	r.mkdir("m/u", "m/w")
	r.file("m/u/f", block, 0)
	r.mark("m/u/f", "limit", "")
	r.cfg.Upper, r.cfg.Work = r.dir+"/m/u", r.dir+"/m/w"
	r.must(unix.Mount(r.dir+"/m", r.dir+"/m", "", unix.MS_BIND, ""))
	t.Cleanup(func() { _ = unix.Unmount(r.dir+"/m", unix.MNT_DETACH) })
	r.must(unix.Mount("", r.dir+"/m", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	r.expect("check", r.check(false).Findings, []wanted{{"m/u/f", "left over: limit", SeverityNote, true}}, false)
	if _, err := Check(context.Background(), r.cfg, CheckOptions{Repair: true}); !errors.Is(err, unix.EROFS) {
		t.Errorf("repair: %v, want EROFS", err)
	}
}

func TestCheckInTheUserNamespaceOfXattrs(t *testing.T) {
	r := newFsckRig(t)
	r.cfg.Namespace = NamespaceUser
	r.file("u/f", block, 0)
	r.mark("u/f", "metacopy", "q") // of no meaning in this mount
	r.set("u/f", "user.overlay.limit", "")
	r.cycle([]wanted{{"u/f", "left over: limit", SeverityNote, true}})
}

func TestCheckFollowsNoSymlink(t *testing.T) {
	r := newFsckRig(t)
	r.mkdir("outside/work", "outside/index", "u/moved", "w/work")
	r.file("outside/f", block, 0)
	r.mark("outside/f", "limit", "")
	r.file("outside/work/f", block, 0)
	for _, at := range []string{"/u/d", "/l/d", "/w/work/d", "/w/index"} {
		r.must(os.Symlink(r.dir+"/outside", r.dir+at))
	}
	r.mark("u/moved", "redirect", "/d/index")
	r.file("u/g", block)
	r.mark("u/g", "metacopy", "")
	r.mark("u/g", "redirect", "/d/f")
	before := r.snapshot("outside")
	r.cycle([]wanted{{"w/index", "not a directory", SeverityWarning, false},
		{"u/g", "without lower data", SeverityError, false},
		{"u/moved", "leads to no lower directory", SeverityWarning, false},
		{"w/work", "1 unfinished objects", SeverityNote, true}})
	if now := r.snapshot("outside"); now != before {
		t.Errorf("behind the symlinks:\n%s\nwas\n%s", now, before)
	}
}

func TestCheckGoesAnyDepthWithFewDescriptors(t *testing.T) {
	r := newFsckRig(t)
	const depth = 3000 // deeper than PATH_MAX: only built by moving
	for _, top := range []string{r.dir + "/l/", r.dir + "/u/"} {
		r.must(os.Mkdir(top+"d", 0o755))
		for i := range depth {
			r.must(os.Mkdir(top+"new", 0o755))
			r.must(os.Rename(top+"d", top+"new/d"))
			if i%100 == 0 {
				r.must(os.Mkdir(top+"new/a", 0o755))
				r.must(os.WriteFile(top+"new/a/f", nil, 0o644))
				r.must(unix.Setxattr(top+"new/a/f", mark+"metacopy", nil, 0))
			}
			r.must(os.Rename(top+"new", top+"d"))
		}
	}
	// The bottom of the lower has no data for its metacopy files: each is a finding, with a path of any length.
	var old unix.Rlimit
	r.must(unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	r.must(unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(openDescriptors(t)) + 2*dirFDs + 30, Max: old.Max}))
	defer func() { r.must(unix.Setrlimit(unix.RLIMIT_NOFILE, &old)) }()
	got := r.check(false)
	if got.Dirs != depth+2+depth/100 || got.Files != depth/100 || got.Metacopies != depth/100 {
		t.Errorf("%d directories, %d files, %d metacopies", got.Dirs, got.Files, got.Metacopies)
	}
	if len(got.Findings) != depth/100 {
		t.Errorf("%d findings", len(got.Findings))
	}
	for _, f := range got.Findings {
		if !strings.Contains(f.Problem, "no data below it") {
			t.Errorf("%.100s...: %s", f.Path, f.Problem[max(0, len(f.Problem)-100):])
			break
		}
	}
}

func TestCheckNeedsDataInWholeBlocks(t *testing.T) {
	r := newFsckRig(t)
	r.file("l/f", 9*block, 0, 1, 2)
	r.file("u/f", 9*block, 1)
	r.mark("u/f", "metacopy", "p")
	c, err := openCheck(context.Background(), r.cfg, CheckOptions{Repair: true})
	r.must(err)
	c.unit = 4 * block // as if the file system's were larger than what it tells data from holes by
	r.must(c.run())
	r.expect("check", c.report.Findings, []wanted{{"u/f", "data of a partial file at 4096 to 8192, not aligned to 16384", SeverityError, false}}, true)
	r.must(c.close())
}

func TestMeasureData(t *testing.T) {
	const unit = 10
	for name, c := range map[string]struct {
		data        []copyup.Extent
		limit, size int64
		want        ownData
	}{
		"empty":                      {nil, 0, 0, ownData{}},
		"hole":                       {nil, 35, 35, ownData{missing: 35}},
		"full":                       {[]copyup.Extent{{Off: 0, End: 40}}, 35, 35, ownData{}},
		"full, cut at the end":       {[]copyup.Extent{{Off: 0, End: 35}}, 35, 35, ownData{}},
		"full, in two":               {[]copyup.Extent{{Off: 0, End: 10}, {Off: 10, End: 40}}, 35, 35, ownData{}},
		"beyond the limit":           {[]copyup.Extent{{Off: 20, End: 40}}, 20, 40, ownData{missing: 20}},
		"across the limit":           {[]copyup.Extent{{Off: 10, End: 40}}, 25, 40, ownData{missing: 10}},
		"to the end of the file":     {[]copyup.Extent{{Off: 10, End: 17}}, 17, 17, ownData{missing: 10}},
		"crooked beyond the limit":   {[]copyup.Extent{{Off: 0, End: 20}, {Off: 33, End: 34}}, 20, 40, ownData{}},
		"crooked start":              {[]copyup.Extent{{Off: 5, End: 10}}, 30, 30, ownData{missing: 25, crooked: true, off: 5, end: 10}},
		"crooked end":                {[]copyup.Extent{{Off: 0, End: 20}, {Off: 20, End: 25}}, 30, 30, ownData{missing: 5, crooked: true, off: 20, end: 25}},
		"second one crooked":         {[]copyup.Extent{{Off: 0, End: 10}, {Off: 21, End: 30}, {Off: 33, End: 40}}, 40, 40, ownData{missing: 14, crooked: true, off: 21, end: 30}},
		"crooked only by the limit":  {[]copyup.Extent{{Off: 0, End: 15}}, 15, 40, ownData{}},
		"an end before a larger end": {[]copyup.Extent{{Off: 0, End: 15}}, 20, 40, ownData{missing: 5, crooked: true, off: 0, end: 15}},
	} {
		if got := measureData(c.data, c.limit, c.size, unit); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

func TestCheckReportsXattrsThatCannotBeRead(t *testing.T) {
	r := newFsckRig(t)
	r.mkdir("m")
	image := r.dir + "/image"
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return string(out)
	}
	run("truncate", "-s", "16M", image)
	run("mkfs.ext4", "-q", "-b", "1024", "-O", "^metadata_csum", image)
	run("mount", "-o", "loop", image, r.dir+"/m")
	t.Cleanup(func() { _ = unix.Unmount(r.dir+"/m", unix.MNT_DETACH) })
	r.mkdir("m/w", "m/u/bad/below", "m/u/good")
	r.file("m/u/bad/below/f", 1024)
	r.mark("m/u/bad/below/f", "metacopy", "")
	r.file("m/u/file", 1024)
	for i, p := range []string{"bad", "file"} { // too long for the inode: each gets a block of its own
		r.mark("m/u/"+p, "redirect", strings.Repeat(strconv.Itoa(i), 600))
	}
	run("umount", r.dir+"/m")
	for _, p := range []string{"bad", "file"} {
		m := regexp.MustCompile(`File ACL: (\d+)`).FindStringSubmatch(run("debugfs", "-R", "stat /u/"+p, image))
		if m == nil || m[1] == "0" {
			t.Fatalf("no xattr block: %v", m)
		}
		n, err := strconv.ParseInt(m[1], 10, 64)
		r.must(err)
		f, err := os.OpenFile(image, os.O_WRONLY, 0)
		r.must(err)
		_, err = f.WriteAt(bytes.Repeat([]byte{0xff}, 1024), n*1024)
		r.must(errors.Join(err, f.Close()))
	}
	run("mount", "-o", "loop", image, r.dir+"/m")
	r.cfg.Upper, r.cfg.Work = r.dir+"/m/u", r.dir+"/m/w"
	for _, repair := range []bool{false, true} {
		r.expect(fmt.Sprintf("repair %v", repair), r.check(repair).Findings, []wanted{
			{"m/u/bad", "list extended attributes: structure needs cleaning", SeverityError, false},
			{"m/u/file", "list extended attributes: structure needs cleaning", SeverityError, false}}, repair)
	}
	run("umount", r.dir+"/m")
}
