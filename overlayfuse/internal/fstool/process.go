package fstool

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// process holds what a script keeps open. It serves one request at a time.
type process struct {
	files   map[string]*os.File
	maps    map[string][]byte
	handles map[string]unix.FileHandle
}

// op is one operation: its usage (words after the name; a trailing ... takes the rest, [x] may be missing) and its work.
type op struct {
	usage string
	run   func(p *process, args []string) (string, error)
}

// operations is every operation by its name, one table a file.
var operations = merge(metaOps, nameOps, fileOps, xattrOps, dirOps, lockOps, mapOps, handleOps, treeOps, otherOps)

func merge(tables ...map[string]op) map[string]op {
	all := map[string]op{}
	for _, t := range tables {
		maps.Copy(all, t)
	}
	return all
}

func newProcess() *process {
	return &process{files: map[string]*os.File{}, maps: map[string][]byte{}, handles: map[string]unix.FileHandle{}}
}

// badRequest is an error of the script, not of the file system.
type badRequest string

func (b badRequest) Error() string { return string(b) }

func (p *process) serve(words []string) Reply {
	if len(words) == 0 {
		return Reply{Bad: "no operation"}
	}
	o, ok := operations[words[0]]
	if !ok {
		return Reply{Bad: "no operation " + words[0]}
	}
	args := words[1:]
	if !o.accepts(len(args)) {
		return Reply{Bad: fmt.Sprintf("usage: %s %s", words[0], o.usage)}
	}
	out, err := o.run(p, args)
	var errno syscall.Errno
	switch {
	case err == nil:
		return Reply{Out: out}
	case errors.As(err, &errno):
		return Reply{Errno: unix.ErrnoName(errno)}
	default:
		return Reply{Bad: err.Error()}
	}
}

// accepts tells whether n words fit the usage.
func (o op) accepts(n int) bool {
	least, most := 0, 0
	for _, w := range strings.Fields(o.usage) {
		switch {
		case strings.HasSuffix(w, "..."):
			most = 1 << 20
		case strings.HasPrefix(w, "["):
			most++
		default:
			least++
			most++
		}
	}
	return n >= least && n <= most
}

// file returns the descriptor that the script named.
func (p *process) file(name string) (*os.File, error) {
	f, ok := p.files[name]
	if !ok {
		return nil, badRequest("no descriptor " + name)
	}
	return f, nil
}

// fd is file for those who need the number. The descriptor stays open: p.files holds it.
func (p *process) fd(name string) (int, error) {
	f, err := p.file(name)
	if err != nil {
		return -1, err
	}
	return int(f.Fd()), nil
}

// keep files an open descriptor under a name; the one that had it is closed.
func (p *process) keep(name string, fd int) error {
	if old, ok := p.files[name]; ok {
		if err := old.Close(); err != nil {
			return err
		}
	}
	p.files[name] = os.NewFile(uintptr(fd), name)
	return nil
}

func octal(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 8, 32)
	if err != nil {
		return 0, badRequest("bad mode " + s)
	}
	return uint32(n), nil
}

// number reads a decimal, with K or M for 1024 and 1024 squared.
func number(s string) (int64, error) {
	unit := int64(1)
	switch {
	case strings.HasSuffix(s, "K"):
		unit, s = 1<<10, strings.TrimSuffix(s, "K")
	case strings.HasSuffix(s, "M"):
		unit, s = 1<<20, strings.TrimSuffix(s, "M")
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, badRequest("bad number " + s)
	}
	return n * unit, nil
}

// numbers reads all of them.
func numbers(words ...string) ([]int64, error) {
	out := make([]int64, len(words))
	for i, w := range words {
		n, err := number(w)
		if err != nil {
			return nil, err
		}
		out[i] = n
	}
	return out, nil
}

// flags ors the values of the names in a comma separated list.
func flags(list string, known map[string]int) (int, error) {
	all := 0
	for _, name := range strings.Split(list, ",") {
		v, ok := known[name]
		if !ok {
			return 0, badRequest("unknown flag " + name)
		}
		all |= v
	}
	return all, nil
}
