package overlayfuse_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/internal/fstool"
)

const (
	twinWorkers     = 4
	concurrentSteps = 300
	sharedTree      = "shared"
)

var concurrentSeeds = []uint64{1, 2}

// TestTwinConcurrent makes random operations from several processes at once, each in a tree of its own that must become as its twin,
// and all in one tree, of which only the overlay knows what becomes: that must stay as it is over a remount and a commit.
// The kernel forgets and the server flushes while they run.
func TestTwinConcurrent(t *testing.T) {
	if !slices.Contains(systems(), "overlayfuse") {
		t.Logf("%s leaves overlayfuse out", EnvSystems)
		return
	}
	for _, seed := range seedsToRun(t, concurrentSeeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			tops := []string{sharedTree}
			for i := range twinWorkers {
				tops = append(tops, ownTree(i))
			}
			r, err := newRig(filepath.Join(testRoot, fmt.Sprint("twins-", seed)), rand.New(rand.NewPCG(seed, 2)), tops...)
			defer func() {
				if err := r.close(); err != nil {
					t.Errorf("seed %d: %v", seed, err)
				}
			}()
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if err := r.concurrently(seed); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if mis := r.afterwards(); mis != nil {
				t.Fatalf("seed %d: %v", seed, mis)
			}
		})
	}
}

func ownTree(worker int) string { return fmt.Sprint("p", worker) }

// worker is one process and what it did.
type worker struct {
	*rig
	agent       *fstool.Agent
	own, shared *stepMaker
	done        []step
}

// concurrently runs the workers to their end.
func (r *rig) concurrently(seed uint64) error {
	var workers []*worker
	for i := range twinWorkers {
		cred, err := credential(fmt.Sprintf("0:0,%d", i))
		if err != nil {
			return err
		}
		a, err := fstool.Start(agentBinary(), r.dir, cred, opTimeout)
		if err != nil {
			return err
		}
		r.agents[fmt.Sprint("worker ", i)] = a
		w := &worker{rig: r, agent: a}
		twin := filepath.Join(r.dir, "r")
		w.own = newStepMaker(rand.New(rand.NewPCG(seed, uint64(10+i))), twin, "%/"+ownTree(i))
		w.shared = newStepMaker(rand.New(rand.NewPCG(seed, uint64(20+i))), twin, "%/"+sharedTree)
		w.own.users, w.shared.users = []string{""}, []string{""}
		w.shared.fds = []string{"6", "7", "8"}
		workers = append(workers, w)
	}
	var running atomic.Int32
	running.Store(twinWorkers)
	errs := make([]error, twinWorkers+1)
	var all sync.WaitGroup
	for i, w := range workers {
		all.Go(func() {
			defer running.Add(-1)
			if err := w.work(); err != nil {
				errs[i] = fmt.Errorf("worker %d: %w\nafter %v", i, err, w.done[max(0, len(w.done)-60):])
				if errors.Is(err, fstool.ErrTimeout) {
					errs[i] = errors.Join(errs[i], r.abort())
				}
			}
		})
	}
	all.Go(func() { errs[twinWorkers] = r.disturb(&running) })
	all.Wait()
	return errors.Join(errs...)
}

