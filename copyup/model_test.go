package copyup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// TestModel does random operations on a File and on a byte slice, with failing calls, kills and power cuts among them, and
// checks the content and every invariant. COPYUP_SEED repeats a run; COPYUP_OPS makes it longer, with other
// seeds each time.
func TestModel(t *testing.T) {
	t.Parallel()
	runModel(t, newStage(t), modelSeeds(t, []uint64{1, 2, 3, 1795714679477839282, 4}), modelOps(t, 4000))
}

func modelSeeds(t *testing.T, seeds []uint64) []uint64 {
	v := os.Getenv("COPYUP_SEED")
	switch {
	case v == "" && os.Getenv("COPYUP_OPS") == "":
		return seeds
	case v == "": // a long run says something new each time
		for i := range seeds {
			seeds[i] = rand.Uint64()
		}
		return seeds
	}
	seed, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return []uint64{seed}
}

// modelOps is the number of operations of one seed.
func modelOps(t *testing.T, ops int) int {
	v := os.Getenv("COPYUP_OPS")
	if v == "" {
		if raceEnabled {
			ops /= 4
		}
		return ops
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func runModel(t *testing.T, st stage, seeds []uint64, ops int) {
	t.Helper()
	const life = 200 // operations on one file
	defer debug.SetGCPercent(debug.SetGCPercent(800))
	bufs := &[2][]byte{make([]byte, 192<<10), make([]byte, 192<<10)}
	for _, seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 0))
		cuts, kills := 0, 0
		for done := 0; done < ops; done += life {
			m := newModel(t, st, rng, bufs)
			for range life {
				m.step()
				if t.Failed() {
					t.Fatalf("COPYUP_SEED=%d, after %d operations: %v", seed, done, m.log)
				}
			}
			m.finish()
			cuts, kills = cuts+m.cuts, kills+m.kills
		}
		t.Logf("COPYUP_SEED=%d: %d operations, %d kills, %d power cuts", seed, ops, kills, cuts)
	}
}

// model is a scene, what its content must be, and what a power cut may make of it.
type model struct {
	*scene
	t        *testing.T
	rng      *rand.Rand
	want     []byte
	versions [][]byte // as of the last sync, and after each change since
	disk     disk
	readers  int
	writers  int
	last     State
	cuts     int
	kills    int
	lasting  span // what the operation has promised to be durable, if it succeeded
	log      []string
	bufs     *[2][]byte
}

func newModel(t *testing.T, st stage, rng *rand.Rand, bufs *[2][]byte) *model {
	above := []int64{0, 0, 20000, DefaultPartialAbove}[rng.IntN(4)]
	s := st.scene(t, way(rng.IntN(int(byZeros))), rng.IntN(2) == 0, above)
	m := &model{scene: s, t: t, rng: rng, want: bytes.Clone(s.was), bufs: bufs}
	m.log = append(m.log, fmt.Sprintf("%v, metacopy %v, above %d", s.kernel.way, s.target.marks.exists, above))
	m.settled()
	s.kernel.onSync = func(int) { m.settled() }
	s.kernel.onClone = func() {
		m.disk = m.readDisk()
		m.kernel.freed, m.kernel.resized = nil, 0
	}
	return m
}

// settled: everything is durable now.
func (m *model) settled() {
	m.versions = [][]byte{bytes.Clone(m.want)}
	m.kernel.freed, m.kernel.resized = nil, 0
	m.target.mu.Lock()
	m.target.fresh = false
	m.target.mu.Unlock()
	m.disk = m.readDisk()
}

// step does one operation, one time in four with a failing call in it.
func (m *model) step() {
	if m.rng.IntN(4) == 0 {
		m.kernel.arm(1+m.rng.IntN(12), injections[m.rng.IntN(len(injections))])
	}
	m.lasting = span{}
	name, next, err := m.random()
	m.kernel.arm(0, injection{})
	m.log = append(m.log, name)
	got := m.content()
	switch {
	case err == nil && !bytes.Equal(got, next):
		m.t.Errorf("%v: wrong content, %d bytes, want %d, first difference at %d", name, len(got), len(next), differsAt(got, next))
	case err != nil && !bytes.Equal(got, next) && !bytes.Equal(got, m.want):
		m.t.Errorf("%v: %v, and content is neither old nor new: %d bytes, differs from the old at %d, from the new at %d",
			name, err, len(got), differsAt(got, m.want), differsAt(got, next))
	}
	if !bytes.Equal(got, m.want) {
		m.want = bytes.Clone(got)
		m.versions = append(m.versions, m.want)
	}
	if err == nil && m.lasting.off < m.lasting.end {
		m.versions = slices.DeleteFunc(m.versions, func(v []byte) bool { return !bytes.Equal(part(v, m.lasting), part(m.want, m.lasting)) })
	}
	m.invariants()
	switch m.rng.IntN(24) {
	case 0:
		m.kill()
	case 1, 2:
		m.cut()
	}
}

