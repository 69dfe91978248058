package powercut_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// load is the worker processes of one run over one mount.
type load struct {
	procs []*workerProc
}

type workerProc struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	stderr bytes.Buffer
	ended  chan struct{} // closed when all it said was read
	events []event
	failed string // what the operation said that did not succeed
	failAt int64  // when
}

// startLoad starts a worker for each job.
func startLoad(jobs []job) (*load, error) {
	l := &load{}
	for _, j := range jobs {
		p, err := startWorker(j)
		if err != nil {
			return nil, errors.Join(err, l.stop(now()))
		}
		l.procs = append(l.procs, p)
	}
	return l, nil
}

func startWorker(j job) (*workerProc, error) {
	p := &workerProc{cmd: exec.Command("/proc/self/exe"), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), envRole+"="+roleWorker)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.cmd.Stderr = &p.stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	line, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go p.listen(out)
	_, err = p.in.Write(append(line, '\n'))
	return p, err
}

func (p *workerProc) listen(out io.Reader) {
	defer close(p.ended)
	in := json.NewDecoder(bufio.NewReader(out))
	for {
		var r record
		if err := in.Decode(&r); err != nil {
			return // its end, or a last record cut in two
		}
		switch last := len(p.events) - 1; {
		case r.Op != nil:
			p.events = append(p.events, event{op: *r.Op, start: r.At})
		case r.Err != "":
			p.failed = fmt.Sprintf("%v: %s", p.events[last].op, r.Err)
			p.failAt = r.At
		default:
			p.events[last].done = r.At
		}
	}
}

// loadLimit is how long workers may need to finish their last operations.
const loadLimit = 60 * time.Second

// stop ends the workers.
//
// Errors: an operation that failed before the time until, a worker that hangs or that failed by itself.
func (l *load) stop(until int64) (err error) {
	for _, p := range l.procs {
		_ = p.in.Close() // it may have ended
	}
	deadline := time.After(loadLimit)
	for _, p := range l.procs {
		select {
		case <-p.ended:
		case <-deadline:
			_ = p.cmd.Process.Kill() // it may just have ended
			<-p.ended
			err = errors.Join(err, fmt.Errorf("a worker hangs: %v", p.events[max(0, len(p.events)-1):]))
		}
		werr := p.cmd.Wait()
		if werr != nil && (p.failed == "" || p.failAt < until) {
			err = errors.Join(err, fmt.Errorf("a worker ended with %w: %s\n%s", werr, p.failed, strings.TrimSpace(p.stderr.String())))
		}
	}
	return err
}

// history is each worker's; after stop.
func (l *load) history() (h [][]event) {
	for _, p := range l.procs {
		h = append(h, p.events)
	}
	return h
}

// jobs are those of a load on the files that the world says are there.
func (w *world) jobs(dir string, next uint32, owner map[string]uint32) []job {
	jobs := make([]job, workers)
	for i := range jobs {
		jobs[i] = job{Seed: w.seed, Worker: i, Dir: dir, Next: next, Files: map[string]workFile{}}
		for name, id := range owner {
			if strings.HasPrefix(name, workerDir(i)+"/") {
				size := w.files[id].size
				jobs[i].Files[name] = workFile{ID: id, Size: size, Max: max(newFileMax, size+size/16)}
			}
		}
	}
	return jobs
}

// owner is who has which name in a world where that is certain.
func (w *world) owner() map[string]uint32 {
	owner := map[string]uint32{}
	for name, may := range w.names {
		for id := range may {
			if id != 0 {
				owner[name] = id
			}
		}
	}
	return owner
}
