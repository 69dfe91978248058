package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// bench is one run. It owns the scratch directory and every mount and process below it.
type bench struct {
	settings
	ctx    context.Context // ends with SIGINT
	base   string          // scratch directory
	remove func() error    // removes it
	lowers map[string]*lower
	mounts []*mounted
	hubs   []*hub
	stacks map[system]*stack
	group  *memoryGroup // what FUSE servers are started in; nil is this process's
	notes  []string     // on what could not be measured
	serial int          // of the next mount's directory
}

// experiment is one workload on several systems.
type experiment struct {
	name    string
	systems []system
	// rounds of a system; nil is b.heavyRounds.
	rounds   func(system) int
	deadline time.Duration // of a child
	lower    func() (*lower, error)
	// measure runs the workload on a fresh mount and returns the quantities by the rows' keys.
	measure func(m *mounted, round int) (values, error)
	// run is for workloads that make what they run on themselves; lower and measure are not used then.
	run func(y system, round int) (values, error)
	// needs says what the machine lacks for it; nil and "" are nothing.
	needs func() string
	// finish is called after the last round.
	finish func() error
	rows   []row // the first one is the time of the whole workload
}

// values are what one system showed in one round: seconds, bytes or plain numbers.
type values map[string]float64

// heavyRounds is the number of rounds of an experiment that takes minutes.
func (b *bench) heavyRounds() int { return (b.rounds + 2) / 3 }

// copyup runs the experiments on the copy-up that were asked for.
func (b *bench) copyup() (*report, error) { return b.series(b.experiments()) }

// series runs those of the experiments that were asked for.
func (b *bench) series(list []experiment) (*report, error) {
	r := newReport(b)
	defer func() { r.Notes = b.notes }()
	for _, x := range list {
		if !b.only.MatchString(x.name) {
			continue
		}
		x.systems = b.also(x.systems)
		s := r.section(x)
		if x.needs != nil {
			if s.Skipped = x.needs(); s.Skipped != "" {
				fmt.Fprintf(os.Stderr, "%s\n  skipped: %s\n", x.name, s.Skipped)
				continue
			}
		}
		start := time.Now()
		if err := b.experiment(x, s); err != nil {
			return r, fmt.Errorf("%s: %w", x.name, err)
		}
		s.Seconds = since(start)
		s.print(os.Stderr, r.columns())
	}
	return r, nil
}

// also puts what is asked for beside ours, where file systems are compared: ours with io=writeback, and the mirror.
func (b *bench) also(systems []system) []system {
	at := slices.Index(systems, ours)
	if at < 0 || !slices.Contains(systems, fuseOverlayfs) {
		return systems
	}
	systems = slices.Clone(systems)
	if b.mirror && slices.Contains(systems, plain) {
		systems = slices.Insert(systems, at+1, mirror)
	}
	if b.writeback {
		systems = slices.Insert(systems, at+1, oursWriteback)
	}
	return systems
}

// note keeps text for the report, once.
func (b *bench) note(text string) {
	if !slices.Contains(b.notes, text) {
		fmt.Fprintln(os.Stderr, "  "+text)
		b.notes = append(b.notes, text)
	}
}

// experiment runs all rounds of x. A system that fails is noted, and left out of the remaining rounds.
//
// Errors: those of this program's own doing only, and that the run was interrupted.
func (b *bench) experiment(x experiment, s *section) (err error) {
	fmt.Fprintf(os.Stderr, "%s\n", x.name)
	if x.finish != nil {
		defer func() { err = errors.Join(err, x.finish()) }()
	}
	var low *lower
	if x.lower != nil {
		if low, err = x.lower(); err != nil {
			return err
		}
	}
	rounds := func(y system) int {
		if x.rounds == nil {
			return b.heavyRounds()
		}
		return x.rounds(y)
	}
	for round := range b.rounds {
		for i := range x.systems {
			y := x.systems[(i+round)%len(x.systems)]
			if round >= rounds(y) || s.Failures[y] != "" {
				continue
			}
			v, err := b.sample(x, y, low, round)
			if b.ctx.Err() != nil {
				return b.ctx.Err()
			}
			if errors.Is(err, errLower) {
				return err
			}
			s.add(y, v, err, x.deadline)
		}
	}
	return nil
}

// sample runs x once on a fresh mount of y.
func (b *bench) sample(x experiment, y system, low *lower, round int) (v values, err error) {
	if x.run != nil {
		return x.run(y, round)
	}
	m, err := b.mount(y, low, x.deadline)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.discard(m)) }()
	if err := b.settle(); err != nil {
		return nil, err
	}
	if v, err = x.measure(m, round); err != nil {
		return v, err
	}
	return v, low.unchanged()
}

// settle has all that is dirty on the scratch file system written back.
func (b *bench) settle() error {
	d, err := os.Open(b.base)
	if err != nil {
		return err
	}
	err = unix.Syncfs(int(d.Fd()))
	return errors.Join(err, d.Close())
}

// close detaches what is still mounted, ends what still runs, and removes the scratch directory.
func (b *bench) close() error {
	var errs []error
	for _, k := range slices.Collect(maps.Values(b.stacks)) {
		errs = append(errs, b.down(k))
	}
	for _, m := range slices.Clone(b.mounts) {
		errs = append(errs, b.discard(m))
	}
	for _, h := range slices.Clone(b.hubs) {
		errs = append(errs, b.end(h))
	}
	if b.group != nil {
		errs = append(errs, b.leave())
	}
	points, err := mountPoints()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, p := range points {
		if strings.HasPrefix(p, b.base+"/") {
			return errors.Join(append(errs, fmt.Errorf("%s is still mounted, %s is left there: %w", p, b.base, unix.EBUSY))...)
		}
	}
	return errors.Join(append(errs, b.remove())...)
}
