package snapshotter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// layerMarks say what a committed layer holds beside plain files, and so which mounts show it right.
//
// They are found at commit and kept in marks.json beside the layer: a cache of what a scan finds, so a missing or torn file
// only costs a scan. They never change: a committed layer never changes. But a commit that fails late leaves those of a layer that goes
// on changing, so they are durable, and replaced as a whole, before the transaction that makes them count.
type layerMarks struct {
	Version int `json:"version"`
	// Whiteouts: character devices 0/0.
	Whiteouts bool `json:"whiteouts"`
	// Attributes: any trusted.overlay attribute.
	Attributes bool `json:"attributes"`
	// Redirects: trusted.overlay.redirect.
	Redirects bool `json:"redirects"`
	// Metacopy: files whose data is in a lower layer. See doc.go, "Metacopy".
	Metacopy bool `json:"metacopy"`
}

const marksVersion = 1

// plain: the layer's directory looks like the layer.
func (m layerMarks) plain() bool { return !m.Whiteouts && !m.Attributes }

// marksCache remembers the marks of committed layers by id. It is bounded by the number of layers.
type marksCache struct {
	mu sync.Mutex
	m  map[string]layerMarks // +checklocks:mu
}

func (c *marksCache) get(id string) (layerMarks, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, ok := c.m[id]
	return m, ok
}

func (c *marksCache) put(id string, m layerMarks) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		c.m = make(map[string]layerMarks)
	}
	c.m[id] = m
}

func (c *marksCache) forget(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.m, id)
}

// marksOf are the marks of a committed layer, from memory, from its file, or from a scan.
func (s *Snapshotter) marksOf(ctx context.Context, id string) (layerMarks, error) {
	if m, ok := s.marks.get(id); ok {
		return m, nil
	}
	m, err := s.readMarks(id)
	if err != nil {
		scan, err := scanLayer(ctx, s.root.layer(id), true)
		if err != nil {
			return layerMarks{}, err
		}
		m = scan.marks
		if err := s.writeMarks(id, m); err != nil {
			s.log.WithError(err).Warn("the next start will scan this layer again")
		}
	}
	s.marks.put(id, m)
	return m, nil
}

func (s *Snapshotter) readMarks(id string) (layerMarks, error) {
	text, err := os.ReadFile(s.root.marks(id))
	if err != nil {
		return layerMarks{}, err
	}
	var m layerMarks
	if err := json.Unmarshal(text, &m); err != nil {
		return layerMarks{}, fmt.Errorf("%s: %w", s.root.marks(id), err)
	}
	if m.Version != marksVersion {
		return layerMarks{}, fmt.Errorf("%s: version %d", s.root.marks(id), m.Version)
	}
	return m, nil
}

func (s *Snapshotter) writeMarks(id string, m layerMarks) error {
	m.Version = marksVersion
	text, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("%s: %w", s.root.marks(id), err)
	}
	if err := replaceFile(s.root.marks(id), append(text, '\n')); err != nil {
		return fmt.Errorf("write marks: %w", err)
	}
	return nil
}

// replaceFile makes text all of a file, durably, or leaves the file as it was. One writer at a time. What a crash leaves beside it has a name
// that the next one takes, which is why it is not continuity.AtomicWriteFile, whose leavings nobody finds.
func replaceFile(path string, text []byte) error {
	beside := path + ".new"
	f, err := os.OpenFile(beside, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(beside, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(beside))
	}
	return syncDirectory(filepath.Dir(path))
}

// chainMarks are the marks of several layers together.
func (s *Snapshotter) chainMarks(ctx context.Context, ids []string) (layerMarks, error) {
	var all layerMarks
	for _, id := range ids {
		m, err := s.marksOf(ctx, id)
		if err != nil {
			return layerMarks{}, fmt.Errorf("layer %s: %w", id, err)
		}
		all.Whiteouts = all.Whiteouts || m.Whiteouts
		all.Attributes = all.Attributes || m.Attributes
		all.Redirects = all.Redirects || m.Redirects
		all.Metacopy = all.Metacopy || m.Metacopy
	}
	return all, nil
}
