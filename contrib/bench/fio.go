package main

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// fio(1) on files of the upper layer.

// fioMixes are fio's arguments; the amount of I/O is fixed.
var fioMixes = []struct {
	key, title string
	arguments  string
	quick      string // amounts
	full       string
}{
	{"mixed", "fio: 70 % random reads, 30 % random writes of 4 KiB", "--rw=randrw --rwmixread=70 --bs=4k --ioengine=psync", "512M", "2G"},
	{"stream", "fio: sequential writes of 128 KiB, fsync at the end", "--rw=write --bs=128k --ioengine=psync --end_fsync=1", "256M", "1G"},
	{"log", "fio: random writes of 8 KiB, fdatasync every 32", "--rw=randwrite --bs=8k --ioengine=psync --fdatasync=32", "16M", "64M"},
	{"direct", "fio: io_uring, O_DIRECT random reads of 4 KiB, depth 16", "--rw=randread --bs=4k --ioengine=io_uring --iodepth=16 --direct=1",
		"128M", "512M"},
}

func (b *bench) fios() []experiment {
	x := experiment{
		name:     "fio",
		systems:  all,
		deadline: b.within(10 * time.Minute),
		lower:    b.emptyLower,
		needs:    lacks("fio"),
	}
	for _, m := range fioMixes {
		x.rows = append(x.rows, row{key: m.key, title: m.title, must: []bound{against(kernel, 1.05)}})
	}
	x.measure = func(m *mounted, _ int) (values, error) {
		return b.worker(x.deadline, m, "fio", m.root(), fmt.Sprint(b.quick), b.base)
	}
	return []experiment{x}
}

// timeFio is the worker. Its arguments: a directory, whether the amounts are those of a quick run, one of the scratch file system.
func timeFio(args []string) (values, error) {
	v := values{}
	for _, m := range fioMixes {
		amount := m.full
		if args[1] == "true" {
			amount = m.quick
		}
		file := filepath.Join(args[0], m.key)
		if _, err := fill(file, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 128<<20); err != nil {
			return nil, err
		}
		fio := append([]string{"--output-format=json", "--name=" + m.key, "--filename=" + file, "--size=128M", "--io_size=" + amount,
			"--randseed=1", "--norandommap", "--invalidate=0", "--thread"}, strings.Fields(m.arguments)...)
		said, err := exec.Command("fio", fio...).CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("fio: %w: %s", err, last(string(said), 300))
		}
		var result struct {
			Jobs []struct {
				Read, Write struct {
					Runtime float64 `json:"runtime"` // ms
				}
			} `json:"jobs"`
		}
		text := string(said)
		if err := json.Unmarshal([]byte(text[max(0, strings.Index(text, "{")):]), &result); err != nil {
			return nil, fmt.Errorf("fio said %q: %w", last(text, 300), err)
		}
		if len(result.Jobs) != 1 {
			return nil, fmt.Errorf("fio said %q: %w", last(text, 300), unix.EPROTO)
		}
		v[m.key] = max(result.Jobs[0].Read.Runtime, result.Jobs[0].Write.Runtime) / 1000
	}
	return v, nil
}