// part is what v has of s.
func part(v []byte, s span) []byte { return v[min(s.off, int64(len(v))):min(s.end, int64(len(v)))] }

// content reads the whole file; what it gives is good until the next call but one.
func (m *model) content() []byte {
	m.bufs[0], m.bufs[1] = m.bufs[1], m.bufs[0]
	n, err := m.ReadAt(m.bufs[0], 0)
	if err != nil {
		m.t.Fatalf("read all: %v", err)
	}
	return m.bufs[0][:n]
}

func differsAt(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// random does an operation and gives what the content is if it succeeded.
func (m *model) random() (name string, next []byte, err error) {
	off, n := m.rng.IntN(100<<10), 1+m.rng.IntN(20<<10)
	switch m.rng.IntN(14) {
	case 0:
		if err = m.Open(false); err == nil {
			m.readers++
		}
		return "open", m.want, err
	case 1:
		if err = m.Open(true); err == nil {
			m.writers++
		}
		return "open write", m.want, err
	case 2:
		if m.readers > 0 {
			err, m.readers = m.Close(false), m.readers-1
		}
		return "close", m.want, err
	case 3:
		if m.writers > 0 {
			err, m.writers = m.Close(true), m.writers-1
		}
		return "close write", m.want, err
	case 4:
		return "seek", m.want, m.seek(int64(off))
	case 5:
		return "read", m.want, m.read(off, n)
	case 6:
		if m.rng.IntN(6) > 0 {
			m.lasting = wholeSpan()
			return "sync", m.want, m.Sync(m.rng.IntN(2) == 0)
		}
		if m.State() == UpperShared {
			m.lasting = wholeSpan()
		}
		return "complete", m.want, m.Complete(context.Background())
	case 7:
		return fmt.Sprintf("truncate %d", off), resized(off)(m.want), m.Truncate(int64(off))
	case 8:
		return m.allocate(off, n)
	case 9:
		n = min(n, 8000)
		err = copyAll(m.other, m.File, 500, int64(off), int64(n))
		return fmt.Sprintf("copy range %d+%d", off, n), m.upTo(patched(pattern(9000, 77)[500:500+n], off)(m.want), err), err
	case 10:
		return m.writeback(off, n)
	case 11:
		if m.rng.IntN(3) > 0 {
			n = 1 + n%600
		}
		fallthrough
	default:
		p := pattern(n, byte(m.rng.IntN(256)))
		mode := SyncMode(m.rng.IntN(3))
		if mode != SyncNone {
			m.lasting = span{int64(off), int64(off + n)}
		}
		k, err := m.WriteAt(p, int64(off), mode)
		if err != nil {
			if mode == SyncNone || k > 0 { // else it may have been written, and not be synced
				p = p[:k]
			}
			if len(p) == 0 {
				return fmt.Sprintf("write %d+%d fails", off, n), m.want, err
			}
		}
		return fmt.Sprintf("write %d+%d of %d", off, k, n), patched(p, off)(m.want), err
	}
}

// upTo is next, or after an error what a part of it may have made.
func (m *model) upTo(next []byte, err error) []byte {
	if err == nil {
		return next
	}
	got := m.content()
	i := 0 // the new part, then the old rest
	for i < min(len(got), len(next)) && got[i] == next[i] {
		i++
	}
	if len(got) <= len(next) && (i == len(got) || i < len(m.want) && bytes.Equal(got[i:], m.want[i:])) {
		return got
	}
	return next
}

// writeback writes whole pages, as the kernel does for a shared mapping.
func (m *model) writeback(off, n int) (string, []byte, error) {
	const page = 4096
	from := off / page * page
	to := min((off+n+page-1)/page*page, len(m.want))
	if from >= to {
		return "no writeback", m.want, nil
	}
	p := bytes.Clone(m.want[from:to])
	copy(p[len(p)/2:], pattern(len(p)/4, byte(m.rng.IntN(256))))
	k, err := m.WriteAt(p, int64(from), SyncNone)
	if err != nil {
		p = p[:k]
	}
	return fmt.Sprintf("writeback %d+%d", from, k), patched(p, from)(m.want), err
}

func (m *model) allocate(off, n int) (string, []byte, error) {
	const most = 160 << 10 // what inserts make of a file
	mode, next := uint32(0), m.want
	zeros, size := make([]byte, n), len(m.want)
	grown := resized(max(size, off+n))(m.want)
	from, to := off&^(testUnit-1), (off+n)&^(testUnit-1)+testUnit // of what moves data
	var refused bool                                              // by every file system
	kind := m.rng.IntN(9)
	switch kind {
	case 0:
		next = grown
	case 1:
		mode = unix.FALLOC_FL_KEEP_SIZE
	case 2:
		mode = unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE
		next = patched(zeros, off)(m.want)[:size]
	case 3:
		mode, next = unix.FALLOC_FL_ZERO_RANGE, patched(zeros, off)(m.want)
	case 4:
		mode, next = unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, patched(zeros, off)(m.want)[:size]
	case 5:
		mode, next = unix.FALLOC_FL_UNSHARE_RANGE, grown
	case 6:
		mode = unix.FALLOC_FL_UNSHARE_RANGE | unix.FALLOC_FL_KEEP_SIZE
	default:
		mode, off, n = unix.FALLOC_FL_COLLAPSE_RANGE, from, to-from
		if kind == 8 && size+n < most {
			mode = unix.FALLOC_FL_INSERT_RANGE
		}
		refused = mode == unix.FALLOC_FL_COLLAPSE_RANGE && to >= size || mode == unix.FALLOC_FL_INSERT_RANGE && from >= size
		switch {
		case refused:
		case mode == unix.FALLOC_FL_INSERT_RANGE:
			next = slices.Concat(m.want[:from], make([]byte, n), m.want[from:])
		default:
			next = slices.Concat(m.want[:from], m.want[to:])
		}
	}
	err := m.Allocate(mode, int64(off), int64(n))
	name := fmt.Sprintf("allocate %d+%d mode %#x", off, n, mode)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP) && !m.modes[mode], errors.Is(err, unix.EINVAL) && refused:
		return name, m.want, nil
	case err == nil && refused:
		m.t.Errorf("%v of %d bytes succeeded", name, size)
	case err != nil && mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) != 0:
		m.kernel.arm(0, injection{})
		if got := m.content(); m.partlyZeroed(got, mode, off, n) {
			next = bytes.Clone(got)
		}
	}
	return name, next, err
}

