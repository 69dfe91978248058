package powercut_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"
)

// job is what a worker is told at its start. It works until its standard input ends.
type job struct {
	Seed   uint64 // of the content
	Worker int
	Dir    string // the mount
	Next   uint32 // number of the first operation
	Files  map[string]workFile
}

// workFile is a file as its worker knows it.
type workFile struct {
	ID   uint32
	Size int64
	Max  int64 // it is not made larger
}

// worker is the state of a worker process: the only one that changes its files.
type worker struct {
	job
	rand *rand.Rand
	open map[uint32]int // descriptors that are kept, by file
	out  *json.Encoder
}

func workerMain() int {
	debug.SetPanicOnFault(true) // a store into a mapping whose server is gone
	in := bufio.NewReader(os.Stdin)
	line, err := in.ReadBytes('\n')
	w := &worker{open: map[uint32]int{}, out: json.NewEncoder(os.Stdout)}
	if err == nil {
		err = json.Unmarshal(line, &w.job)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		return 1
	}
	w.rand = rand.New(rand.NewPCG(w.Seed, uint64(w.Worker)<<32|uint64(w.Next)))
	var stop atomic.Bool
	go func() {
		_, _ = io.Copy(io.Discard, in) // any end of it is an end
		stop.Store(true)
	}()
	for !stop.Load() {
		if err := w.step(); err != nil {
			fmt.Fprintln(os.Stderr, "worker:", err)
			return 1
		}
		if w.rand.IntN(3) == 0 {
			time.Sleep(time.Duration(w.rand.IntN(5000)) * time.Microsecond)
		}
	}
	return 0
}

// step does one operation and tells the parent before and after.
func (w *worker) step() error {
	o := w.choose()
	if err := w.out.Encode(record{At: now(), Op: &o}); err != nil {
		return err
	}
	err := w.do(o)
	r := record{At: now()}
	if err != nil {
		r.Err = err.Error()
	}
	if werr := w.out.Encode(r); werr != nil {
		return werr
	}
	if err != nil {
		return fmt.Errorf("%v: %w", o, err)
	}
	w.note(o)
	return nil
}

// weights of the operations, in order.
var weights = []struct {
	kind   kind
	weight int
}{
	{opWrite, 40}, {opStore, 10}, {opTruncate, 7}, {opRewrite, 3}, {opPunch, 4}, {opChmod, 6},
	{opRename, 5}, {opUnlink, 2}, {opCreate, 3}, {opFsync, 11}, {opFdatasync, 6},
}

func (w *worker) chooseKind() kind {
	total := 0
	for _, k := range weights {
		total += k.weight
	}
	n := w.rand.IntN(total)
	for _, k := range weights {
		if n -= k.weight; n < 0 {
			return k.kind
		}
	}
	return opWrite
}

const (
	spareNames = 16
	mostFiles  = 22
	leastFiles = 8
	newFileMax = 512 * kib
)

// choose makes an operation that can succeed.
func (w *worker) choose() op {
	for {
		o := op{N: w.Next, Kind: w.chooseKind()}
		names := slices.Sorted(maps.Keys(w.Files))
		o.Name = names[w.rand.IntN(len(names))]
		f := w.Files[o.Name]
		o.File = f.ID
		ok := true
		switch o.Kind {
		case opWrite:
			o.Off, o.Len = w.writeRange(f)
			o.Sync = w.rand.IntN(4) == 0
		case opStore:
			if ok = f.Size > 0; ok {
				o.Off = w.rand.Int64N(f.Size)
				o.Len = min(w.length(), f.Size-o.Off)
				o.Sync = w.rand.IntN(2) == 0
			}
		case opPunch:
			if ok = f.Size > 0; ok {
				o.Off, o.Len = w.align(w.rand.Int64N(f.Size)), w.length()
				ok = f.Max < bigSize || w.rand.IntN(2) == 0
			}
		case opTruncate:
			o.Len = w.truncation(f)
		case opRewrite:
			o.Len = min(w.length(), f.Max)
			ok = f.Max < bigSize // it is to stay large
		case opChmod:
			o.Mode = []uint32{0o600, 0o640, 0o644, 0o755, 0o700, 0o666}[w.rand.IntN(6)]
		case opRename:
			ok = w.chooseTarget(&o)
		case opUnlink:
			ok = len(w.Files) > leastFiles && f.Max < bigSize
		case opCreate:
			o.File = fileID(w.Worker, w.Next)
			o.Name = w.freeName()
			ok = len(w.Files) < mostFiles && o.Name != ""
		case opFsync, opFdatasync:
		}
		if ok {
			w.Next++
			return o
		}
	}
}

