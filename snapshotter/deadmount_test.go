package snapshotter

import (
	"os"
	"path/filepath"
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
		"taken away":   func(*bench) {},
		"out of sight": func(*bench) {},
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
			if name == "taken away" || name == "out of sight" { // by an operator, or by the server itself when it is stopped; the container has its bind
				require.NoError(t, detach(b.s.root.mountPoint(b.id("c"))))
			}
			if name == "out of sight" { // the bind is in another mount namespace, or gone with a file open
				require.NoError(t, detach(c))
			}
			b.another()
			_, _ = f.WriteAt([]byte("B"), 0) // it is written where the kernel passes it through
			upper, err := os.ReadFile(b.s.root.layer(b.id("c")) + "/etc/new")
			require.NoError(t, err)
			passed := string(upper) == "Before"
			meanwhile(b)
			if name == "out of sight" && !passed {
				_ = f.Close() // its server is gone, and nothing else can write
				require.NoError(t, b.s.Commit(b.ctx, "three", "c"))
				return
			}
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

// TestLiveMountOfAnotherServer: that our server does not know a mount does not make it dead. Who is served by another one notices nothing.
func TestLiveMountOfAnotherServer(t *testing.T) {
	b := fuseBench(t)
	c := withImage(t, b)
	b.k.Mounter = startTestServer(t).mounter(t)
	for range 2 {
		require.ErrorContains(t, b.s.Cleanup(b.ctx), "another mount server")
		_, err := b.s.Mounts(b.ctx, "c")
		require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
		require.True(t, errdefs.IsFailedPrecondition(b.s.Commit(b.ctx, "three", "c")))
		b.reopen()
		write(t, c+"/etc/late", "4")
	}
	b.k.Mounter = b.server.mounter(t)
	b.reopen()
	require.NoError(t, b.s.Commit(b.ctx, "three", "c"))
	requireFile(t, b.view("after", "three")+"/etc/late", "4")
}

// TestForeignMountOnAMountPoint: what is not ours is taken off a mount point, and is what it was elsewhere.
func TestForeignMountOnAMountPoint(t *testing.T) {
	b := fuseBench(t)
	withImage(t, b)
	b.reboot()
	foreign := filepath.Join(filepath.Dir(b.root), "foreign")
	require.NoError(t, os.Mkdir(foreign, 0o755))
	require.NoError(t, unix.Mount("foreign", foreign, "tmpfs", 0, ""))
	defer func() { require.NoError(t, detach(foreign)) }()
	point := b.s.root.mountPoint(b.id("c"))
	require.NoError(t, unix.Mount(foreign, point, "", unix.MS_BIND, ""))
	require.NoError(t, b.s.Cleanup(b.ctx))
	mounted, _, err := mountedAt(point)
	require.NoError(t, err)
	require.False(t, mounted)
	write(t, foreign+"/file", "x")
	require.NoError(t, b.s.Commit(b.ctx, "three", "c"))
	write(t, foreign+"/file", "y")
}

// TestMarksOnAFullDisk: those that could not be written leave nothing beside, and those that a crash left half written are replaced.
func TestMarksOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/marks.json"
	require.NoError(t, os.Mkdir(path, 0o755)) // what cannot be replaced
	require.Error(t, replaceFile(path, []byte("text")))
	require.Equal(t, []string{"marks.json"}, names(t, dir))
	require.NoError(t, os.Remove(path))
	write(t, path+".new", "more than that")
	require.NoError(t, replaceFile(path, []byte("text")))
	requireFile(t, path, "text")
	require.Equal(t, []string{"marks.json"}, names(t, dir))
}
