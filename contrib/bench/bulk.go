package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Many writes into one big file: random blocks, and all of it from the start to the end.

const (
	page       = 4 << 10
	fsyncEvery = 1000
	chunk      = 1 << 20
	checked    = 1000 // blocks that are read back after random writes
)

func (b *bench) bulks() []experiment {
	return []experiment{b.randomWrites(), b.overwriting()}
}

func (b *bench) randomWrites() experiment {
	writes := 100_000
	if b.quick {
		writes = 20_000
	}
	x := experiment{
		name:     "random-writes",
		systems:  all,
		deadline: b.within(20 * time.Minute),
		lower:    b.bigLower,
		rows: []row{
			{
				key: "time", title: fmt.Sprintf("%d random 4 KiB writes, fsync every %d", writes, fsyncEvery),
				must: []bound{against(kernel, 1)},
			},
			{key: "rest", title: fmt.Sprintf("of it after the first %d writes", fsyncEvery)},
			// What the file system below takes for blocks that it has to allocate: no overlay that copies only what is written can have less.
			{key: "sparse", title: "the same into a sparse file, without an overlay"},
			{key: "share", title: "data in the upper / distinct bytes written", unit: times, must: []bound{atMost(1.1)}},
		},
	}
	x.measure = func(m *mounted, round int) (values, error) {
		v, err := b.worker(x.deadline, m, "random", filepath.Join(m.root(), bigName), filepath.Join(m.lower.dir, bigName),
			fmt.Sprint(writes), fmt.Sprint(round))
		if err != nil {
			return nil, err
		}
		u, err := statUpper(m, bigName)
		v["share"] = float64(u.dataBytes) / v["distinct"]
		if err != nil || m.system != plain {
			return v, err
		}
		if err := b.settle(); err != nil {
			return nil, err
		}
		sparse, err := b.worker(x.deadline, m, "random-sparse", filepath.Join(m.root(), "sparse"), filepath.Join(m.lower.dir, bigName),
			fmt.Sprint(writes), fmt.Sprint(round))
		v["sparse"] = sparse["time"]
		return v, err
	}
	return x
}

// timeRandom writes random blocks, and reads some back. Its arguments: the file, its lower, how many, the seed.
func timeRandom(args []string) (values, error) {
	path := args[0]
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, named("open", path, err)
	}
	if err := unix.Close(fd); err != nil {
		return nil, named("close", path, err)
	}
	w, err := newScatter(path, args[2], args[3])
	if err != nil {
		return nil, err
	}
	v := values{"distinct": float64(len(w.written) * page)}
	if err := writeBlocks(path, w.order, v); err != nil {
		return nil, named("write", path, err)
	}
	return v, checkBlocks(path, args[1], w)
}

// timeRandomSparse makes a sparse file of the size of another, and writes the blocks that timeRandom writes to that one. Its arguments are
// timeRandom's.
func timeRandomSparse(args []string) (values, error) {
	path := args[0]
	var st unix.Stat_t
	if err := unix.Lstat(args[1], &st); err != nil {
		return nil, named("stat", args[1], err)
	}
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, named("create", path, err)
	}
	if err := errors.Join(unix.Ftruncate(fd, st.Size), unix.Close(fd)); err != nil {
		return nil, named("truncate", path, err)
	}
	w, err := newScatter(path, args[2], args[3])
	if err != nil {
		return nil, err
	}
	v := values{}
	return v, named("write", path, writeBlocks(path, w.order, v))
}

// scatter is the blocks of a file that are written, in order, and the source of those that are looked at afterwards.
type scatter struct {
	order   []int64
	written map[int64]bool
	blocks  int64 // of the file
	pick    *rand.Rand
}

// newScatter draws writes blocks of path.
func newScatter(path, writes, seed string) (*scatter, error) {
	n, err := number(writes)
	if err != nil {
		return nil, err
	}
	from, err := number(seed)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, named("stat", path, err)
	}
	w := &scatter{
		order:   make([]int64, n),
		written: map[int64]bool{},
		blocks:  st.Size / page,
		pick:    rand.New(rand.NewPCG(4, uint64(from))),
	}
	for i := range w.order {
		w.order[i] = w.pick.Int64N(w.blocks)
		w.written[w.order[i]] = true
	}
	return w, nil
}

// block is what the block number n has after it was written.
func block(n int64) []byte {
	p := make([]byte, page)
	for i := range p {
		p[i] = byte(n>>(8*(i%4)) + int64(i))
	}
	return p
}

