package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse"
)

// Client asks one mount server. It holds no connection between calls, so it survives a restart of the server.
// All methods are safe for concurrent use; each returns the context's error if that ends first, and then what it
// asked for may still happen.
type Client struct {
	socket string
}

// Dial makes a client, after the server has answered once.
//
// Errors: ENAMETOOLONG for the socket's path; ENOENT or ECONNREFUSED if nobody serves it; EPROTONOSUPPORT.
func Dial(ctx context.Context, socket string) (*Client, error) {
	if err := checkSocketPath(socket); err != nil {
		return nil, err
	}
	c := &Client{socket: socket}
	if _, err := c.Ping(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// Ping asks who serves.
func (c *Client) Ping(ctx context.Context) (Info, error) {
	r, err := c.call(ctx, request{Op: opPing})
	if err != nil {
		return Info{}, err
	}
	if r.Info == nil {
		return Info{}, fmt.Errorf("mount server %s: empty answer: %w", c.socket, unix.EPROTO)
	}
	return *r.Info, nil
}

// Mount returns when the mount answers. The same Spec already mounted is no error.
//
// Errors: EEXIST if another Spec is mounted under the ID; EBUSY if the upper or workdir is in use, be it by a detached
// mount; ESHUTDOWN if the server takes no new mounts; else what overlayfuse.New and overlayfuse.Mount give.
func (c *Client) Mount(ctx context.Context, s Spec) error {
	_, err := c.call(ctx, request{Op: opMount, Spec: &s})
	return err
}

// Unmount takes a mount off its mount point, with lazy also while it is in use. What uses it elsewhere goes on, and it
// is listed as detached until then. Detached already is no error.
//
// Errors: ErrNotFound; EBUSY.
func (c *Client) Unmount(ctx context.Context, id string, lazy bool) error {
	_, err := c.call(ctx, request{Op: opUnmount, ID: id, Lazy: lazy})
	return err
}

// Flush makes the upper directory complete and durable. A mounted Spec is flushed through its mount, pages not yet
// written included; one that is not mounted, on its directories alone, and its mount point is not looked at.
// The server logs the progress of a flush that takes long; Inspect tells it. When ctx ends, so does the flush; what was
// copied stays, and the next one goes on from there.
//
// Errors: EEXIST if another Spec is mounted under the ID; EBUSY if it is detached: its dirty pages are out of reach.
func (c *Client) Flush(ctx context.Context, s Spec) (overlayfuse.FlushStats, error) {
	return c.flush(ctx, request{Op: opFlush, Spec: &s})
}

// FlushKeepingMetacopy is Flush for an upper whose readers all follow overlay.metacopy: files without data of their own stay so.
func (c *Client) FlushKeepingMetacopy(ctx context.Context, s Spec) (overlayfuse.FlushStats, error) {
	return c.flush(ctx, request{Op: opFlush, Spec: &s, KeepMetacopy: true})
}

func (c *Client) flush(ctx context.Context, q request) (overlayfuse.FlushStats, error) {
	r, err := c.call(ctx, q)
	if err != nil || r.Flush == nil {
		return overlayfuse.FlushStats{}, err
	}
	return *r.Flush, nil
}

// Inspect tells what goes on in the mounts of these IDs, or in all, by ID. It waits for no other request.
//
// Errors: ErrNotFound, naming the ID.
func (c *Client) Inspect(ctx context.Context, ids ...string) ([]Inspection, error) {
	r, err := c.call(ctx, request{Op: opInspect, IDs: ids})
	return r.Inspections, err
}

// List gives every mount of the server, by ID.
func (c *Client) List(ctx context.Context) ([]MountInfo, error) {
	r, err := c.call(ctx, request{Op: opList})
	return r.Mounts, err
}

func (c *Client) call(ctx context.Context, q request) (response, error) {
	q.Version = Version
	fail := func(err error) (response, error) {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return response{}, fmt.Errorf("mount server %s: %w", c.socket, err)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.socket)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = conn.Close() }() // the answer was read, or there is an error already
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()

	var r response
	errWrite := writeFrame(conn, q)
	// A server that refuses the peer answers without reading, so an answer may be there though the request is not.
	if err := readFrame(conn, &r); err != nil {
		if errWrite != nil {
			return fail(errWrite)
		}
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("hung up without an answer: %w", unix.ECONNRESET)
		}
		return fail(err)
	}
	if r.Error != nil {
		return response{}, r.Error
	}
	return r, nil
}
