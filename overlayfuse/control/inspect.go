package control

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse"
)

// seen is what the table says of an ID at one moment.
type seen struct {
	id       string
	spec     Spec
	session  *overlayfuse.Session    // nil: nothing is mounted
	flushing *overlayfuse.FlushMeter // nil: no flush runs
}

// look gives all IDs that are mounted or flushed, in their order.
func (s *Server) look() []seen {
	s.mu.Lock()
	var all []seen
	for id, e := range s.entries {
		it := seen{id: id, spec: e.spec, session: e.session, flushing: e.flushing}
		if it.session != nil && over(it.session) {
			it.session = nil
		}
		if it.session != nil || it.flushing != nil {
			all = append(all, it)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b seen) int { return strings.Compare(a.id, b.id) })
	return all
}

func (it seen) state() (State, error) {
	if it.session == nil {
		return Unmounted, nil
	}
	on, err := it.session.Attached()
	if on {
		return Mounted, err
	}
	return Detached, err
}

func (s *Server) list() ([]MountInfo, error) {
	infos := []MountInfo{}
	for _, it := range s.look() {
		if it.session == nil {
			continue
		}
		state, err := it.state()
		if err != nil {
			return nil, err
		}
		infos = append(infos, MountInfo{Spec: it.spec, State: state, Device: it.session.Device()})
	}
	return infos, nil
}

// inspect takes no turn: it must answer while a flush holds it.
func (s *Server) inspect(ids []string) ([]Inspection, error) {
	all := s.look()
	for _, id := range ids {
		if !slices.ContainsFunc(all, func(it seen) bool { return it.id == id }) {
			return nil, fmt.Errorf("mount %s: %w: %w", id, ErrNotFound, unix.ENOENT)
		}
	}
	inspections := []Inspection{}
	for _, it := range all {
		if len(ids) > 0 && !slices.Contains(ids, it.id) {
			continue
		}
		state, err := it.state()
		if err != nil {
			return nil, err
		}
		i := Inspection{ID: it.id, State: state}
		if it.session != nil {
			fs := it.session.FS().Inspect()
			i.FS = &fs
		}
		if it.flushing != nil {
			p := it.flushing.Read()
			i.Flush = &p
		}
		inspections = append(inspections, i)
	}
	return inspections, nil
}