// writeBlocks writes the blocks in order, and puts into v how long that took.
func writeBlocks(path string, order []int64, v values) error {
	data := make(map[int64][]byte, len(order))
	for _, n := range order {
		data[n] = block(n)
	}
	start := time.Now()
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	var first float64
	for i, n := range order {
		if err := pwriteAll(fd, data[n], n*page); err != nil {
			return err
		}
		if (i+1)%fsyncEvery != 0 {
			continue
		}
		if err := unix.Fsync(fd); err != nil {
			return err
		}
		if first == 0 {
			first = since(start)
		}
	}
	if err := unix.Close(fd); err != nil {
		return err
	}
	v["time"] = since(start)
	v["rest"] = v["time"] - first
	return nil
}

// checkBlocks compares some blocks of path with what was written, or with the lower file.
func checkBlocks(path, lowerPath string, w *scatter) error {
	var fds [2]int
	for i, p := range []string{path, lowerPath} {
		fd, err := unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return named("open", p, err)
		}
		defer func() { _ = unix.Close(fd) }() // nothing was written
		fds[i] = fd
	}
	have, want := make([]byte, page), make([]byte, page)
	for range checked {
		n := w.pick.Int64N(w.blocks)
		if w.written[n] {
			want = block(n)
		} else if err := preadAll(fds[1], want, n*page); err != nil {
			return named("read", lowerPath, err)
		}
		if err := preadAll(fds[0], have, n*page); err != nil {
			return named("read", path, err)
		}
		if !bytes.Equal(have, want) {
			return fmt.Errorf("%s: block %d (written: %t) has wrong data: %w", path, n, w.written[n], unix.EUCLEAN)
		}
	}
	return nil
}

func (b *bench) overwriting() experiment {
	x := experiment{
		name:     "overwrite",
		systems:  append([]system{oursNoStream}, all...),
		deadline: b.within(10 * time.Minute),
		lower:    b.bigLower,
		rows: []row{
			{key: "overwrite", title: "overwrite a whole lower file, 1 MiB writes, fsync"},
			{key: "new", title: "write a new file of that size, fsync"},
			{key: "ratio", title: "overwriting / writing anew", unit: times, must: []bound{atMost(1.1)}},
			{key: "ratio-written", title: "the same before the fsyncs", unit: times}, // what a slow disk hides
		},
	}
	x.measure = func(m *mounted, round int) (values, error) {
		return b.worker(x.deadline, m, "overwrite", m.root(), fmt.Sprint(round))
	}
	return x
}

// timeOverwrite overwrites the big file in a directory and writes a new one, in odd rounds the new one first. Its
// arguments: the directory, the round.
func timeOverwrite(args []string) (values, error) {
	round, err := number(args[1])
	if err != nil {
		return nil, err
	}
	old, fresh := filepath.Join(args[0], bigName), filepath.Join(args[0], "new")
	var st unix.Stat_t
	if err := unix.Lstat(old, &st); err != nil {
		return nil, named("stat", old, err)
	}
	var overwritten, created filling
	steps := []func() error{
		func() (err error) { overwritten, err = fill(old, unix.O_WRONLY, st.Size); return err },
		func() (err error) {
			created, err = fill(fresh, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, st.Size)
			return err
		},
	}
	if round%2 == 1 {
		steps[0], steps[1] = steps[1], steps[0]
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, err
		}
		if err := syncPath(args[0], unix.Syncfs); err != nil {
			return nil, err
		}
	}
	return values{
		"overwrite":     overwritten.synced,
		"new":           created.synced,
		"ratio":         overwritten.synced / created.synced,
		"ratio-written": overwritten.written / created.written,
	}, nil
}

// filling is how many seconds after the open all was written, and all was synced and closed.
type filling struct{ written, synced float64 }

// fill writes size bytes to path and syncs them.
func fill(path string, flags int, size int64) (t filling, err error) {
	data := make([]byte, chunk)
	_, _ = newRandom(5).Read(data) // never fails
	start := time.Now()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return t, named("open", path, err)
	}
	for offset := int64(0); offset < size && err == nil; offset += chunk {
		err = pwriteAll(fd, data, offset)
	}
	t.written = since(start)
	if err == nil {
		err = unix.Fsync(fd)
	}
	err = errors.Join(err, unix.Close(fd))
	t.synced = since(start)
	return t, named("write", path, err)
}
