package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// hub is one "overlayfuse serve": a process that serves many mounts, as the snapshotter has it.
type hub struct {
	dir    string // holds the socket, the log and what the mounts need
	socket string
	server *exec.Cmd
	exited chan ending
	mounts int
}

// controlTimeout bounds one request to a hub.
const controlTimeout = 30 * time.Second

// newHub starts a server without mounts and returns when it listens.
func (b *bench) newHub() (*hub, error) {
	h := &hub{dir: filepath.Join(b.base, fmt.Sprintf("%d-hub", b.serial)), exited: make(chan ending, 1)}
	b.serial++
	h.socket = filepath.Join(h.dir, "socket")
	if err := os.Mkdir(h.dir, 0o755); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(h.dir, "log"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }() // the server has its own descriptor
	h.server = exec.Command(b.overlayfuse, "serve", "--socket", h.socket)
	h.server.Stdout, h.server.Stderr = log, log
	h.server.SysProcAttr = childAttributes()
	if b.group != nil {
		b.group.enter(h.server)
	}
	if err := h.server.Start(); err != nil {
		return nil, err
	}
	b.hubs = append(b.hubs, h)
	go func() { h.exited <- ending{h.server.Wait()} }()
	for end := time.Now().Add(controlTimeout); ; {
		err := h.ask(map[string]any{"op": "ping"})
		if err == nil {
			return h, nil
		}
		if time.Now().After(end) {
			said, _ := os.ReadFile(log.Name()) // only to explain the error at hand
			return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(string(said)))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// ask sends a request and reads the answer; the protocol is drawn in overlayfuse/control/doc.go.
func (h *hub) ask(request map[string]any) error {
	conn, err := net.DialTimeout("unix", h.socket, controlTimeout)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // all was read, or there is an error already
	if err := conn.SetDeadline(time.Now().Add(controlTimeout)); err != nil {
		return err
	}
	request["version"] = 1
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)); err != nil {
		return err
	}
	head := make([]byte, 4)
	if _, err := io.ReadFull(conn, head); err != nil {
		return err
	}
	answer := make([]byte, min(binary.BigEndian.Uint32(head), 1<<20))
	if _, err := io.ReadFull(conn, answer); err != nil {
		return err
	}
	var r struct {
		Error *struct {
			Text  string     `json:"text"`
			Errno unix.Errno `json:"errno"`
		} `json:"error"`
	}
	if err := json.Unmarshal(answer, &r); err != nil {
		return err
	}
	if r.Error != nil {
		return fmt.Errorf("%s: %w", r.Error.Text, r.Error.Errno)
	}
	return nil
}

// mount mounts low with a new upper and further options, and returns the mount point.
func (h *hub) mount(low *lower, options ...string) (string, error) {
	id := fmt.Sprint(h.mounts)
	h.mounts++
	dir := filepath.Join(h.dir, id)
	for _, d := range []string{"upper", "work", "mnt"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return "", err
		}
	}
	point := filepath.Join(dir, "mnt")
	return point, h.ask(map[string]any{"op": "mount", "spec": map[string]any{
		"id": id, "mount_point": point, "lower": low.layers(),
		"upper": filepath.Join(dir, "upper"), "work": filepath.Join(dir, "work"), "options": options,
	}})
}

// end ends the server and all its mounts, and removes its directory. It may be called at any time.
func (b *bench) end(h *hub) error {
	_ = h.server.Process.Kill() // it may have ended already
	<-h.exited
	points, err := mountPoints()
	if err != nil {
		return err
	}
	for _, p := range points {
		if strings.HasPrefix(p, h.dir+"/") {
			err = errors.Join(err, unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW))
		}
	}
	if err != nil {
		return err
	}
	b.hubs = slices.DeleteFunc(b.hubs, func(o *hub) bool { return o == h })
	return os.RemoveAll(h.dir)
}

// inMemory is a field of proc_pid_status(5) that says what a process has in memory, in bytes.
func inMemory(pid int, field string) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			kib, err := number(strings.Fields(rest)[0])
			return float64(kib) * 1024, err
		}
	}
	return 0, fmt.Errorf("no %s of process %d: %w", field, pid, unix.ENODATA)
}
