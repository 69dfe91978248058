package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// report is what a run found; its JSON is the record of it.
type report struct {
	Machine  []string // what it ran on, a line each
	Sections []*section
	Notes    []string      `json:",omitempty"`
	table    func() string // of all sections
	plotted  bool          // as OUT/NAME.svg as well
}

// section is what an experiment found.
type section struct {
	Experiment string
	Systems    []system
	Samples    map[string]map[system][]sample // by row and system, a sample a round
	Failures   map[system]string
	Skipped    string  `json:",omitempty"` // why nothing was measured
	Seconds    float64 // that all of it took
	Rows       []rowRecord
	rows       []row
}

func newReport(b *bench) *report {
	var u unix.Utsname
	_ = unix.Uname(&u) // never fails
	machine := []string{
		"date: " + time.Now().UTC().Format(time.RFC3339),
		"kernel: " + unix.ByteSliceToString(u.Release[:]),
		"rounds: " + fmt.Sprintf("%d of a latency, %d of others", b.rounds, b.heavyRounds()),
		"quick: " + fmt.Sprint(b.quick),
		"ours: " + version(b.overlayfuse, "--version") + ", options: " + b.options,
		"fuse-overlayfs: " + version("fuse-overlayfs", "--version"),
	}
	for _, c := range [][]string{{"nproc"}, {"df", "-hT", b.base}, {"uptime"}} {
		machine = append(machine, c[0]+": "+version(c[0], c[1:]...))
	}
	r := &report{Machine: machine}
	r.table = r.copyupTable
	return r
}

// version is the first words that a command says of itself, or why it says none.
func version(command string, args ...string) string {
	said, err := exec.Command(command, args...).Output()
	if err != nil {
		return err.Error()
	}
	return strings.Join(strings.Fields(string(said)), " ")
}

func (r *report) section(x experiment) *section {
	s := &section{
		Experiment: x.name,
		Systems:    x.systems,
		Samples:    map[string]map[system][]sample{},
		Failures:   map[system]string{},
		rows:       x.rows,
	}
	for _, row := range x.rows {
		s.Samples[row.key] = map[system][]sample{}
	}
	r.Sections = append(r.Sections, s)
	return s
}

// add takes what y showed in a round. An error ends y's part in the experiment; a deadline is a sample, too, of the first row,
// which is the time of all that was done.
func (s *section) add(y system, v values, err error, deadline time.Duration) {
	if err != nil {
		s.Failures[y] = err.Error()
		fmt.Fprintf(os.Stderr, "  %s: %v\n", y, err)
	}
	late := errors.Is(err, errDeadline)
	for i, r := range s.rows {
		value, ok := v[r.key]
		switch {
		case ok && err == nil:
			s.Samples[r.key][y] = append(s.Samples[r.key][y], sample{Value: value})
		case late && i == 0:
			s.Samples[r.key][y] = append(s.Samples[r.key][y], sample{Value: deadline.Seconds(), Over: true})
		}
	}
}

// medians of a row by system.
func (s *section) medians(r row) map[system]sample {
	m := map[system]sample{}
	for y, samples := range s.Samples[r.key] {
		if v, ok := median(samples); ok {
			m[y] = v
		}
	}
	return m
}

// columns are the systems of the table.
func (r *report) columns() []system {
	columns := []system{kernel, fuseOverlayfs, ours}
	for _, y := range []system{oursWriteback, oursNoStream, mirror} {
		if slices.ContainsFunc(r.Sections, func(s *section) bool { return slices.Contains(s.Systems, y) }) {
			columns = append(columns, y)
		}
	}
	return append(columns, plain)
}

func tableHead(columns []system) string {
	cells := []string{"workload", "quantity"}
	for _, y := range columns {
		cells = append(cells, string(y))
	}
	cells = append(cells, "ours/kernel", "ours/fuse-overlayfs", "ours/plain", "must", "")
	return "| " + strings.Join(cells, " | ") + " |\n" + strings.Repeat("|---", len(cells)) + "|\n"
}

