package kubernetes

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// object is what the tests read of a manifest.
type object struct {
	Kind     string
	Metadata struct{ Name, Namespace string }
	Handler  string
	Data     map[string]string
	Spec     struct {
		UpdateStrategy struct{ Type string }
		Template       struct {
			Spec struct {
				HostPID    bool
				Containers []container
				Volumes    []struct {
					Name      string
					HostPath  struct{ Path string }
					ConfigMap struct{ Name string }
				}
			}
		}
	}
}

type container struct {
	Name, Image     string
	Command         []string
	SecurityContext struct{ Privileged bool }
	VolumeMounts    []struct{ Name, MountPath, MountPropagation string }
}

// build is the base as `kubectl apply -k` would send it, by kind.
func build(t *testing.T) map[string]object {
	t.Helper()
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), "base")
	if err != nil {
		t.Fatal(err)
	}
	objects := map[string]object{}
	for _, resource := range resources.Resources() {
		text, err := resource.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		var o object
		if err := json.Unmarshal(text, &o); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		objects[o.Kind] = o
	}
	return objects
}

func TestBaseBuildsAndIsComplete(t *testing.T) {
	objects := build(t)
	for _, kind := range []string{"Namespace", "RuntimeClass", "DaemonSet", "ConfigMap"} {
		if _, ok := objects[kind]; !ok {
			t.Errorf("no %s", kind)
		}
	}
	if got := objects["DaemonSet"].Metadata.Namespace; got != objects["Namespace"].Metadata.Name {
		t.Errorf("the DaemonSet is in namespace %q, not in its own %q", got, objects["Namespace"].Metadata.Name)
	}
	if got := objects["DaemonSet"].Spec.UpdateStrategy.Type; got != "OnDelete" {
		t.Errorf("updateStrategy %q ends mounts without asking", got)
	}
}

// TestHandlerIsAContainerdRuntime: the RuntimeClass names a runtime of the containerd drop-in.
func TestHandlerIsAContainerdRuntime(t *testing.T) {
	text, err := os.ReadFile("../containerd/overlayfuse.toml")
	if err != nil {
		t.Fatal(err)
	}
	if want := "containerd.runtimes." + build(t)["RuntimeClass"].Handler + "]"; !strings.Contains(string(text), want) {
		t.Errorf("the drop-in has no %s", want)
	}
}

// TestMountsReachTheNode: the paths of the configuration are host paths under the same names, and mounts below the root
// propagate to the node.
func TestMountsReachTheNode(t *testing.T) {
	objects := build(t)
	pod := objects["DaemonSet"].Spec.Template.Spec
	if !pod.HostPID {
		t.Error("not in the node's pid namespace")
	}
	host := map[string]string{}
	for _, volume := range pod.Volumes {
		host[volume.Name] = volume.HostPath.Path
		if name := volume.ConfigMap.Name; name != "" && name != objects["ConfigMap"].Metadata.Name {
			t.Errorf("volume %s: ConfigMap %s is not the generated %s", volume.Name, name, objects["ConfigMap"].Metadata.Name)
		}
	}
	if len(pod.Containers) != 2 {
		t.Fatalf("%d containers, want the mount server and the daemon apart", len(pod.Containers))
	}
	config := objects["ConfigMap"].Data["config.toml"]
	for _, c := range pod.Containers {
		if !c.SecurityContext.Privileged {
			t.Errorf("%s is not privileged, which Bidirectional needs", c.Name)
		}
		if !strings.HasPrefix(c.Image, "localhost/overlayfuse-snapshotter:") {
			t.Errorf("%s: image %s was not set by kustomize", c.Name, c.Image)
		}
		propagates := false
		for _, m := range c.VolumeMounts {
			path, ok := host[m.Name]
			if !ok {
				t.Errorf("%s: no volume %s", c.Name, m.Name)
			}
			if path != "" && path != m.MountPath {
				t.Errorf("%s: %s of the node is %s in the container: paths must be the same on both", c.Name, path, m.MountPath)
			}
			if path != "" && path != "/dev/fuse" && !strings.Contains(config, `"`+path) {
				t.Errorf("%s: %s is not in config.toml", c.Name, path)
			}
			propagates = propagates || m.MountPropagation == "Bidirectional" && strings.Contains(config, `root = "`+m.MountPath+`"`)
		}
		if !propagates {
			t.Errorf("%s: mounts below the root do not reach the node", c.Name)
		}
		if slices.Contains(c.Command, "serve") && !strings.Contains(config, `socket = "`+c.Command[len(c.Command)-1]+`"`) {
			t.Errorf("%s listens on %s, which config.toml does not name", c.Name, c.Command[len(c.Command)-1])
		}
	}
}