// partlyZeroed: the first and the last of n bytes at off are zeros, and nothing else has changed: what is behind the lower's data is zeroed
// before the rest. Of a hole they may be others: what the upper has of its whole units is zeroed with the rest of it, and shows as it was where
// the upper has nothing.
func (m *model) partlyZeroed(got []byte, mode uint32, off, n int) bool {
	if len(got) != len(m.want) {
		return false
	}
	hole := mode&unix.FALLOC_FL_PUNCH_HOLE != 0
	kept, last := false, false
	for i, b := range got {
		in, changed := off <= i && i < off+n, b != m.want[i]
		if changed && (b != 0 || !in) || last && in && b != 0 {
			return false
		}
		last = last || changed && kept
		kept = kept || in && b != 0 && !hole
	}
	return true
}

// read compares a part.
func (m *model) read(off, n int) error {
	p := make([]byte, n)
	got, err := m.ReadAt(p, int64(off))
	if want := m.want[min(off, len(m.want)):min(off+n, len(m.want))]; err == nil && !bytes.Equal(p[:got], want) {
		m.t.Errorf("read %d bytes at %d: got %d, want %d, or they differ", n, off, got, len(want))
	}
	return err
}

// seek checks that what SEEK_DATA skips is zero, and that SEEK_HOLE finds zeros or the end.
func (m *model) seek(off int64) error {
	data, err := m.Seek(off, unix.SEEK_DATA)
	size := int64(len(m.want))
	if err == nil && (data < off || data >= size || bytes.ContainsFunc(m.want[off:data], nonZero)) {
		m.t.Errorf("data at %d from %d", data, off)
	}
	if errors.Is(err, unix.ENXIO) {
		if off < size && bytes.ContainsFunc(m.want[off:], nonZero) {
			m.t.Errorf("no data from %d", off)
		}
		return nil
	}
	hole, err2 := m.Seek(off, unix.SEEK_HOLE)
	if err2 == nil && (hole < off || hole > size || hole < size && m.want[hole] != 0) {
		m.t.Errorf("hole at %d from %d of %d", hole, off, size)
	}
	return errors.Join(err, err2)
}

func nonZero(r rune) bool { return r != 0 }

func (m *model) invariants() {
	m.t.Helper()
	s := m.State()
	m.target.checkMarksLocked(s)
	if all, writers := m.Opens(); all != m.readers+m.writers || writers != m.writers {
		m.t.Errorf("opens %d, %d", all, writers)
	}
	if m.readers+m.writers == 0 {
		m.target.checkClosed()
		if s == LowerShared {
			m.t.Error("LowerShared without an open")
		}
	}
	if m.last > LowerShared && s < m.last || m.writers > 0 && s == Lower {
		m.t.Errorf("state %v after %v with %d writers", s, m.last, m.writers)
	}
	if err := m.Err(); err != nil {
		m.t.Errorf("poisoned: %v", err)
	}
	m.last = s
}

// finish closes everything and looks at the file with a new File, as after a restart.
func (m *model) finish() {
	m.t.Helper()
	for ; m.readers > 0; m.readers-- {
		if err := m.Close(false); err != nil {
			m.t.Error(err)
		}
	}
	for ; m.writers > 0; m.writers-- {
		if err := m.Close(true); err != nil {
			m.t.Error(err)
		}
	}
	m.invariants()
	m.target.check(m.State())
	if again := newFile(m.target, m.target.state(), m.scene.options(), m.kernel); !bytes.Equal(content(m.t, again), m.want) {
		m.t.Error("another content after a restart")
	}
	m.target.checkClosed()
}
