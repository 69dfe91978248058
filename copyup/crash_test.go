package copyup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What a crash leaves. A kill of the process leaves everything that was written. A power cut leaves what the file system
// had written back: the data blocks in any choice, the metadata in order. Two ends of "in order" are tried: nothing
// since the last sync, and all of it; between them lies what a cut at an earlier operation leaves.

// disk is an upper as of the last sync, and what happened to its size since.
type disk struct {
	marks   marks
	data    []byte
	have    []bool // units that are no hole
	content bool   // there is an upper
}

// readDisk takes the upper as it is now.
func (m *model) readDisk() disk {
	d := disk{marks: m.target.now()}
	f, err := os.Open(m.target.path("upper"))
	if errors.Is(err, os.ErrNotExist) {
		return d
	}
	if err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if d.data, err = os.ReadFile(m.target.path("upper")); err != nil {
		m.t.Fatal(err)
	}
	d.content = true
	d.have = make([]bool, unitsIn(int64(len(d.data)), m.scene.opts.Unit))
	data, err := newFile(nil, Upper, &Options{}, linux{}).dataOf(int(f.Fd()), int64(len(d.data)))
	if err != nil {
		m.t.Fatal(err)
	}
	for _, s := range data {
		for u := s.off / m.scene.opts.Unit; u < min(unitsIn(s.end, m.scene.opts.Unit), int64(len(d.have))); u++ {
			d.have[u] = true
		}
	}
	return d
}

// kill ends the File without a word, and makes another one of what is on the disk.
func (m *model) kill() {
	m.kills++
	m.log = append(m.log, "kill")
	before, unit := m.readDisk(), int(m.scene.opts.Unit)
	m.restart()
	if got := m.content(); !bytes.Equal(got, m.want) {
		i := differsAt(got, m.want)
		m.t.Errorf("after a kill: %d bytes, want %d, first difference at %d: %#x, want %#x; marks %+v, data in the upper: %v",
			len(got), len(m.want), i, at(got, i), at(m.want, i), before.marks, before.have[max(0, i/unit-2):min(len(before.have), i/unit+3)])
	}
}

func (m *model) restart() {
	for _, f := range m.target.opened {
		_ = f.Close() // perhaps it is
	}
	m.target.opened = nil
	m.readers, m.writers, m.last = 0, 0, Lower
	m.target.stages, m.target.commits, m.target.aborts = 0, 0, 0
	m.File = newFile(m.target, m.target.reopened(), m.scene.options(), m.kernel)
}

// cut is a power cut: the upper becomes what the disk may have, and the file must show versions since the last sync.
func (m *model) cut() {
	m.cuts++
	now := m.readDisk()
	if m.rng.IntN(3) == 0 {
		m.log = append(m.log, "cut: nothing since the sync")
		m.writeDisk(m.disk)
	} else {
		m.log = append(m.log, "cut: some data since the sync")
		m.writeDisk(m.lose(now))
	}
	m.restart()
	got := m.content()
	if err := m.explain(got); err != nil {
		m.t.Errorf("after a power cut: %v; in the upper before: %v, as of the sync: %v", err, now.have, m.disk.have)
	}
	m.want = bytes.Clone(got)
	m.settled()
}

// lose is now without some of the data that was written since the last sync.
func (m *model) lose(now disk) disk {
	was := m.disk
	// Only the size at the sync is known here; a write that grows the file is journalled with its data.
	grown := int64(0)
	for u := range now.have {
		if !now.have[u] {
			continue
		}
		at, end := int64(u)*m.scene.opts.Unit, min(int64(u+1)*m.scene.opts.Unit, int64(len(now.data)))
		old := u < len(was.have) && was.have[u]
		before := make([]byte, end-at)
		if old {
			copy(before, was.data[at:])
		}
		if old && bytes.Equal(before, now.data[at:end]) {
			continue
		}
		if m.rng.IntN(2) == 0 {
			grown = max(grown, end)
			continue
		}
		if old && !m.shrank(at) {
			copy(now.data[at:end], before)
		} else {
			now.have[u] = false
			clear(now.data[at:end])
		}
	}
	if m.kernel.resized == 0 && int64(len(now.data)) > int64(len(was.data)) && was.content {
		size := max(int64(len(was.data)), grown)
		now.data = now.data[:min(size, int64(len(now.data)))]
		now.have = now.have[:unitsIn(int64(len(now.data)), m.scene.opts.Unit)]
	}
	return now
}

// shrank: the block at was given back since the last sync.
func (m *model) shrank(at int64) bool {
	for _, c := range m.kernel.freed {
		if c.off <= at && at+m.scene.opts.Unit <= c.end {
			return true
		}
	}
	return false
}

// writeDisk makes the upper what d says.
func (m *model) writeDisk(d disk) {
	m.target.mu.Lock()
	defer m.target.mu.Unlock()
	path := m.target.path("upper")
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		m.t.Fatal(err)
	}
	m.target.marks = d.marks
	if !d.content {
		m.target.marks = marks{limit: noLimit}
		return
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := f.Truncate(int64(len(d.data))); err != nil {
		m.t.Fatal(err)
	}
	for u, have := range d.have {
		at := int64(u) * m.scene.opts.Unit
		if !have {
			continue
		}
		if _, err := f.WriteAt(d.data[at:min(at+m.scene.opts.Unit, int64(len(d.data)))], at); err != nil {
			m.t.Fatal(err)
		}
	}
}

