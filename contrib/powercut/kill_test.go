package powercut_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestKilledServer kills the server at random instants and compares what the next one shows.
func TestKilledServer(t *testing.T) {
	needRoot(t)
	c := theBinary(t)
	if c.path == kernelOverlay {
		t.Skip("the kernel's overlayfs has no server")
	}
	kills := count(t, envKills, 6)
	for _, fstype := range fileSystems() {
		t.Run(fstype, func(t *testing.T) {
			h := newHost(t, fstype)
			h.killServers(t, c, lasting, keepsAll, kills)
			if c.partial {
				h.killServers(t, c, requested, keepsRequests, (kills+2)/3)
			}
		})
	}
}

// killServers kills one server after the other above one disk. Of loads keeps is what they leave.
func (h *host) killServers(t *testing.T, c command, loads []string, keeps keeps, kills int) {
	image := filepath.Join(h.root, "disk.img")
	if err := clone(h.base, image); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.Remove(image) }() // with the host, otherwise
	began := time.Now()
	w := newWorld(h.seed, keeps, h.lower)
	ops := 0
	err := h.withDisk(image, func(disk string) error {
		r := rand.New(rand.NewPCG(h.seed, 3))
		next, owner := uint32(firstOp), w.owner()
		for n := range kills {
			options := loadOptions(c, loads, n)
			history, err := h.killOnce(c, disk, options, w.jobs(filepath.Join(h.dir, "mnt"), next, owner), time.Duration(100+r.IntN(900))*time.Millisecond)
			if err != nil {
				return fmt.Errorf("kill %d, options %q: %w", n, options, err)
			}
			for _, events := range history {
				ops += len(events)
				if len(events) > 0 {
					next = max(next, events[len(events)-1].N+1)
				}
			}
			w.replay(history, now(), now())
			if err := c.check(disk); err != nil {
				t.Errorf("%s=%d, kill %d, options %q: %v", envSeed, h.seed, n, options, err)
			}
			found := tree{}
			if err := h.withOverlay(c, disk, options, func(dir string) (err error) { found, err = readTree(dir); return err }); err != nil {
				return fmt.Errorf("after kill %d, options %q: %w", n, options, err)
			}
			wrong, shown := w.check(found)
			for _, what := range wrong {
				t.Errorf("%s=%d, kill %d, options %q: %s", envSeed, h.seed, n, options, what)
			}
			if t.Failed() {
				return nil
			}
			w.resolve(found, shown)
			owner = shown
		}
		lower, err := readTree(filepath.Join(disk, "lower"))
		for _, what := range checkLower(h.seed, h.lower, lower) {
			t.Error(what)
		}
		return err
	})
	if err != nil {
		t.Errorf("%s=%d: %v", envSeed, h.seed, err)
	}
	t.Logf("%d kills, options %q, %d operations, %v", kills, loads, ops, time.Since(began).Round(time.Second))
}

// killOnce runs workers and kills the server under them.
func (h *host) killOnce(c command, disk, options string, jobs []job, after time.Duration) ([][]event, error) {
	s, err := c.mount(disk, jobs[0].Dir, options)
	if err != nil {
		return nil, err
	}
	l, err := startLoad(jobs)
	if err != nil {
		_ = s.kill() // the first error counts
		return nil, err
	}
	time.Sleep(after)
	killed := now()
	_ = s.cmd.Process.Kill() // it may have ended, which the workers tell
	<-s.ended
	if err := errors.Join(l.stop(killed), s.kill()); err != nil {
		return nil, err
	}
	return l.history(), nil
}
