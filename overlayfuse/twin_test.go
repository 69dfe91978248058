package overlayfuse_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The twin test makes random operations on an overlay and on a plain directory with the same content, and compares every result and
// the trees: the plain directory is what POSIX and the disk's file system say, without an overlay's excuses.
const (
	// EnvTwinSeeds repeats single runs: "7" or "7,9", or runs many: "100-200".
	EnvTwinSeeds = "OVERLAYFUSE_TWIN_SEEDS"
	// EnvTwinSteps is the length of a run.
	EnvTwinSteps = "OVERLAYFUSE_TWIN_STEPS"

	twinSteps    = 600
	checkEvery   = 40
	shrinkBudget = 60 * time.Second
	maxShown     = 60 // steps
)

var twinSeeds = []uint64{1, 2, 3, 4, 5, 6}

func TestTwin(t *testing.T) {
	if !slices.Contains(systems(), "overlayfuse") {
		t.Logf("%s leaves overlayfuse out", EnvSystems)
		return
	}
	steps := twinSteps
	if s := os.Getenv(EnvTwinSteps); s != "" {
		var err error
		if steps, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	for _, seed := range seedsToRun(t, twinSeeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { twin(t, seed, steps) })
	}
}

// seedsToRun are those that the environment wants, or else these.
func seedsToRun(t *testing.T, fixed []uint64) []uint64 {
	list := os.Getenv(EnvTwinSeeds)
	if list == "" {
		return fixed
	}
	var seeds []uint64
	for _, w := range strings.Split(list, ",") {
		from, to, isRange := strings.Cut(w, "-")
		if !isRange {
			to = from
		}
		first, err := strconv.ParseUint(from, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		last, err := strconv.ParseUint(to, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		for s := first; s <= last; s++ {
			seeds = append(seeds, s)
		}
	}
	return seeds
}

func twin(t *testing.T, seed uint64, steps int) {
	dir := filepath.Join(testRoot, fmt.Sprint("twin-", seed))
	done, mis, err := draw(dir, seed, steps)
	if mis == nil && err == nil {
		return
	}
	if mis == nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	t.Errorf("seed %d: after %d steps: %v (%v)", seed, len(done), mis, err)
	small := shrink(dir+"-shrunk", seed, done, mis.kind)
	_, mis, _ = replay(dir+"-shrunk", seed, small)
	var text strings.Builder
	for _, s := range small[max(0, len(small)-maxShown):] {
		fmt.Fprintln(&text, " ", s)
	}
	t.Errorf("these %d steps on the layers of seed %d show it: %v\n%s", len(small), seed, mis, text.String())
}

// draw makes random steps until a mismatch. It returns the steps made, and what the end of the rig found.
func draw(dir string, seed uint64, n int) (done []step, mis *mismatch, err error) {
	r, err := newRig(dir, rand.New(rand.NewPCG(seed, 0)))
	defer func() {
		if cerr := r.close(); err == nil {
			err = cerr
		}
	}()
	if err != nil {
		return nil, nil, err
	}
	g := newStepMaker(rand.New(rand.NewPCG(seed, 1)), filepath.Join(dir, "r"), "%")
	for i := range n {
		for _, s := range append([]step{g.step()}, acts(g, i, n)...) {
			done = append(done, s)
			reply, mis := r.run(s)
			if mis != nil {
				return done, mis, nil
			}
			g.saw(s, reply)
		}
	}
	return done, nil, nil
}

// acts is what follows the i-th of n steps.
func acts(g *stepMaker, i, n int) []step {
	switch i++; {
	case i == n || i%(6*checkEvery) == 0:
		return []step{act(actCommit)}
	case i%(2*checkEvery) == 0:
		return []step{act(actRemount)}
	case i%checkEvery != 0:
		return nil
	}
	switch g.IntN(3) {
	case 0:
		return []step{act(actCheck), act(actFlush), act(actCheck)}
	case 1:
		return []step{act(actCheck), act(actDrop), act(actCheck)}
	default:
		return []step{act(actCheck)}
	}
}

// replay makes these steps on new layers of the seed.
func replay(dir string, seed uint64, steps []step) (done int, mis *mismatch, err error) {
	r, err := newRig(dir, rand.New(rand.NewPCG(seed, 0)))
	defer func() { _ = r.close() }() // the mismatch is what counts
	if err != nil {
		return 0, nil, err
	}
	for i, s := range steps {
		if _, mis := r.run(s); mis != nil {
			return i + 1, mis, nil
		}
	}
	return len(steps), nil, nil
}

// shrink leaves steps out as long as the same kind of mismatch comes, until none can go or the time is over.
func shrink(dir string, seed uint64, steps []step, kind string) []step {
	end := time.Now().Add(shrinkBudget)
	for size := (len(steps) + 1) / 2; size > 0; size /= 2 {
		for to := len(steps); to > 0 && time.Now().Before(end); to -= size {
			to = min(to, len(steps))
			less := slices.Concat(steps[:max(0, to-size)], steps[to:])
			if n, mis, err := replay(dir, seed, less); err == nil && mis != nil && mis.kind == kind {
				steps = less[:n]
			}
		}
	}
	return steps
}
