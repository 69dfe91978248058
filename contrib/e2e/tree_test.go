package e2e

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// sameDespite are the objects whose content cannot be the same in two runs; all else of them is compared.
var sameDespite = map[string]string{
	"var/log/dpkg.log":             "each line begins with the time",
	"var/log/alternatives.log":     "each line begins with the time",
	"var/cache/ldconfig/aux-cache": "holds inode numbers and change times",
	"srv/git/origin/.git/index":    "holds inode numbers and change times",
	"srv/git/clone/.git/index":     "holds inode numbers and change times",
	"srv/git/copy/.git/index":      "holds inode numbers and change times",
}

// TestContainerTreeEqualsKernelOverlayfs does the same work (work.sh: dpkg, tar, git, sqlite3, python3, find, rm and more)
// in a container on our snapshotter and in one on the kernel's overlayfs, and compares every object of the two resulting
// trees: type, mode, owner, size, link count, target, xattrs, content, and the modification time where the work set it.
// The layers below our container are untouched by it.
func TestContainerTreeEqualsKernelOverlayfs(t *testing.T) {
	text, err := script(10*time.Minute, "image.sh", "debs")
	if err != nil {
		t.Fatal(err)
	}
	debs := strings.TrimSpace(text)
	packages, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil || len(packages) < 12 {
		t.Fatalf("want a dozen packages in %s: %d, %v", debs, len(packages), err)
	}
	work, err := filepath.Abs("work.sh")
	if err != nil {
		t.Fatal(err)
	}

	var trees []map[string]string // the kernel's, ours
	for i, snapshotter := range []string{"overlayfs", stack.snapshotter} {
		loadImage(t, stack.vars["CONTAINERD_NAMESPACE"], snapshotter, "debian", "64")
		ours := i == 1
		var layers map[string]string
		if ours {
			layers = committedLayers(t)
		}
		name := fmt.Sprintf("tree-%d", i)
		now := time.Now().Unix()
		startContainer(t, snapshotter, name, "--hostname", "tree", "--tmpfs", "/tmp", "--tmpfs", "/run",
			"-v", debs+":/debs:ro", "-v", work+":/work.sh:ro", "-v", stack.treedump+":/treedump:ro",
			"localhost/demo:64", "sleep", "infinity")
		if mounts := nerdctl(t, snapshotter, "exec", name, "grep", " / ", "/proc/mounts"); snapshotter == "overlayfuse" && !strings.Contains(mounts, "fuse.overlayfuse") {
			t.Fatalf("the container's root file system is not ours: %s", mounts)
		}
		begin := time.Now()
		log, err := output(command(6*time.Minute, "nerdctl", "--snapshotter", snapshotter, "exec", name, "bash", "/work.sh"))
		if err != nil {
			t.Fatalf("on %s: %v\n%s", snapshotter, err, lastLines(log, 60))
		}
		t.Logf("the work on %s took %.1f s", snapshotter, time.Since(begin).Seconds())
		trees = append(trees, parseTree(run(t, 3*time.Minute, "nerdctl", "exec", name, "/treedump", "/", fmt.Sprint(now))))
		if ours {
			compareTrees(t, "the layers below the container, before and after", layers, committedLayersOf(t, layers))
		}
	}
	want, got := trees[0], trees[1]
	if len(want) < 5000 || len(got) == 0 {
		t.Fatalf("a Debian tree has more than %d and %d objects", len(want), len(got))
	}
	for path, why := range sameDespite {
		for _, tree := range []map[string]string{want, got} {
			if tree[path] == "" {
				t.Errorf("%s (exempt: %s) does not exist", path, why)
			}
			tree[path] = withoutContent(tree[path])
		}
	}
	compareTrees(t, "the container's tree on the kernel's overlayfs and on "+stack.snapshotter, want, got)
}

// committedLayers describes every snapshot directory of our snapshotter, by its number and path.
func committedLayers(t *testing.T) map[string]string {
	t.Helper()
	return committedLayersOf(t, nil)
}

// committedLayersOf is committedLayers of those snapshots only that another description has.
func committedLayersOf(t *testing.T, only map[string]string) map[string]string {
	t.Helper()
	root := filepath.Join(stack.vars["SNAPSHOT_ROOT"], "snapshots")
	ids, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	layers := map[string]string{}
	for _, id := range ids {
		fs := filepath.Join(root, id.Name(), "fs")
		if _, err := os.Stat(fs); err != nil {
			continue // metadata, or a snapshot that was removed
		}
		if only != nil && only[id.Name()+"/."] == "" {
			continue
		}
		for path, line := range parseTree(run(t, 2*time.Minute, stack.treedump, fs, "99999999999")) {
			layers[id.Name()+"/"+path] = line
		}
	}
	if len(layers) < 1000 {
		t.Fatalf("only %d objects in the layers of %s", len(layers), root)
	}
	return layers
}

func parseTree(text string) map[string]string {
	tree := map[string]string{}
	for line := range strings.Lines(text) {
		name, rest, _ := strings.Cut(line[1:], `" `)
		tree[name] = strings.TrimSpace(rest)
	}
	return tree
}

// withoutContent takes size and hash out of an object's description.
func withoutContent(line string) string {
	return strings.Join(slices.DeleteFunc(strings.Fields(line), func(field string) bool {
		return strings.HasPrefix(field, "size=") || strings.HasPrefix(field, "sha256=")
	}), " ")
}

func compareTrees(t *testing.T, what string, want, got map[string]string) {
	t.Helper()
	var differences []string
	for _, path := range slices.Sorted(maps.Keys(want)) {
		if got[path] != want[path] {
			differences = append(differences, fmt.Sprintf("%s\n  want %s\n  got  %s", path, want[path], got[path]))
		}
	}
	for _, path := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[path]; !ok {
			differences = append(differences, fmt.Sprintf("%s\n  want nothing\n  got  %s", path, got[path]))
		}
	}
	if n := len(differences); n > 0 {
		t.Errorf("%s: %d of %d objects differ:\n%s", what, n, len(want), strings.Join(differences[:min(n, 40)], "\n"))
	}
}

func lastLines(text string, n int) string {
	lines := strings.Split(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
