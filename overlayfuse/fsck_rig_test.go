package overlayfuse

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/copyup"
)

// fsckRig is an overlay that no mount has used: l, u and w below dir, all on a file system with 4 KiB blocks.
type fsckRig struct {
	t   *testing.T
	dir string
	cfg Config
}

const (
	block = 4096
	mark  = "trusted.overlay."
)

func newFsckRig(t *testing.T) *fsckRig {
	dir := tree(t, "l", "u", "w")
	return &fsckRig{t: t, dir: dir, cfg: writableConfig(dir)}
}

// btrfs puts l, u and w on a file system where a crash may lose a size.
func (r *fsckRig) btrfs() { r.t.Helper(); r.on("mkfs.btrfs", "-q", "--mixed") }

// ext4 puts them on one where it does not.
func (r *fsckRig) ext4() { r.t.Helper(); r.on("mkfs.ext4", "-q") }

// on puts them on a new file system.
func (r *fsckRig) on(mkfs ...string) {
	r.t.Helper()
	image := filepath.Join(r.t.TempDir(), "disk.img")
	r.must(os.WriteFile(image, nil, 0o600))
	r.must(os.Truncate(image, 64<<20))
	for _, words := range [][]string{append(mkfs, image), {"mount", "-o", "loop", image, r.dir}} {
		cmd := exec.Command(words[0], words[1:]...)
		cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
		if out, err := cmd.CombinedOutput(); err != nil {
			r.t.Fatalf("%v: %v\n%s", words, err, out)
		}
	}
	r.t.Cleanup(func() {
		if err := unix.Unmount(r.dir, unix.MNT_DETACH); err != nil {
			r.t.Errorf("unmount %s: %v", r.dir, err)
		}
	})
	r.mkdir("l", "u", "w")
	r.lowers()
}

func (r *fsckRig) lowers() {
	r.t.Helper()
	r.file("l/f", 3*block, 0, 1, 2)
	r.file("l/d/f", block, 0)
}

func (r *fsckRig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *fsckRig) mkdir(paths ...string) {
	r.t.Helper()
	for _, p := range paths {
		r.must(os.MkdirAll(filepath.Join(r.dir, p), 0o755))
	}
}

// file makes a file of size bytes, with data in these blocks alone.
func (r *fsckRig) file(path string, size int64, blocks ...int64) {
	r.t.Helper()
	r.mkdir(filepath.Dir(path))
	f, err := os.Create(filepath.Join(r.dir, path))
	r.must(err)
	for _, b := range blocks {
		_, err := f.WriteAt([]byte(strings.Repeat("d", int(min(block, size-b*block)))), b*block)
		r.must(err)
	}
	r.must(f.Truncate(size))
	r.must(f.Close())
}

func (r *fsckRig) set(path, name, value string) {
	r.t.Helper()
	if err := unix.Lsetxattr(filepath.Join(r.dir, path), name, []byte(value), 0); err != nil {
		r.t.Fatalf("set %s of %s: %v", name, path, err)
	}
}

func (r *fsckRig) mark(path, name, value string) { r.t.Helper(); r.set(path, mark+name, value) }

// marks are the names of the overlay's marks of an object.
func (r *fsckRig) marks(path string) (names []string) {
	r.t.Helper()
	buf := make([]byte, xattrMax)
	n, err := unix.Llistxattr(filepath.Join(r.dir, path), buf)
	r.must(err)
	for _, x := range splitNames(buf[:n]) {
		if m, ok := strings.CutPrefix(x, mark); ok {
			names = append(names, m)
		}
	}
	slices.Sort(names)
	return names
}

func (r *fsckRig) link(from, to string) {
	r.t.Helper()
	r.must(os.Link(filepath.Join(r.dir, from), filepath.Join(r.dir, to)))
}

func (r *fsckRig) check(repair bool) CheckReport {
	r.t.Helper()
	report, err := Check(context.Background(), r.cfg, CheckOptions{Repair: repair})
	r.must(err)
	return report
}

// indexEntry is the path of the index entry for a lower file.
func (r *fsckRig) indexEntry(lower string) string {
	r.t.Helper()
	l, err := openRoot("lower layer", r.dir+"/l")
	r.must(err)
	defer closeFD(l.fd)
	o, err := openOrigins(&chain{roots: []layerRoot{l}})
	r.must(err)
	defer o.close()
	origin, err := o.encode(l.fd, lower, l.dev)
	r.must(err)
	return "w/index/" + indexName(origin)
}

