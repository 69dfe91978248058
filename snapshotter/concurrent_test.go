package snapshotter

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/require"
)

// TestConcurrentUse: several clients prepare, write, commit, view, measure and remove, while Cleanup runs all the time. Nobody
// loses anything, and in the end nothing is left.
func TestConcurrentUse(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		b.layer("base", "", func(dir string) { write(t, dir+"/etc/base", "base") })
		stop := make(chan struct{})
		var cleaners, clients sync.WaitGroup
		cleaners.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := b.s.Cleanup(b.ctx); err != nil {
					t.Errorf("cleanup: %v", err)
					return
				}
			}
		})
		for client := range 6 {
			clients.Go(func() {
				for round := range 8 {
					if err := b.oneLife(b.ctx, fmt.Sprintf("%d-%d", client, round)); err != nil {
						t.Errorf("client %d, round %d: %v", client, round, err)
						return
					}
				}
			})
		}
		clients.Wait()
		close(stop)
		cleaners.Wait()
		b.remove("base")
		b.requireClean()
		require.Empty(t, names(t, b.s.root.snapshots()))
		require.Empty(t, names(t, b.s.root.mounts()))
	})
}

// oneLife is a container that is prepared, used, committed, viewed and removed.
func (b *bench) oneLife(ctx context.Context, name string) error {
	dir := filepath.Join(b.work, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	used := func(mounts []mount.Mount, use func() error) error {
		if err := mount.All(mounts, dir); err != nil {
			return err
		}
		err := use()
		if uerr := mount.UnmountAll(dir, 0); err == nil {
			err = uerr
		}
		return err
	}
	mounts, err := b.s.Prepare(ctx, "c"+name, "base")
	if err != nil {
		return err
	}
	if err := used(mounts, func() error { return os.WriteFile(dir+"/etc/mine", []byte(name), 0o644) }); err != nil {
		return err
	}
	if _, err := b.s.Usage(ctx, "c"+name); err != nil {
		return err
	}
	if err := b.s.Commit(ctx, "l"+name, "c"+name); err != nil {
		return err
	}
	if mounts, err = b.s.View(ctx, "v"+name, "l"+name); err != nil {
		return err
	}
	if err := used(mounts, func() error {
		for file, want := range map[string]string{"/etc/mine": name, "/etc/base": "base"} {
			if got, err := os.ReadFile(dir + file); err != nil || string(got) != want {
				return fmt.Errorf("%s is %q: %w", file, got, err)
			}
		}
		return nil
	}); err != nil {
		return err
	}
	if err := b.s.Remove(ctx, "v"+name); err != nil {
		return err
	}
	return b.s.Remove(ctx, "l"+name)
}