// disturb makes the kernel forget and the server flush, again and again.
func (r *rig) disturb(running *atomic.Int32) error {
	for i := 0; running.Load() > 0; i++ {
		s := act(actDrop)
		if i%3 == 2 {
			s = act(actFlush)
		}
		if _, mis := r.run(s); mis != nil {
			return mis
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil
}

func (w *worker) work() error {
	for range concurrentSteps {
		if err := w.inOwn(w.own.step()); err != nil {
			return err
		}
		if w.own.IntN(2) == 0 {
			if err := w.inShared(w.shared.step()); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *worker) inOwn(s step) error {
	w.done = append(w.done, s)
	if s.words[0] == "linkfd" {
		return nil // see outOfSight
	}
	twin, err := w.agent.Do(s.on("r"))
	if err != nil {
		return err
	}
	ours, err := w.agent.Do(s.on("m"))
	if err != nil {
		return err
	}
	w.own.saw(s, twin)
	if s.words[0] == "fstat" { // checkNumbers sees to the rest
		twin.Out, ours.Out = firstWords(twin.Out, 4), firstWords(ours.Out, 4)
	}
	asOverlay(s, &twin, ours)
	if twin != ours {
		return fmt.Errorf("%v: twin %+v, ours %+v", s, twin, ours)
	}
	return nil
}

// inShared makes a step whose result nobody knows, but for what it must never be.
func (w *worker) inShared(s step) error {
	if s.words[0] == "mapscribble" {
		return nil // SIGBUS if another one truncates meanwhile
	}
	w.done = append(w.done, s)
	r, err := w.agent.Do(s.on("m"))
	if err != nil {
		return err
	}
	switch r.Errno {
	case "EIO", "ESTALE", "ENOTCONN", "ENOSYS", "EUCLEAN":
		return fmt.Errorf("%v: %s", s, r.Errno)
	}
	w.shared.saw(s, r)
	if len(s.words) < 2 {
		return nil
	}
	fd := strings.TrimPrefix(s.words[1], "#")
	if o, ok := w.shared.open[fd]; ok && fd != s.words[1] { // others renamed and made: it may be anything
		st, err := w.agent.Do([]string{"fstat", "m" + fd, "type"})
		if err != nil {
			return err
		}
		o.kind = st.Out
		w.shared.open[fd] = o
	}
	return nil
}

func firstWords(s string, n int) string {
	f := strings.Fields(s)
	return strings.Join(f[:min(n, len(f))], " ")
}

// afterwards compares the workers' trees with their twins, and all with itself over a remount and a commit.
func (r *rig) afterwards() *mismatch {
	mis := r.checkTrees()
	if mis != nil {
		return mis
	}
	before, err := r.snapshot("m", false)
	if err != nil {
		return fault("hang", err)
	}
	if err := errors.Join(r.unmount(), r.mountAgain()); err != nil {
		return fault("remount", err)
	}
	if mis := r.checkTrees(); mis != nil {
		return mis.in("after remount ")
	}
	after, err := r.snapshot("m", false)
	if err != nil {
		return fault("hang", err)
	}
	if mis := compareTrees("remounted tree", before, after, ourView); mis != nil {
		return mis
	}
	for i, o := range after {
		if was := before[i]; o.Ino != was.Ino || o.Nlink != was.Nlink {
			return &mismatch{"numbers", fmt.Sprintf("%s (%s): st_ino and st_nlink were %d %d, are %d %d", o.Path, o.Type, was.Ino, was.Nlink, o.Ino, o.Nlink)}
		}
	}
	return r.commitAs(after)
}

// commitAs commits, and wants the kernel to see this tree.
func (r *rig) commitAs(tree []fstool.Object) *mismatch {
	if err := errors.Join(r.unmount(), r.flush()); err != nil {
		return fault("commit", err)
	}
	r.lowerNames = append([]string{r.upper()}, r.lowerNames...)
	if err := r.kernelMount(); err != nil {
		return fault("commit", err)
	}
	kernel, err := r.snapshot("k", false)
	if err != nil {
		return fault("commit", err)
	}
	if _, err := r.must("umount", "k"); err != nil {
		return fault("commit", err)
	}
	if r.stray {
		kernel = withoutStray(kernel)
	}
	return compareTrees("kernel", tree, kernel, kernelView)
}

// checkTrees is check for the workers' own trees.
func (r *rig) checkTrees() *mismatch {
	twin, err := r.snapshot("r", true)
	if err != nil {
		return fault("twin", err)
	}
	ours, err := r.snapshot("m", false)
	if err != nil {
		return fault("hang", err)
	}
	shared := func(o fstool.Object) bool {
		return o.Path == "." || o.Path == sharedTree || strings.HasPrefix(o.Path, sharedTree+"/")
	}
	twin, ours = slices.DeleteFunc(twin, shared), slices.DeleteFunc(ours, shared)
	if mis := compareTrees("tree", twin, ours, ourView); mis != nil {
		return mis
	}
	return r.checkNumbers(twin, ours)
}
