package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// What fsync(2) costs after one 4 KiB write, by the size of the file and by how much of it is in the upper and clean.

const (
	littleName, cleanName = "little", "clean"
	littleSize            = 1 << 20
	syncs                 = 60 // of each file
)

func (b *bench) syncedLower() (*lower, error) {
	return b.lowerOnce("fsync", func(dir string) error {
		path := func(name string) string { return filepath.Join(dir, name) }
		return errors.Join(writeRandom(path(littleName), littleSize, 3), writeSparse(path(bigName), sparseSize), writeSparse(path(cleanName), sparseSize))
	})
}

// cleanSize is how much of one file is written and synced before.
func (b *bench) cleanSize() int64 { return b.bigSize() / 4 }

func (b *bench) fsyncs() experiment {
	clean := bytesUnit.format(float64(b.cleanSize()))
	x := experiment{
		name:     "fsync",
		systems:  []system{kernel, ours},
		rounds:   func(system) int { return b.rounds },
		deadline: b.within(120 * time.Second),
		lower:    b.syncedLower,
		rows: []row{
			{key: littleName, title: "fsync after 4 KiB in a file of 1 MiB"},
			{key: bigName, title: "in a sparse one of 64 GiB"},
			{key: cleanName, title: "in a sparse one of 64 GiB with " + clean + " that were written and synced before"},
			{key: "size", title: "the second to the first, by pairs", unit: times, must: []bound{atMost(1.5)}},
			{key: "clean-size", title: "the third to the first, by pairs", unit: times, must: []bound{atMost(1.5)}},
		},
	}
	x.measure = func(m *mounted, _ int) (values, error) {
		return b.worker(x.deadline, m, "fsync", m.root(), fmt.Sprint(b.cleanSize()))
	}
	return x
}

// timeSyncs writes 4 KiB and times fsync, of each file in turn.
func timeSyncs(args []string) (values, error) {
	dir := args[0]
	written, err := number(args[1])
	if err != nil {
		return nil, err
	}
	names := []string{littleName, bigName, cleanName}
	files := make([]*os.File, len(names))
	for i, name := range names {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }() // all was synced
		files[i] = f
	}
	piece := make([]byte, 1<<20)
	_, _ = newRandom(4).Read(piece) // never fails
	for at := int64(0); at < written; at += int64(len(piece)) {
		if err := pwriteAll(int(files[2].Fd()), piece, at+sparseSize/4); err != nil {
			return nil, err
		}
	}
	took := make([][]float64, len(names))
	for n := range syncs + 1 {
		for i, f := range files {
			// A block of its own each time, for which space has to be found.
			if err := pwriteAll(int(f.Fd()), piece[:4<<10], int64(2*n+1)*4<<10); err != nil {
				return nil, err
			}
			start := time.Now()
			if err := unix.Fsync(int(f.Fd())); err != nil {
				return nil, fmt.Errorf("fsync %s: %w", names[i], err)
			}
			if n > 0 { // the first one makes the copy-up durable, too
				took[i] = append(took[i], since(start))
			}
		}
	}
	v := values{}
	for i, key := range []string{"size", "clean-size"} {
		var pairs []float64
		for n, first := range took[0] {
			pairs = append(pairs, took[i+1][n]/first)
		}
		v[key] = middle(pairs)
	}
	for i, name := range names {
		v[name] = middle(took[i])
	}
	return v, nil
}
