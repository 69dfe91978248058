package copyup

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestModel does random operations on a File and on a byte slice, with failing calls among them, and checks the content
// and every invariant after each. COPYUP_SEED repeats a run; COPYUP_ROUNDS makes it longer.
func TestModel(t *testing.T) {
	seeds := []uint64{1, 2, 3, uint64(time.Now().UnixNano())}
	if v := os.Getenv("COPYUP_SEED"); v != "" {
		seed, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seeds = []uint64{seed}
	}
	rounds := 20
	if v := os.Getenv("COPYUP_ROUNDS"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatal(err)
		}
		rounds = n
	}
	st := newStage(t)
	for _, seed := range seeds {
		t.Logf("COPYUP_SEED=%d", seed)
		rng := rand.New(rand.NewPCG(seed, 0))
		for range rounds {
			m := newModel(t, st, rng)
			for range 40 {
				m.step()
				if t.Failed() {
					t.Fatalf("COPYUP_SEED=%d, after: %v", seed, m.log)
				}
			}
			m.finish()
		}
	}
}

// model is a scene and what its content must be.
type model struct {
	*scene
	t       *testing.T
	rng     *rand.Rand
	want    []byte
	readers int
	writers int
	last    State
	log     []string
}

func newModel(t *testing.T, st stage, rng *rand.Rand) *model {
	s := st.scene(t, way(rng.IntN(int(byZeros))), rng.IntN(2) == 0)
	return &model{scene: s, t: t, rng: rng, want: bytes.Clone(s.was)}
}

// step does one operation, one time in four with a failing call in it.
func (m *model) step() {
	if m.rng.IntN(4) == 0 {
		m.kernel.arm(1+m.rng.IntN(12), injections[m.rng.IntN(len(injections))])
	}
	name, next, err := m.random()
	m.kernel.arm(0, injection{})
	m.log = append(m.log, name)
	got := content(m.t, m.File)
	switch {
	case err == nil && !bytes.Equal(got, next):
		m.t.Errorf("%v: wrong content, %d bytes, want %d", name, len(got), len(next))
	case err != nil && !bytes.Equal(got, next) && !bytes.Equal(got, m.want):
		m.t.Errorf("%v: %v, and content is neither old nor new", name, err)
	}
	m.want = bytes.Clone(got)
	m.invariants()
}

// random does an operation and gives what the content is if it succeeded.
func (m *model) random() (name string, next []byte, err error) {
	off, n := m.rng.IntN(100<<10), 1+m.rng.IntN(20<<10)
	switch m.rng.IntN(12) {
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
		if m.rng.IntN(4) > 0 {
			return "sync", m.want, m.Sync(m.rng.IntN(2) == 0)
		}
		return "fault", m.want, m.Fault(context.Background())
	case 7:
		return "truncate", resized(off)(m.want), m.Truncate(int64(off))
	case 8:
		return m.allocate(off, n)
	case 9:
		n = min(n, 8000)
		return "copy range", patched(pattern(9000, 77)[500:500+n], off)(m.want), copyAll(m.other, m.File, 500, int64(off), int64(n))
	default:
		p := pattern(n, byte(m.rng.IntN(256)))
		_, err = m.WriteAt(p, int64(off), SyncMode(m.rng.IntN(3)))
		return "write", patched(p, off)(m.want), err
	}
}

func (m *model) allocate(off, n int) (string, []byte, error) {
	var mode uint32
	next := m.want
	switch m.rng.IntN(4) {
	case 0:
		next = resized(max(len(m.want), off+n))(m.want)
	case 1:
		mode = unix.FALLOC_FL_KEEP_SIZE
	case 2:
		mode = unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE
		next = patched(make([]byte, n), off)(m.want)[:len(m.want)]
	case 3:
		mode = unix.FALLOC_FL_ZERO_RANGE
		next = patched(make([]byte, n), off)(m.want)
	}
	err := m.Allocate(mode, int64(off), int64(n))
	return "allocate " + strconv.Itoa(int(mode)), next, err
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
	m.target.check(s)
	if all, writers := m.Opens(); all != m.readers+m.writers || writers != m.writers {
		m.t.Errorf("opens %d, %d", all, writers)
	}
	if m.readers+m.writers == 0 {
		m.target.checkClosed()
		if s == LowerShared {
			m.t.Error("LowerShared without an open")
		}
	}
	if m.last == Upper && s != Upper || m.writers > 0 && s == Lower || s == UpperShared {
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
	if again := newFile(m.target, m.State(), Options{}, m.kernel); !bytes.Equal(content(m.t, again), m.want) {
		m.t.Error("another content after a restart")
	}
	m.target.checkClosed()
}