// explain finds for each byte a version since the last sync that has it there.
func (m *model) explain(got []byte) error {
	low, high := len(m.versions[0]), 0
	for _, v := range m.versions {
		low, high = min(low, len(v)), max(high, len(v))
	}
	if len(got) < low || len(got) > high {
		return fmt.Errorf("size %d, versions have %d to %d", len(got), low, high)
	}
	for i, b := range got {
		known := false
		for _, v := range m.versions {
			if i < len(v) && v[i] == b || i >= len(v) && b == 0 {
				known = true
				break
			}
		}
		if !known {
			return fmt.Errorf("byte %d is %#x, which none of %d versions has there (the last: %#x; the lower: %#x)",
				i, b, len(m.versions), at(m.want, i), at(m.was, i))
		}
	}
	return nil
}

func at(p []byte, i int) byte {
	if i < len(p) {
		return p[i]
	}
	return 0
}

// TestKillBeforeEachCall kills the process, for every operation, before each of its system calls and calls of the Target. Who opens the file
// next sees what was there before the operation, or what is there after it; of an operation of two steps also what is there between
// them. What was synced before counts as written, in the lower and in the upper.
func TestKillBeforeEachCall(t *testing.T) {
	dir := scratch(t)
	for _, btrfs := range []bool{false, true} {
		in := filepath.Join(dir, fmt.Sprint("btrfs-", btrfs))
		if err := os.Mkdir(in, 0o755); err != nil {
			t.Fatal(err)
		}
		st := newStageIn(t, in, btrfs)
		for _, op := range operations() {
			for _, above := range []int64{0, DefaultPartialAbove} {
				for _, partial := range []bool{false, true} {
					t.Run(fmt.Sprintf("%v/btrfs=%v/above=%d/partial=%v", op.name, btrfs, above, partial), func(t *testing.T) {
						n := 1
						for killNth(t, st, op, above, partial, n) {
							n++
						}
						if n < 2 {
							t.Error("it made no call")
						}
					})
				}
			}
		}
	}
}

// killNth reports whether there was an n-th call. partial: the file has an upper with some data before the operation.
func killNth(t *testing.T, st stage, op operation, above int64, partial bool, n int) bool {
	t.Helper()
	s := st.scene(t, byRange, false, above)
	s.kernel.zeroRange = true
	if partial {
		p := pattern(2*testUnit, 55)
		if _, err := s.WriteAt(p, testUnit, SyncAll); err != nil {
			t.Fatal(err)
		}
		copy(s.was[testUnit:], p)
	}
	dir := filepath.Join(st.main, "killed")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	killed := newTargetIn(t, dir, s.target.lowerBytes)
	killed.loose = st.btrfs
	calls, found := 0, false
	s.kernel.onCall = func(string) {
		if calls++; calls != n {
			return
		}
		found = true
		killed.marks = s.target.marks // also where a call of the Target has them locked
		if err := copyHoles(killed.path("upper"), s.target.path("upper")); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	}
	err := op.do(s)
	s.kernel.onCall = nil
	if err != nil {
		t.Fatal(err)
	}
	if all, _ := s.Opens(); all > 0 {
		if err := s.Close(true); err != nil {
			t.Fatal(err)
		}
	}
	if !found {
		return false
	}
	name := s.kernel.calls[len(s.kernel.calls)-calls+n-1]
	after := newFile(killed, killed.reopened(), s.options(), &fakeKernel{way: byRange})
	got, want := content(t, after), op.want(bytes.Clone(s.was))
	steps := [][]byte{s.was, want}
	for _, st := range op.steps {
		steps = append(steps, st.want(s.was))
	}
	switch op.name {
	case "copy range to": // unit by unit, as write(2)
		steps = append(steps, patched(want[2000:testUnit], 2000)(bytes.Clone(s.was)))
	case "zero range and keep the size": // what partial has put into the upper is a piece of its own
		steps = append(steps, zeroed(1000, testUnit)(s.was), zeroed(1000, 3*testUnit)(s.was))
	}
	for _, step := range steps {
		if bytes.Equal(got, step) {
			return true
		}
	}
	t.Errorf("killed before call %d (%s): %d bytes, neither the %d before nor the %d after; the first differences at %d and %d", n, name,
		len(got), len(s.was), len(want), differsAt(got, s.was), differsAt(got, want))
	return true
}

// copyHoles copies a file with its holes, which are of whole units.
func copyHoles(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	err = out.Truncate(st.Size())
	for pos := int64(0); err == nil; {
		data, errSeek := unix.Seek(int(in.Fd()), pos, unix.SEEK_DATA)
		if errors.Is(errSeek, unix.ENXIO) {
			return nil
		}
		pos, err = unix.Seek(int(in.Fd()), data, unix.SEEK_HOLE)
		if err = errors.Join(err, errSeek); err == nil {
			_, err = io.Copy(io.NewOffsetWriter(out, data), io.NewSectionReader(in, data, pos-data))
		}
	}
	return err
}
