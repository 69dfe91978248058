package powercut_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// envRead is the directory that a reader reads.
const envRead = "POWERCUT_READ"

// readLimit is how long the reading of a tree may take before it counts as hanging.
const readLimit = 90 * time.Second

// seen is one file as a reader found it.
type seen struct {
	Name string // relative to the directory
	Mode uint32 // permissions
	Size int64  // from stat
	N    int64  // how many bytes follow: what read gave
	Err  string
	data []byte
}

// tree is all that is below a directory, by name. Directories are only walked through.
type tree map[string]*seen

func (t tree) sorted() []string { return slices.Sorted(maps.Keys(t)) }

// readTree reads a tree in a process of its own, which may hang without harm.
func readTree(dir string) (tree, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envRole+"="+roleReader, envRead+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	hung := time.AfterFunc(readLimit, func() { _ = cmd.Process.Kill() }) // it may just have ended
	t, err := parseTree(bufio.NewReaderSize(out, mib))
	err = errors.Join(err, cmd.Wait())
	if !hung.Stop() {
		err = fmt.Errorf("reading %s hangs: %d files in %v", dir, len(t), readLimit)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w\n%s", dir, err, &stderr)
	}
	return t, nil
}

func parseTree(in *bufio.Reader) (tree, error) {
	t := tree{}
	for {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return t, nil
		}
		if err != nil {
			return t, err
		}
		s := &seen{}
		if err := json.Unmarshal(line, s); err != nil {
			return t, err
		}
		s.data = make([]byte, s.N)
		if _, err := io.ReadFull(in, s.data); err != nil {
			return t, err
		}
		if s.Err == "" && s.N != s.Size {
			s.Err = fmt.Sprintf("stat says %d bytes, read gave %d", s.Size, s.N)
		}
		t[s.Name] = s
	}
}

func readerMain() int {
	dir := os.Getenv(envRead)
	out := bufio.NewWriterSize(os.Stdout, mib)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			return nil
		}
		s := &seen{Err: fmt.Sprint(err)}
		if err == nil {
			s = readFile(path)
		}
		if s.Name, err = filepath.Rel(dir, path); err != nil {
			return err
		}
		s.N = int64(len(s.data))
		head, err := json.Marshal(s)
		if err != nil {
			return err
		}
		if _, err := out.Write(append(head, '\n')); err != nil {
			return err
		}
		_, err = out.Write(s.data)
		return err
	})
	if err = errors.Join(err, out.Flush()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func readFile(path string) *seen {
	st, err := os.Lstat(path)
	if err != nil {
		return &seen{Err: err.Error()}
	}
	s := &seen{Mode: uint32(st.Mode().Perm()), Size: st.Size()}
	if !st.Mode().IsRegular() {
		s.Err = "not a regular file: " + st.Mode().String()
		return s
	}
	if s.data, err = os.ReadFile(path); err != nil {
		s.Err = err.Error()
	}
	return s
}
