package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/sirupsen/logrus"
)

// MaxLayers is the longest chain of parents. Compare: overlayfuse.MaxLayers, and fs/overlayfs/params.h:OVL_MAX_STACK (Linux 6.18).
const MaxLayers = 500

// Config is what a Snapshotter is made of.
type Config struct {
	// Root holds everything; it is created, and kept at mode 0700.
	Root string
	// Mounter makes the mounts of containers.
	Mounter Mounter
	// MountOptions are passed to Mounter for every mount.
	MountOptions []string
	// KeepMetacopy lets files of which a container changed metadata alone be committed without data: see doc.go, "Metacopy".
	KeepMetacopy bool
	// UpperdirLabel shows the upper directory of each snapshot as a label, as containerd's overlayfs can.
	UpperdirLabel bool
	// UsageTTL is how long a measurement of an active snapshot is answered again.
	UsageTTL time.Duration
	// ViewsFUSE never uses the kernel's overlayfs for a view.
	ViewsFUSE bool
	// Log gets what no caller can be told. Nil: logrus's standard logger.
	Log *logrus.Entry
}

// Snapshotter implements containerd's snapshots.Snapshotter and snapshots.Cleaner.
type Snapshotter struct {
	cfg   Config
	log   *logrus.Entry
	root  rootDir
	store *storage.MetaStore
	ids   idLocks
	usage usageCache
	marks marksCache
	// background is unmounting removed snapshots.
	background sync.WaitGroup
	// kernelViews: the kernel's overlayfs follows redirects on this root's file system.
	kernelViews bool
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// New opens the root, and brings mounts and metadata in line after a crash. Directories that a crash left are for Cleanup.
//
// Errors: errdefs.ErrFailedPrecondition if another process has the root or metadata is missing; errdefs.ErrNotImplemented if
// the file system cannot hold layers; errdefs.ErrInvalidArgument if the path cannot stand in mount options.
func New(ctx context.Context, cfg Config) (*Snapshotter, error) {
	if cfg.Log == nil {
		cfg.Log = logrus.NewEntry(logrus.StandardLogger())
	}
	root, err := openRoot(cfg.Root)
	if err != nil {
		return nil, err
	}
	s := &Snapshotter{cfg: cfg, log: cfg.Log, root: root}
	s.usage.ttl = cfg.UsageTTL
	if err := s.open(ctx); err != nil {
		_ = s.root.close() // the first error is the one to report
		return nil, err
	}
	return s, nil
}

func (s *Snapshotter) open(ctx context.Context) error {
	store, err := storage.NewMetaStore(s.root.metadata())
	if err != nil {
		return fmt.Errorf("open metadata: %w", err)
	}
	s.store = store
	if err := prepareBuckets(ctx, store); err != nil {
		return fmt.Errorf("open metadata %s: %w", s.root.metadata(), err)
	}
	if !s.cfg.ViewsFUSE {
		if err := probeKernelOverlay(s.root.empty(), s.root.snapshots()); err != nil {
			s.log.WithError(err).Warn("the kernel's overlayfs cannot show views of this root, using FUSE")
		} else {
			s.kernelViews = true
		}
	}
	faults, err := s.reconcile(ctx)
	if err := errors.Join(append(faults, err)...); err != nil {
		s.log.WithError(err).Warn("mounts of the last run were not checked")
	}
	return nil
}

// Close releases the root for the next process. Mounts go on. Closing twice is fine.
func (s *Snapshotter) Close() error {
	s.background.Wait()
	err := s.store.Close()
	if cerr := s.root.close(); err == nil {
		err = cerr
	}
	return err
}

// rootDir is the layout below the root directory.
//
//	lock            held by the one process that has the root open; says its pid
//	metadata.db     containerd's bolt store: the truth about what exists
//	empty/          an empty lower directory
//	snapshots/ID/   fs (the layer), work, marks.json (see layerMarks)
//	snapshots/new-* a snapshot being made
//	snapshots/garbage-* to be deleted
//	mounts/ID       mount points; the directory exists while the mount may exist
type rootDir struct {
	path string
	lock *os.File
}

func (r rootDir) metadata() string            { return filepath.Join(r.path, "metadata.db") }
func (r rootDir) empty() string               { return filepath.Join(r.path, "empty") }
func (r rootDir) snapshots() string           { return filepath.Join(r.path, "snapshots") }
func (r rootDir) mounts() string              { return filepath.Join(r.path, "mounts") }
func (r rootDir) snapshot(id string) string   { return filepath.Join(r.path, "snapshots", id) }
func (r rootDir) layer(id string) string      { return filepath.Join(r.path, "snapshots", id, "fs") }
func (r rootDir) work(id string) string       { return filepath.Join(r.path, "snapshots", id, "work") }
func (r rootDir) marks(id string) string      { return filepath.Join(r.path, "snapshots", id, "marks.json") }
func (r rootDir) mountPoint(id string) string { return filepath.Join(r.path, "mounts", id) }
func (r rootDir) layers(ids []string) []string {
	paths := make([]string, len(ids))
	for i, id := range ids {
		paths[i] = r.layer(id)
	}
	return paths
}
