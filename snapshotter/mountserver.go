package snapshotter

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/control"
)

// MountServer is the Mounter of the overlayfuse mount server, "overlayfuse serve", behind its control socket.
type MountServer struct {
	// Socket is its control socket.
	Socket string
	// Autostart starts Command when nothing listens on Socket.
	Autostart bool
	Command   []string
	// StartTimeout is how long Command may take to answer.
	StartTimeout time.Duration
	// AnswerTimeout is how long the server may take for what it answers at once, whatever else it does; beyond that it hangs. 0: 10 s.
	AnswerTimeout time.Duration
	Log           *logrus.Entry

	starting sync.Mutex // held while Command is started, so that it is started once
}

var _ Mounter = (*MountServer)(nil)

const answerTimeout = 10 * time.Second

// startPoll is the time between two attempts to reach a server that starts.
const startPoll = 20 * time.Millisecond

// Mount implements Mounter.
func (m *MountServer) Mount(ctx context.Context, spec MountSpec) error {
	return m.call(ctx, func(c *control.Client) error { return c.Mount(ctx, control.Spec(spec)) })
}

// Unmount implements Mounter: lazily, so that binds go on.
func (m *MountServer) Unmount(ctx context.Context, id string) error {
	return m.call(ctx, func(c *control.Client) error {
		if err := c.Unmount(ctx, id, true); !errors.Is(err, control.ErrNotFound) {
			return err
		}
		return nil
	})
}

// Flush implements Mounter. While it lasts, the server logs its progress and "overlayfuse inspect" shows it.
func (m *MountServer) Flush(ctx context.Context, spec MountSpec, opts FlushOptions) error {
	return m.call(ctx, func(c *control.Client) error {
		flush := c.Flush
		if opts.KeepMetacopy {
			flush = c.FlushKeepingMetacopy
		}
		stats, err := flush(ctx, control.Spec(spec))
		if err == nil {
			m.Log.WithField("id", spec.ID).Debugf("flushed: %+v", stats)
		}
		return err
	})
}

// Mounted implements Mounter.
func (m *MountServer) Mounted(ctx context.Context) (specs []MountSpec, err error) {
	err = m.call(ctx, func(c *control.Client) error {
		ctx, cancel := m.soon(ctx)
		defer cancel()
		mounts, err := c.List(ctx)
		for _, i := range mounts {
			specs = append(specs, MountSpec(i.Spec))
		}
		return err
	})
	return specs, err
}

// call runs f, and once more if the server has to be started first.
//
// Errors: errdefs.ErrUnavailable, naming the socket, if the server gave no answer; else the server's.
func (m *MountServer) call(ctx context.Context, f func(*control.Client) error) error {
	attempt := func() error {
		c, err := m.dial(ctx)
		if err != nil {
			return err
		}
		return f(c)
	}
	err := attempt()
	if m.Autostart && nobodyListens(err) {
		if err = m.start(ctx); err == nil {
			err = attempt()
		}
	}
	var answer *control.Error
	switch {
	case err == nil, errors.As(err, &answer), ctx.Err() != nil:
		return err
	case nobodyListens(err):
		return fmt.Errorf("no mount server (overlayfuse serve) listens on %s: %w: %w", m.Socket, err, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("mount server at %s: %w: %w", m.Socket, err, errdefs.ErrUnavailable)
}

// dial finds the server, which answers at once or not at all.
func (m *MountServer) dial(ctx context.Context) (*control.Client, error) {
	ctx, cancel := m.soon(ctx)
	defer cancel()
	return control.Dial(ctx, m.Socket)
}

func (m *MountServer) soon(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, cmp.Or(m.AnswerTimeout, answerTimeout))
}

// nobodyListens tells a server that is not there from one that does not answer, and from an answer.
func nobodyListens(err error) bool {
	var answer *control.Error
	return !errors.As(err, &answer) && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED))
}

// start returns when the server answers; it is started unless another call did that.
func (m *MountServer) start(ctx context.Context) error {
	m.starting.Lock()
	defer m.starting.Unlock()
	if _, err := m.dial(ctx); !nobodyListens(err) {
		return err
	}
	ended, err := m.startServer()
	if err != nil {
		return err
	}
	timeout := time.NewTimer(m.StartTimeout)
	defer timeout.Stop()
	for {
		if _, err := m.dial(ctx); !nobodyListens(err) {
			return err
		}
		select {
		case err := <-ended:
			return fmt.Errorf("the started mount server ended: %w: %s", err, m.lastWords())
		case <-timeout.C:
			return fmt.Errorf("the started mount server does not listen after %v: %s", m.StartTimeout, m.lastWords())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(startPoll):
		}
	}
}