// rowRecord is a row for those who read the JSON and not this program.
type rowRecord struct {
	Key, Title, Unit string
	Medians          map[system]sample
	Bounds, Verdicts []string `json:",omitempty"`
}

// record fills in the section's Rows.
func (s *section) record() {
	s.Rows = nil
	for _, r := range s.rows {
		m := s.medians(r)
		t := rowRecord{Key: r.key, Title: r.title, Unit: r.unit.String(), Medians: m}
		for _, b := range r.must {
			t.Bounds = append(t.Bounds, b.text(r.unit))
			t.Verdicts = append(t.Verdicts, string(b.judge(m)))
		}
		s.Rows = append(s.Rows, t)
	}
}

// print writes the section's lines of a table with these columns.
func (s *section) print(w io.Writer, columns []system) {
	if s.Skipped != "" {
		rest := strings.Repeat(" |", len(columns)+5)
		_, _ = fmt.Fprintf(w, "| %s | skipped: %s |%s\n", s.Experiment, s.Skipped, rest) // as below
		return
	}
	for _, r := range s.rows {
		m := s.medians(r)
		cells := []string{s.Experiment, r.title}
		for _, y := range columns {
			text := ""
			if v, ok := m[y]; ok {
				text = v.text(r.unit)
			} else if s.Failures[y] != "" {
				text = "failed"
			}
			cells = append(cells, text)
		}
		// Two ratios have no ratio that says anything.
		ratios := []string{"", "", ""}
		if r.unit == seconds || r.unit == bytesUnit {
			ratios = []string{ratio(m, kernel), ratio(m, fuseOverlayfs), ratio(m, plain)}
		}
		var must, verdicts []string
		for _, b := range r.must {
			must = append(must, b.text(r.unit))
			verdicts = append(verdicts, string(b.judge(m))+b.ofMirror(m))
		}
		cells = append(append(cells, ratios...), strings.Join(must, ", "), strings.Join(verdicts, ", "))
		_, _ = fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | ")) // the caller's writer keeps its error
	}
}

// missed reports whether a bound is missed, or ours failed.
func (r *report) missed() bool {
	for _, s := range r.Sections {
		if s.Failures[ours] != "" {
			return true
		}
		for _, row := range s.rows {
			m := s.medians(row)
			if slices.ContainsFunc(row.must, func(b bound) bool { return b.judge(m) == missed }) {
				return true
			}
		}
	}
	return false
}

func (r *report) copyupTable() string {
	var w strings.Builder
	w.WriteString(tableHead(r.columns()))
	for _, s := range r.Sections {
		s.print(&w, r.columns())
	}
	return w.String()
}

// markdown is the whole report.
func (r *report) markdown() string {
	var w strings.Builder
	for _, line := range r.Machine {
		fmt.Fprintf(&w, "- %s\n", line)
	}
	fmt.Fprintf(&w, "\n%s", r.table())
	for _, s := range r.Sections {
		for _, y := range s.Systems {
			if f := s.Failures[y]; f != "" {
				fmt.Fprintf(&w, "\n%s on %s: %s\n", s.Experiment, y, f)
			}
		}
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&w, "\n%s\n", n)
	}
	return w.String()
}

// write prints the report, and keeps it as out/NAME.md and out/NAME.json.
func (r *report) write(name, out string) error {
	text := r.markdown()
	if _, err := os.Stdout.WriteString(text); err != nil || out == "" {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	for _, s := range r.Sections {
		s.record()
	}
	record, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	if r.plotted {
		if err := os.WriteFile(filepath.Join(out, name+".svg"), []byte(r.svg()), 0o644); err != nil {
			return err
		}
	}
	return errors.Join(
		os.WriteFile(filepath.Join(out, name+".md"), []byte(text), 0o644),
		os.WriteFile(filepath.Join(out, name+".json"), append(record, '\n'), 0o644))
}
