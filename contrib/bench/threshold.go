package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Up to which size a lower file had better be copied whole at its first write: each size, copied whole and partially.

// oursPartial and oursWhole are ours with its option partial_above, the size up to which a lower file is copied whole at
// its first write, at either end.
const (
	oursPartial system = "partial"
	oursWhole   system = "whole"
)

const thresholdBytes = 256 << 20 // of all files of a size together, at most

func (b *bench) threshold() (*report, error) {
	r := newReport(b)
	r.table = r.thresholdTable
	for _, size := range []int64{4 << 10, 16 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 4 << 20, 16 << 20} {
		name := bytesUnit.format(float64(size))
		if !b.only.MatchString(name) {
			continue
		}
		x := b.thresholdAt(name, size)
		s := r.section(x)
		if err := b.experiment(x, s); err != nil {
			return r, err
		}
		for _, f := range s.Failures {
			return r, fmt.Errorf("%s: %s: %w", name, f, unix.EIO)
		}
		if err := b.dropLower(x.name); err != nil {
			return r, err
		}
	}
	return r, nil
}

// thresholdAt is the experiment with files of one size.
func (b *bench) thresholdAt(name string, size int64) experiment {
	files := int(min(400, thresholdBytes/size))
	if b.quick {
		files = max(8, files/8)
	}
	x := experiment{
		name:     name,
		systems:  []system{oursPartial, oursWhole},
		deadline: b.within(5 * time.Minute),
		rows: []row{
			{key: "write", title: "first write"},
			{key: "total", title: "open, write, close"},
			{key: "fsync", title: "then fsync"},
			{key: "read", title: "read it whole"},
			{key: "usage", title: "disk usage", unit: bytesUnit},
		},
	}
	x.lower = func() (*lower, error) {
		return b.lowerOnce(name, func(dir string) error {
			return makeFiles(dir, files, func() int64 { return size })
		})
	}
	x.measure = func(m *mounted, _ int) (values, error) {
		v, err := b.worker(x.deadline, m, "first", m.root(), fmt.Sprint(files))
		if err != nil {
			return nil, err
		}
		usage, err := diskUsage(m.upper())
		if err != nil {
			return nil, err
		}
		// On a mount that has nothing cached, and before anything has completed the files.
		if err := m.detach(); err != nil {
			return nil, err
		}
		if err := b.attach(m); err != nil {
			return nil, err
		}
		read, err := b.worker(x.deadline, m, "read", m.root(), fmt.Sprint(files))
		if err != nil {
			return nil, err
		}
		v["read"], v["usage"] = read["read"], float64(usage)/float64(files)
		return v, nil
	}
	return x
}

// thresholdTable has a line for each size.
func (r *report) thresholdTable() string {
	w := "| size |"
	rule := "|---|"
	for _, row := range r.Sections[0].rows {
		w += fmt.Sprintf(" %s: partial | whole | partial/whole |", row.title)
		rule += "---|---|---|"
	}
	w += "\n" + rule + "\n"
	for _, s := range r.Sections {
		w += "| " + s.Experiment + " |"
		for _, row := range s.rows {
			m := s.medians(row)
			partial, ok := m[oursPartial]
			whole, ok2 := m[oursWhole]
			if !ok || !ok2 {
				w += " | | |"
				continue
			}
			w += fmt.Sprintf(" %s | %s | %s |", partial.text(row.unit), whole.text(row.unit), digits(partial.Value/whole.Value))
		}
		w += "\n"
	}
	return w
}

// timeFirstWrites writes 100 bytes into the middle of each file of a directory, then syncs each. Its arguments: the
// directory, how many files.
func timeFirstWrites(args []string) (values, error) {
	n, err := number(args[1])
	if err != nil {
		return nil, err
	}
	var writes, totals, syncs []float64
	for i := range int(n) {
		path := filepath.Join(args[0], smallName(i))
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return nil, named("stat", path, err)
		}
		data := make([]byte, appendBytes)
		start := time.Now()
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, named("open", path, err)
		}
		opened := time.Now()
		err = pwriteAll(fd, data, st.Size/2+10)
		writes = append(writes, since(opened))
		if err = errors.Join(err, unix.Close(fd)); err != nil {
			return nil, named("write", path, err)
		}
		totals = append(totals, since(start))
	}
	for i := range int(n) {
		start := time.Now()
		if err := syncPath(filepath.Join(args[0], smallName(i)), unix.Fsync); err != nil {
			return nil, err
		}
		syncs = append(syncs, since(start))
	}
	return values{"write": middle(writes), "total": middle(totals), "fsync": middle(syncs)}, nil
}

// timeReads reads each file of a directory whole. Its arguments: the directory, how many files.
func timeReads(args []string) (values, error) {
	n, err := number(args[1])
	if err != nil {
		return nil, err
	}
	var reads []float64
	buffer := make([]byte, 128<<10)
	for i := range int(n) {
		path := filepath.Join(args[0], smallName(i))
		if err := statPath(path); err != nil {
			return nil, err
		}
		start := time.Now()
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, named("open", path, err)
		}
		for got := 1; got > 0 && err == nil; {
			got, err = unix.Read(fd, buffer)
		}
		if err = errors.Join(err, unix.Close(fd)); err != nil {
			return nil, named("read", path, err)
		}
		reads = append(reads, since(start))
	}
	return values{"read": middle(reads)}, nil
}

func middle(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}
