package main

import (
	"errors"
	"strings"
	"time"
)

// fleet is many mounts of one lower, the way that a system serves the containers of a machine: a process for each mount of
// fuse-overlayfs, one for all of ours.
type fleet struct {
	points []string
	mounts []*mounted // one for each point; with a hub they all are the hub's process
	hub    *hub       // nil: each mount has its own server, or none
}

// fleet mounts low n times, ours with further options. Whatever the error, the fleet is to be disbanded.
func (b *bench) fleet(y system, low *lower, n int, deadline time.Duration, options ...string) (*fleet, error) {
	f := &fleet{}
	if y == ours || y == oursWriteback {
		for _, o := range []string{b.options, optionsOfSystem[y]} {
			if o != "" {
				options = append(strings.Split(o, ","), options...)
			}
		}
		var err error
		if f.hub, err = b.newHub(); err != nil {
			return f, err
		}
	}
	for range n {
		if f.hub != nil {
			point, err := f.hub.mount(low, options...)
			if err != nil {
				return f, err
			}
			f.points = append(f.points, point)
			f.mounts = append(f.mounts, &mounted{system: y, lower: low, server: f.hub.server})
			continue
		}
		m, err := b.mount(y, low, deadline)
		if err != nil {
			return f, err
		}
		f.points = append(f.points, m.root())
		f.mounts = append(f.mounts, m)
	}
	return f, nil
}

// disband unmounts all of f.
func (b *bench) disband(f *fleet) error {
	if f.hub != nil {
		return b.end(f.hub)
	}
	var errs []error
	for _, m := range f.mounts {
		errs = append(errs, b.discard(m))
	}
	return errors.Join(errs...)
}

// resident is what f's servers have in memory, in bytes: VmRSS of proc_pid_status(5).
func (f *fleet) resident() (float64, error) { return f.inMemory("VmRSS") }

// anonymous is the part of it that is no page cache: files that are mapped, such as the servers' programs, are page cache.
func (f *fleet) anonymous() (float64, error) { return f.inMemory("RssAnon") }

func (f *fleet) inMemory(field string) (float64, error) {
	if f.hub != nil {
		return inMemory(f.hub.server.Process.Pid, field)
	}
	var sum float64
	for _, m := range f.mounts {
		if m.server == nil {
			continue
		}
		n, err := inMemory(m.server.Process.Pid, field)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}