// chooseTarget is a new name, or that of another file.
func (w *worker) chooseTarget(o *op) bool {
	o.To = w.freeName()
	if w.rand.IntN(3) == 0 && len(w.Files) > leastFiles {
		names := slices.Sorted(maps.Keys(w.Files))
		o.To = names[w.rand.IntN(len(names))]
		o.Over = w.Files[o.To].ID
		if w.Files[o.To].Max >= bigSize {
			return false
		}
	}
	return o.To != "" && o.To != o.Name
}

// freeName is a name that no file has now; some had files of the lower.
func (w *worker) freeName() string {
	for range 20 {
		name := fmt.Sprintf("%s/n%d", workerDir(w.Worker), w.rand.IntN(spareNames))
		if w.rand.IntN(3) == 0 {
			name = fmt.Sprintf("%s/small%d", workerDir(w.Worker), w.rand.IntN(6))
		}
		if _, taken := w.Files[name]; !taken {
			return name
		}
	}
	return ""
}

func (w *worker) align(off int64) int64 {
	if w.rand.IntN(2) == 0 {
		return off
	}
	return off / blockSize * blockSize
}

// length is of one write: a few bytes, about a page, some pages, or many.
func (w *worker) length() int64 {
	switch n := w.rand.IntN(20); {
	case n < 4:
		return 1 + w.rand.Int64N(200)
	case n < 11:
		return 1 + w.rand.Int64N(8*kib)
	case n < 17:
		return blockSize * (1 + w.rand.Int64N(16))
	default:
		return 1 + w.rand.Int64N(400*kib)
	}
}

func (w *worker) writeRange(f workFile) (off, length int64) {
	switch n := w.rand.IntN(10); {
	case n < 2:
		off = f.Size
	case n < 3:
		off = f.Size + w.rand.Int64N(100*kib)
	case f.Size > 0:
		off = w.align(w.rand.Int64N(f.Size))
	}
	off = min(off, f.Max-1)
	return off, min(w.length(), f.Max-off)
}

func (w *worker) truncation(f workFile) int64 {
	switch {
	case f.Max >= bigSize: // it is to stay large
		return f.Max - w.rand.Int64N(8*mib)
	case w.rand.IntN(3) == 0:
		return w.align(w.rand.Int64N(f.Max))
	}
	return max(0, min(f.Max, f.Size+w.rand.Int64N(64*kib)-40*kib))
}

// note is what a worker knows after an operation.
func (w *worker) note(o op) {
	f := w.Files[o.Name]
	switch o.Kind {
	case opWrite:
		f.Size = max(f.Size, o.Off+o.Len)
	case opTruncate, opRewrite:
		f.Size = o.Len
	case opCreate:
		f = workFile{ID: o.File, Max: newFileMax}
	case opUnlink:
		w.forget(o.File)
		delete(w.Files, o.Name)
		return
	case opRename:
		if o.Over != 0 {
			w.forget(o.Over)
		}
		delete(w.Files, o.Name)
		w.Files[o.To] = f
		return
	case opStore, opPunch, opChmod, opFsync, opFdatasync:
	}
	w.Files[o.Name] = f
}
