package control

import (
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMountListUnmount(t *testing.T) {
	dir := t.TempDir()
	p := startServer(t, dir)
	ctx := testContext(t)
	a, b := testSpec(t, dir, "a"), testSpec(t, dir, "b:with,odd\\name")
	b.Options = []string{"noatime", "fsname=src"}
	mustMount(t, p, b)
	mustMount(t, p, a)
	mustMount(t, p, a) // again is no error
	infos, err := p.client.List(ctx)
	if err != nil || len(infos) != 2 || !reflect.DeepEqual(infos[0].Spec, a) || !reflect.DeepEqual(infos[1].Spec, b) {
		t.Fatalf("list: %+v, %v", infos, err)
	}
	for _, i := range infos {
		if i.State != Mounted || i.Device == "" {
			t.Errorf("%s: %+v", i.Spec.ID, i)
		}
	}
	other := a
	other.Options = []string{"ro"}
	wantError(t, p.client.Mount(ctx, other), unix.EEXIST, "mount a is there with other layers")
	if err := p.client.Unmount(ctx, "a", false); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(a.MountPoint); err != nil || len(left) != 0 {
		t.Errorf("mount point after unmount: %v, %v", left, err)
	}
	if s := stateOf(t, p, "a"); s != "" {
		t.Errorf("a is %s after unmount", s)
	}
	err = p.client.Unmount(ctx, "a", false)
	wantError(t, err, ErrNotFound, "mount a: no such mount")
	wantError(t, err, unix.ENOENT, "")
	mustMount(t, p, other)
	if err := os.WriteFile(a.MountPoint+"/x", nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a read-only mount: %v, want EROFS", err)
	}
	checkAlive(t, b)
}

func TestFailedMountDisturbsNoOther(t *testing.T) {
	dir := t.TempDir()
	p := startServer(t, dir)
	ctx := testContext(t)
	good, bad := testSpec(t, dir, "good"), testSpec(t, dir, "bad")
	mustMount(t, p, good)

	missing, shared, option, relative, noID, noPoint := bad, bad, bad, bad, bad, bad
	missing.Lower = []string{dir + "/gone"}
	wantError(t, p.client.Mount(ctx, missing), unix.ENOENT, "lower layer "+dir+"/gone")
	shared.Upper = good.Upper
	wantError(t, p.client.Mount(ctx, shared), unix.EBUSY, "in use by another mount")
	option.Options = []string{"frobnicate"}
	wantError(t, p.client.Mount(ctx, option), unix.EINVAL, `option "frobnicate"`)
	relative.Lower = []string{"l"}
	wantError(t, p.client.Mount(ctx, relative), unix.EINVAL, `"l" is not absolute`)
	noID.ID = ""
	wantError(t, p.client.Mount(ctx, noID), unix.EINVAL, "without an id")
	noPoint.MountPoint = dir + "/nowhere"
	wantError(t, p.client.Mount(ctx, noPoint), unix.ENOENT, dir+"/nowhere")
	if s := stateOf(t, p, "bad"); s != "" {
		t.Errorf("bad is %s", s)
	}
	mustMount(t, p, bad) // nothing of the failures is left
	checkAlive(t, good)
}

func TestUnmountOfABusyMount(t *testing.T) {
	dir := t.TempDir()
	p := startServer(t, dir)
	ctx := testContext(t)
	a := testSpec(t, dir, "a")
	mustMount(t, p, a)
	f, err := os.Open(a.MountPoint + "/lower")
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, p.client.Unmount(ctx, "a", false), unix.EBUSY, "unmount "+a.MountPoint)
	if err := p.client.Unmount(ctx, "a", true); err != nil {
		t.Fatal(err)
	}
	if s := stateOf(t, p, "a"); s != Detached {
		t.Errorf("a is %q, want detached", s)
	}
	buf := make([]byte, 6)
	if n, err := f.Read(buf); err != nil || string(buf[:n]) != "from a" {
		t.Errorf("read from a detached mount: %q, %v", buf[:n], err)
	}
	wantError(t, p.client.Mount(ctx, a), unix.EBUSY, "still in use")
	_, err = p.client.Flush(ctx, a)
	wantError(t, err, unix.EBUSY, "still in use")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	mustMount(t, p, a)
}

func TestFlushOfAMountedAndOfAnUnmountedUpper(t *testing.T) {
	dir := t.TempDir()
	p := startServer(t, dir)
	ctx := testContext(t)
	a := testSpec(t, dir, "a")
	mustMount(t, p, a)
	if err := os.Chmod(a.MountPoint+"/lower", 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.MountPoint+"/new", []byte(strings.Repeat("x", 1<<20)), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := p.client.Flush(ctx, a); err != nil {
		t.Fatal(err)
	}
	check := func(name, want string) {
		t.Helper()
		if got, err := os.ReadFile(a.Upper + "/" + name); err != nil || string(got) != want {
			t.Errorf("upper %s: %d bytes, %v, want %d", name, len(got), err, len(want))
		}
	}
	check("new", strings.Repeat("x", 1<<20))
	check("lower", "from a")
	other := a
	other.Lower = append(other.Lower, dir)
	_, err := p.client.Flush(ctx, other)
	wantError(t, err, unix.EEXIST, "other layers")

	if err := os.WriteFile(dir+"/a/l/second", []byte("two"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := p.client.Unmount(ctx, "a", false); err != nil {
		t.Fatal(err)
	}
	mustMount(t, p, a)
	if err := os.Chmod(a.MountPoint+"/second", 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.client.Unmount(ctx, "a", false); err != nil {
		t.Fatal(err)
	}
	if _, err := p.client.Flush(ctx, a); err != nil {
		t.Fatal(err)
	}
	check("second", "two")
	if s := stateOf(t, p, "a"); s != "" {
		t.Errorf("a is %s after a flush of its directories", s)
	}
	missing := a
	missing.Upper = dir + "/gone"
	_, err = p.client.Flush(ctx, missing)
	wantError(t, err, unix.ENOENT, "upperdir "+dir+"/gone")
}

func TestMountsOfADeadServerAreReplaced(t *testing.T) {
	dir := t.TempDir()
	p := startServer(t, dir)
	a := testSpec(t, dir, "a")
	mustMount(t, p, a)
	p.kill(t)
	if _, err := os.ReadDir(a.MountPoint); !errors.Is(err, unix.ENOTCONN) { // a file may be in the page cache
		t.Fatalf("read from a dead mount: %v, want ENOTCONN", err)
	}
	if err := p.client.Mount(testContext(t), a); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("call without a server: %v, want ECONNREFUSED", err)
	}
	second := startServer(t, dir) // over the stale socket
	mustMount(t, second, a)
	if err := second.client.Unmount(testContext(t), "a", false); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(a.MountPoint); err != nil || len(left) != 0 {
		t.Errorf("below the new mount: %v, %v", left, err)
	}
}

func TestMountOverALiveOverlayIsRefused(t *testing.T) {
	dir := t.TempDir()
	p := startServer(t, dir)
	a, b := testSpec(t, dir, "a"), testSpec(t, dir, "b")
	mustMount(t, p, a)
	b.MountPoint = a.MountPoint
	wantError(t, p.client.Mount(testContext(t), b), unix.EBUSY, "a live overlay is mounted there")
	checkAlive(t, a)
}
