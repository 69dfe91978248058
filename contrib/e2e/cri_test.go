package e2e

import (
	"context"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestPodThroughCRI does to containerd what a kubelet does: a pod with a container is made, runs, executes a command, is
// stopped and removed, all on our snapshotter, and no snapshot of it remains.
func TestPodThroughCRI(t *testing.T) {
	const namespace = "k8s.io"
	loadImage(t, namespace, stack.snapshotter, "pause")
	loadImage(t, namespace, stack.snapshotter, "debian", "64")

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+stack.vars["CONTAINERD_ADDRESS"], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }() // the test is over
	runtime, images := cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)

	eventually(t, 20*time.Second, "CRI knows the images", func() bool {
		for _, name := range []string{"localhost/pause:1", "localhost/demo:64"} {
			answer, err := images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}})
			if err != nil || answer.GetImage() == nil {
				return false
			}
		}
		return true
	})
	fsInfo, err := images.ImageFsInfo(ctx, &cri.ImageFsInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got := fsInfo.GetImageFilesystems()[0].GetFsId().GetMountpoint(); got != stack.vars["SNAPSHOT_ROOT"] {
		t.Errorf("CRI reports the image file system %s, want our root %s", got, stack.vars["SNAPSHOT_ROOT"])
	}
	before := snapshotKeys(t, namespace, stack.snapshotter)

	pod := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "pod", Namespace: "default", Uid: "pod-1"},
		LogDirectory: t.TempDir(),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: "/" + stack.vars["CONTAINERD_NAMESPACE"] + "/pods",
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER},
			},
		},
	}
	request := &cri.RunPodSandboxRequest{Config: pod}
	if stack.snapshotter == "overlayfuse" {
		request.RuntimeHandler = "overlayfuse" // what a pod's runtimeClassName comes to
	}
	sandbox, err := runtime.RunPodSandbox(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	podID := sandbox.GetPodSandboxId()
	removed := false
	defer func() {
		if !removed {
			_, err := runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: podID})
			t.Log("stop of the failed test's pod:", err)
			_, err = runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: podID})
			t.Log("removal of the failed test's pod:", err)
		}
	}()

	created, err := runtime.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: podID, SandboxConfig: pod,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "main"},
			Image:    &cri.ImageSpec{Image: "localhost/demo:64"},
			Command:  []string{"bash", "-c", "trap 'exit 7' TERM; while :; do sleep 0.1; done"},
			LogPath:  "main.log",
			Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: pod.GetLinux().GetSecurityContext().GetNamespaceOptions(),
			}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	id := created.GetContainerId()
	if _, err := runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if got := containerState(ctx, t, runtime, id); got != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after its start the container is %v", got)
	}
	during := snapshotKeys(t, namespace, stack.snapshotter)
	if !during[id] || !during[podID] {
		t.Errorf("container %s and sandbox %s have no snapshots on %s: %v", id, podID, stack.snapshotter, slices.Collect(maps.Keys(during)))
	}

	answer, err := runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Timeout: 30, Cmd: []string{"bash", "-c",
		"set -e; cat /srv/app/conf.d/c; echo written > /srv/app/file; cat /srv/app/file; grep ' / ' /proc/mounts; exit 3"}})
	if err != nil {
		t.Fatal(err)
	}
	out := string(answer.GetStdout())
	if answer.GetExitCode() != 3 || !strings.HasPrefix(out, "from layer 3\nwritten\n") {
		t.Errorf("exec ended with %d: %s%s", answer.GetExitCode(), out, answer.GetStderr())
	}
	if stack.snapshotter == "overlayfuse" && !strings.Contains(out, "fuse.overlayfuse") {
		t.Errorf("the container's root file system is not ours: %s", out)
	}
	eventually(t, 40*time.Second, "CRI measures the container's snapshot", func() bool {
		stats, err := runtime.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: id})
		return err == nil && stats.GetStats().GetWritableLayer().GetUsedBytes().GetValue() > 0
	})

	if _, err := runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: 20}); err != nil {
		t.Fatal(err)
	}
	status, err := runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	if s := status.GetStatus(); s.GetState() != cri.ContainerState_CONTAINER_EXITED || s.GetExitCode() != 7 {
		t.Errorf("after its stop the container is %v, exit code %d", s.GetState(), s.GetExitCode())
	}
	if _, err := runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if _, err := runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: podID}); err != nil {
		t.Fatal(err)
	}
	if _, err := runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: podID}); err != nil {
		t.Fatal(err)
	}
	removed = true
	if after := snapshotKeys(t, namespace, stack.snapshotter); !maps.Equal(after, before) {
		t.Errorf("snapshots after the pod: %v, before it: %v", slices.Collect(maps.Keys(after)), slices.Collect(maps.Keys(before)))
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, id) || strings.Contains(line, podID) {
			t.Errorf("still mounted: %s", line)
		}
	}
}

func containerState(ctx context.Context, t *testing.T, runtime cri.RuntimeServiceClient, id string) cri.ContainerState {
	t.Helper()
	status, err := runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	return status.GetStatus().GetState()
}
