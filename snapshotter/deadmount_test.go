package snapshotter

import (
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// another starts a mount server in the place of one that was killed.
func (b *bench) another() {
	b.server.kill(b.t)
	b.server = startTestServer(b.t)
	b.k.Mounter = b.server.mounter(b.t)
}

// TestCommitWhileADeadMountIsWritten: what the kernel passes through is written also after the mount server has died. No committed layer
// changes by that, whatever made the mount again meanwhile, or took it away.
func TestCommitWhileADeadMountIsWritten(t *testing.T) {
	for name, meanwhile := range map[string]func(b *bench){
		"untouched": func(*bench) {},
		"mounted again": func(b *bench) {
			_, err := b.s.Mounts(b.ctx, "c")
			require.NoError(b.t, err)
		},
		"reconciled": func(b *bench) { require.NoError(b.t, b.s.Cleanup(b.ctx)) },
		"dead twice": func(b *bench) {
			_, err := b.s.Mounts(b.ctx, "c")
			require.NoError(b.t, err)
			b.another()
			_, err = b.s.Mounts(b.ctx, "c")
			require.NoError(b.t, err)
		},
		"opened again": func(b *bench) { b.reopen() },
	} {
		t.Run(name, func(t *testing.T) {
			b := fuseBench(t)
			c := withImage(t, b)
			f, err := os.OpenFile(c+"/etc/new", os.O_CREATE|os.O_RDWR, 0o644)
			require.NoError(t, err)
			defer func() { _ = f.Close() }()
			_, err = f.WriteString("before")
			require.NoError(t, err)
			require.NoError(t, f.Sync())
			b.another()
			_, _ = f.WriteAt([]byte("B"), 0) // it is written where the kernel passes it through
			upper, err := os.ReadFile(b.s.root.layer(b.id("c")) + "/etc/new")
			require.NoError(t, err)
			passed := string(upper) == "Before"
			meanwhile(b)
			err = b.s.Commit(b.ctx, "three", "c")
			require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
			require.ErrorIs(t, err, syscall.EBUSY)
			require.NoError(t, b.s.Cleanup(b.ctx)) // forgets nothing
			require.True(t, errdefs.IsFailedPrecondition(b.s.Commit(b.ctx, "three", "c")))
			if passed {
				_, err = f.WriteAt([]byte("A"), 0)
				require.NoError(t, err)
			}
			_ = f.Close() // its server is gone
			require.NoError(t, b.s.Commit(b.ctx, "three", "c"))
			want := "before"
			if passed {
				want = "Aefore"
			}
			requireFile(t, b.view("after", "three")+"/etc/new", want)
			b.requireClean()
		})
	}
}

// TestDeadMountsGo: with their last writer, or with their snapshot.
func TestDeadMountsGo(t *testing.T) {
	for _, removed := range []bool{false, true} {
		b := fuseBench(t)
		c := withImage(t, b)
		f, err := os.Create(c + "/etc/new")
		require.NoError(t, err)
		defer func() { _ = f.Close() }()
		b.another()
		_, err = b.s.Mounts(b.ctx, "c")
		require.NoError(t, err)
		require.Len(t, dead(b), 1)
		if removed {
			b.remove("c")
		} else {
			require.NoError(t, b.s.Cleanup(b.ctx))
			require.Len(t, dead(b), 1)
			_ = f.Close() // its server is gone
		}
		b.requireClean()
		require.Empty(t, dead(b))
	}
}

func dead(b *bench) (points []string) {
	for _, name := range names(b.t, b.s.root.mounts()) {
		if _, is := deadOf(name); is {
			points = append(points, name)
		}
	}
	return points
}

// TestHungServer: a mount server that does not answer keeps nobody waiting for ever, and nothing is deleted that it may use.
func TestHungServer(t *testing.T) {
	b := fuseBench(t)
	c := withImage(t, b)
	hasty := b.server.mounter(t)
	hasty.AnswerTimeout = time.Second
	b.k.Mounter = hasty
	id := b.id("c")
	require.NoError(t, b.server.cmd.Process.Signal(unix.SIGSTOP))
	defer func() { _ = b.server.cmd.Process.Signal(unix.SIGCONT) }()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.reopen()
		require.True(t, errdefs.IsUnavailable(b.s.Cleanup(b.ctx)))
		require.True(t, errdefs.IsUnavailable(b.s.Commit(b.ctx, "three", "c")))
		_, err := b.s.Mounts(b.ctx, "c")
		require.True(t, errdefs.IsUnavailable(err), "%v", err)
		require.NoError(t, b.s.Remove(b.ctx, "c"))
		require.True(t, errdefs.IsUnavailable(b.s.Cleanup(b.ctx)))
		require.DirExists(t, b.s.root.snapshot(id))
	}()
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("something waits for a mount server that does not answer")
	}
	require.NoError(t, b.server.cmd.Process.Signal(unix.SIGCONT))
	require.NoError(t, detach(c))
	b.requireClean()
}

// TestOneBadMountPoint: what cannot be done of one mount keeps nobody else's garbage.
func TestOneBadMountPoint(t *testing.T) {
	onBoth(t, func(t *testing.T, b *bench) {
		b.layer("one", "", nil)
		b.container("c", "one")
		b.layer("two", "one", nil)
		id := b.id("two")
		write(t, b.root+"/mounts/999/stray", "x")
		b.remove("two")
		err := b.s.Cleanup(b.ctx)
		require.ErrorContains(t, err, "mounts/999")
		require.NoDirExists(t, b.s.root.snapshot(id))
		require.NoError(t, os.RemoveAll(b.root+"/mounts/999"))
		b.requireClean()
	})
}