// snapshot is all that is to be seen of the trees below paths: attributes and times, xattrs, data and where it is.
func (r *fsckRig) snapshot(paths ...string) string {
	r.t.Helper()
	var b strings.Builder
	for _, p := range paths {
		r.must(filepath.WalkDir(filepath.Join(r.dir, p), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			var st unix.Stat_t
			if err := unix.Lstat(path, &st); err != nil {
				return err
			}
			if d.IsDir() {
				st.Atim = unix.Timespec{} // this walk changes it
			}
			fmt.Fprintf(&b, "%s %d %o %d %d %d %v %v %v\n", path, st.Ino, st.Mode, st.Uid, st.Nlink, st.Size, st.Atim, st.Mtim, st.Ctim)
			r.snapshotXattrs(&b, path)
			if d.Type().IsRegular() {
				r.snapshotData(&b, path, st.Size)
			}
			return nil
		}))
	}
	return b.String()
}

func (r *fsckRig) snapshotXattrs(b *strings.Builder, path string) {
	buf := make([]byte, xattrMax)
	n, err := unix.Llistxattr(path, buf)
	r.must(err)
	for _, name := range splitNames(buf[:n]) {
		v, err := getXattr(onHost(path), name)
		r.must(err)
		fmt.Fprintf(b, "  %s=%q\n", name, v)
	}
}

func (r *fsckRig) snapshotData(b *strings.Builder, path string, size int64) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOATIME, 0)
	r.must(err)
	defer func() { r.must(f.Close()) }()
	data, err := copyup.DataOf(f, size)
	r.must(err)
	fmt.Fprintf(b, "  data %v, %x\n", data, sha256.Sum256(r.read(path)))
}

func (r *fsckRig) read(path string) []byte {
	r.t.Helper()
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOATIME, 0)
	r.must(err)
	defer func() { r.must(f.Close()) }()
	st, err := f.Stat()
	r.must(err)
	data := make([]byte, st.Size())
	_, err = f.ReadAt(data, 0)
	if st.Size() > 0 {
		r.must(err)
	}
	return data
}

// wanted is a finding that a case must bring; path is below dir.
type wanted struct {
	path, problem string // a part of the problem
	severity      Severity
	repaired      bool // by a repair
}

// expect compares findings; those of a repair and those of a check alone differ in what they say was repaired.
func (r *fsckRig) expect(when string, got []Finding, want []wanted, repaired bool) {
	r.t.Helper()
	for i, f := range got {
		if i >= len(want) {
			r.t.Errorf("%s: found besides: %+v", when, f)
			continue
		}
		w := want[i]
		if f.Path != filepath.Join(r.dir, w.path) || !strings.Contains(f.Problem, w.problem) || f.Severity != w.severity || f.Repaired != (repaired && w.repaired) {
			r.t.Errorf("%s: %+v, want %+v", when, f, w)
		}
	}
	for _, w := range want[min(len(got), len(want)):] {
		r.t.Errorf("%s: not found: %+v", when, w)
	}
}

// cycle checks, repairs and checks again.
func (r *fsckRig) cycle(want []wanted) {
	r.t.Helper()
	fds := openDescriptors(r.t)
	all, lower := r.snapshot("l", "u", "w"), r.snapshot("l")
	r.expect("check", r.check(false).Findings, want, false)
	if now := r.snapshot("l", "u", "w"); now != all {
		r.t.Errorf("a check changed something:\n%s\nwas\n%s", now, all)
	}
	r.expect("repair", r.check(true).Findings, want, true)
	if now := r.snapshot("l"); now != lower {
		r.t.Errorf("a repair changed the lower:\n%s\nwas\n%s", now, lower)
	}
	left := slices.DeleteFunc(slices.Clone(want), func(w wanted) bool { return w.repaired })
	r.expect("check after repair", r.check(false).Findings, left, false)
	if now := openDescriptors(r.t); now != fds {
		r.t.Errorf("%d descriptors open, %d before", now, fds)
	}
}

func limitValue(n uint64) string { return string(binary.LittleEndian.AppendUint64(nil, n)) }
