package powercut_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
)

// source says who wrote a byte; with the offset and the run's seed it says which byte that is.
type source struct {
	file uint32 // a file's identity, which a rename does not change; 0: nobody, it is a zero
	op   uint32 // the number of the operation; 0: it is the lower file's
}

func (s source) String() string {
	switch {
	case s.file == 0:
		return "zeros"
	case s.op == 0:
		return fmt.Sprintf("file %#x's lower data", s.file)
	}
	return fmt.Sprintf("file %#x's op %d", s.file, s.op)
}

// fill makes the bytes of source s from offset off on.
func fill(seed uint64, s source, off int64, buf []byte) {
	if s.file == 0 {
		clear(buf)
		return
	}
	if known := lowerContent[content{seed, s}]; off+int64(len(buf)) <= int64(len(known)) {
		copy(buf, known[off:])
		return
	}
	key := mix(seed ^ mix(uint64(s.file)<<32|uint64(s.op)))
	var word [8]byte
	for len(buf) > 0 {
		binary.LittleEndian.PutUint64(word[:], mix(key+uint64(off/8)))
		n := copy(buf, word[off%8:])
		off, buf = off+int64(n), buf[n:]
		for len(buf) >= 8 {
			binary.LittleEndian.PutUint64(buf, mix(key+uint64(off/8)))
			off, buf = off+8, buf[8:]
		}
	}
}

// content names what lowerContent holds.
type content struct {
	seed uint64
	src  source
}

// lowerContent is the lower data that was made already: most of what a check compares is that. Only the test's own goroutine
// changes it, before it compares.
var lowerContent = map[content][]byte{}

func remember(seed uint64, files []lowerFile) {
	for _, f := range files {
		key := content{seed, source{file: f.id}}
		if lowerContent[key] == nil && f.size > 0 {
			data := make([]byte, f.size)
			fill(seed, key.src, 0, data)
			lowerContent[key] = data
		}
	}
}

// mix is splitmix64's.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

const (
	workers = 4
	kib     = 1 << 10
	mib     = 1 << 20

	// Files of a worker are numbered from its number on: those of the lower first, then those that operations make.
	firstOp = 1000

	lowerMode = 0o644
)

func fileID(worker int, n uint32) uint32 { return uint32(worker+1)<<24 | n }

func workerDir(worker int) string { return fmt.Sprintf("w%d", worker) }

// lowerFile is one file of the lower directory.
type lowerFile struct {
	id   uint32
	name string
	size int64
	data spans // the rest are holes
}

// lowerFiles is the lower directory of a run.
func lowerFiles(seed uint64) []lowerFile {
	r := rand.New(rand.NewPCG(seed, 1))
	var files []lowerFile
	for w := range workers {
		n := uint32(0)
		add := func(name string, size int64, data ...span) {
			n++
			f := lowerFile{id: fileID(w, n), name: workerDir(w) + "/" + name, size: size, data: data}
			for i := range f.data {
				f.data[i].src = source{file: f.id}
			}
			files = append(files, f)
		}
		full := func(name string, size int64) { add(name, size, span{lo: 0, hi: size}) }
		add("empty", 0)
		for i := range 6 {
			full(fmt.Sprintf("small%d", i), 1*kib+r.Int64N(63*kib))
		}
		full("page", 4*kib)
		for i := range 3 {
			full(fmt.Sprintf("medium%d", i), 300*kib+r.Int64N(3*mib+700*kib))
		}
		size := mib + r.Int64N(mib)
		at := 64*kib + r.Int64N(400*kib)
		add("sparse", size, span{lo: 4 * kib, hi: 10*kib + 5}, span{lo: at, hi: at + 200*kib}, span{lo: size - 70*kib, hi: size})
		add("hole", 700*kib+r.Int64N(kib))
		if w == 0 {
			full("big", bigSize)
		}
	}
	return files
}
