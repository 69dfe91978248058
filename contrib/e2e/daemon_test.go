package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestDaemonKilledUnderContainer kills the snapshotter daemon with SIGKILL: the container works on, a new daemon knows
// its snapshot and serves new containers.
func TestDaemonKilledUnderContainer(t *testing.T) {
	namespace := stack.vars["CONTAINERD_NAMESPACE"]
	loadImage(t, namespace, stack.snapshotter, "debian", "64")
	startContainer(t, stack.snapshotter, "survivor", "localhost/demo:64", "bash", "-c",
		"while :; do date +%N > /srv/tick; sed -i s/x/x/ /etc/profile; sleep 0.1; done")
	tick := func() string { return nerdctl(t, stack.snapshotter, "exec", "survivor", "cat", "/srv/tick") }
	eventually(t, 20*time.Second, "the container writes", func() bool {
		_, err := output(command(time.Minute, "nerdctl", "exec", "survivor", "test", "-s", "/srv/tick"))
		return err == nil
	})

	text, err := os.ReadFile(filepath.Join(stack.dir, "daemon.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the daemon is dead", func() bool {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
	before := tick()
	eventually(t, 20*time.Second, "the container writes without a daemon", func() bool {
		now := tick()
		return now != "" && now != before
	})
	if sum := nerdctl(t, stack.snapshotter, "exec", "survivor", "bash", "-c", "echo 1 >> /etc/hosts.new; cat /etc/hosts.new"); sum != "1\n" {
		t.Errorf("a write without a daemon reads back as %q", sum)
	}

	if _, err := script(time.Minute, "stack.sh", "daemon", stack.dir); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the new daemon answers", func() bool {
		_, err := output(command(10*time.Second, "ctr", "snapshots", "--snapshotter", stack.snapshotter, "ls"))
		return err == nil
	})
	id := strings.TrimSpace(nerdctl(t, stack.snapshotter, "inspect", "--format", "{{.ID}}", "survivor"))
	if !snapshotKeys(t, namespace, stack.snapshotter)[id] {
		t.Errorf("the new daemon does not know the snapshot of container %s", id)
	}
	before = tick()
	eventually(t, 20*time.Second, "the container writes under the new daemon", func() bool {
		now := tick()
		return now != "" && now != before
	})
	if text := nerdctl(t, stack.snapshotter, "run", "--rm", "--net", "none", "localhost/demo:64", "cat", "/srv/app/conf.d/c"); text != "from layer 3\n" {
		t.Errorf("a new container reads %q", text)
	}
}
