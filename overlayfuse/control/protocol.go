package control

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse"
)

// Version is the protocol's.
const Version = 1

// maxFrame bounds the memory of one request: 500 layers of PATH_MAX bytes, escaped by JSON, fit.
const maxFrame = 16 << 20

// ErrNotFound says that the server has no mount with the ID.
var ErrNotFound = errors.New("no such mount")

// Spec is one overlay mount, read-write or read-only.
type Spec struct {
	ID         string   `json:"id"`          // any text that is not empty
	MountPoint string   `json:"mount_point"` // an existing directory, absolute
	Lower      []string `json:"lower"`       // the topmost first, absolute
	Upper      string   `json:"upper,omitempty"`
	Work       string   `json:"work,omitempty"`
	Options    []string `json:"options,omitempty"` // further options as after -o
}

func (s Spec) equal(o Spec) bool {
	return s.ID == o.ID && s.MountPoint == o.MountPoint && slices.Equal(s.Lower, o.Lower) && s.Upper == o.Upper &&
		s.Work == o.Work && slices.Equal(s.Options, o.Options)
}

// State of a mount that the server knows.
type State string

const (
	// Mounted is on its mount point.
	Mounted State = "mounted"
	// Detached is off its mount point and still in use elsewhere.
	Detached State = "detached"
	// Unmounted has no mount: its directories are being flushed. Only Inspect tells of such.
	Unmounted State = "unmounted"
)

// MountInfo is one mount that the server serves.
type MountInfo struct {
	Spec   Spec   `json:"spec"`
	State  State  `json:"state"`
	Device string `json:"device"` // MAJOR:MINOR
}

// Inspection is what goes on in one mount.
type Inspection struct {
	ID    string `json:"id"`
	State State  `json:"state"`
	// Flush is the progress of the flush that runs, if one does.
	Flush *overlayfuse.FlushProgress `json:"flush,omitempty"`
	// FS is nil if nothing is mounted.
	FS *overlayfuse.Inspection `json:"fs,omitempty"`
}

// Info is what a server says about itself.
type Info struct {
	Version int  `json:"version"`
	PID     int  `json:"pid"`
	Closing bool `json:"closing,omitempty"` // stops when its last mount is gone, takes no new ones
}

// op names what a request asks for.
type op string

const (
	opPing    op = "ping"
	opMount   op = "mount"
	opUnmount op = "unmount"
	opFlush   op = "flush"
	opList    op = "list"
	opInspect op = "inspect"
)

type request struct {
	Version      int      `json:"version"`
	Op           op       `json:"op"`
	Spec         *Spec    `json:"spec,omitempty"`          // mount, flush
	ID           string   `json:"id,omitempty"`            // unmount
	Lazy         bool     `json:"lazy,omitempty"`          // unmount
	KeepMetacopy bool     `json:"keep_metacopy,omitempty"` // flush
	IDs          []string `json:"ids,omitempty"`           // inspect; none: all
}

type response struct {
	Version     int                     `json:"version"`
	Error       *Error                  `json:"error,omitempty"`
	Info        *Info                   `json:"info,omitempty"`
	Flush       *overlayfuse.FlushStats `json:"flush,omitempty"`
	Mounts      []MountInfo             `json:"mounts,omitempty"`
	Inspections []Inspection            `json:"inspections,omitempty"`
}

// Error is an error of the server, as its client sees it.
type Error struct {
	Text     string     `json:"text"`
	Errno    unix.Errno `json:"errno"`
	NotFound bool       `json:"not_found,omitempty"`
}

func (e *Error) Error() string { return e.Text }

// Unwrap makes errors.Is work for the errno and for ErrNotFound.
func (e *Error) Unwrap() []error {
	if e.NotFound {
		return []error{e.Errno, ErrNotFound}
	}
	return []error{e.Errno}
}

// wireError is nil for no error.
func wireError(err error) *Error {
	if err == nil {
		return nil
	}
	e := &Error{Text: err.Error(), Errno: unix.EIO, NotFound: errors.Is(err, ErrNotFound)}
	var errno unix.Errno
	if errors.As(err, &errno) {
		e.Errno = errno
	}
	return e
}

func writeFrame(w io.Writer, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	if len(body) > maxFrame {
		return fmt.Errorf("message of %d bytes, at most %d are possible: %w", len(body), maxFrame, unix.EMSGSIZE)
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	_, err = w.Write(append(frame, body...))
	return err
}

func readFrame(r io.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxFrame {
		return fmt.Errorf("message of %d bytes, at most %d are possible: %w", n, maxFrame, unix.EMSGSIZE)
	}
	// Grown as the bytes come, so that a length alone costs nothing.
	body, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err != nil {
		return err
	}
	if len(body) < int(n) {
		return io.ErrUnexpectedEOF
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("decode: %w (%w)", unix.EPROTO, err)
	}
	return nil
}
