package snapshotter

import (
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse"
)

// mountTable is the mounts of this process's mount namespace (proc_pid_mountinfo(5)).
type mountTable []*mountinfo.Info

func readMountTable() (mountTable, error) {
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	return all, nil
}

// hasFUSE tells whether a mount server's mount of a directory in points, or a bind of one, is there.
func (t mountTable) hasFUSE(points string) bool {
	for _, m := range t {
		if m.FSType == overlayfuse.Type && strings.HasPrefix(m.Source, points+"/") {
			return true
		}
	}
	return false
}

// on is what is mounted on a path, the topmost; nil if nothing is.
func (t mountTable) on(path string) *mountinfo.Info {
	for _, m := range slices.Backward(t) {
		if m.Mountpoint == path {
			return m
		}
	}
	return nil
}

// sessionOf tells whether m is the mount server's mount of a mount point, or a bind of it.
func sessionOf(m *mountinfo.Info, point string) bool {
	return m.FSType == overlayfuse.Type && m.Source == point
}

// sessions is a mount of each session of a mount point, dead or not, wherever it is.
//
// Errors: errdefs.ErrFailedPrecondition if other mounts hide all of one.
func (t mountTable) sessions(point string) ([]*mountinfo.Info, error) {
	byDevice := make(map[string]*mountinfo.Info)
	for _, m := range t {
		if d := overlayfuse.DeviceOf(m); sessionOf(m, point) && (byDevice[d] == nil || t.on(m.Mountpoint) == m) {
			byDevice[d] = m
		}
	}
	var all []*mountinfo.Info
	for _, m := range byDevice {
		if t.on(m.Mountpoint) != m {
			return nil, fmt.Errorf("%s is hidden by what is mounted over it: %w", m.Mountpoint, errdefs.ErrFailedPrecondition)
		}
		all = append(all, m)
	}
	return all, nil
}

// readOnlyBelow is the names in the directory on which a file system that is read-only as a whole is mounted.
func (t mountTable) readOnlyBelow(dir string) map[string]bool {
	names := make(map[string]bool)
	for _, m := range t {
		if name, ok := strings.CutPrefix(m.Mountpoint, dir+"/"); ok && slices.Contains(strings.Split(m.VFSOptions, ","), "ro") {
			names[name] = true
		}
	}
	return names
}

// using is the names of the directory's entries that are bound somewhere, have something mounted below them or are layers of an overlay.
func (t mountTable) using(dir string) map[string]bool {
	used := make(map[string]bool)
	t.addBinds(dir, used)
	for _, m := range t {
		if rest, ok := strings.CutPrefix(m.Mountpoint, dir+"/"); ok {
			name, _, _ := strings.Cut(rest, "/")
			used[name] = true
		}
		if m.FSType == "overlay" {
			addLayers(dir, m.VFSOptions, used)
		}
	}
	return used
}

// addBinds finds binds: mounts of the directory's file system whose root is below the directory.
func (t mountTable) addBinds(dir string, used map[string]bool) {
	var home *mountinfo.Info // the mount that the directory is on: the longest and, among equals, the last
	for _, m := range t {
		if within(dir, m.Mountpoint) && (home == nil || len(m.Mountpoint) >= len(home.Mountpoint)) {
			home = m
		}
	}
	if home == nil {
		return
	}
	inFS := filepath.Join(home.Root, strings.TrimPrefix(dir, strings.TrimSuffix(home.Mountpoint, "/")))
	for _, m := range t {
		if m.Major != home.Major || m.Minor != home.Minor {
			continue
		}
		if rest, ok := strings.CutPrefix(m.Root, strings.TrimSuffix(inFS, "/")+"/"); ok {
			name, _, _ := strings.Cut(rest, "/")
			used[name] = true
		}
	}
}

// within tells whether path is dir or below it.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// relativeLayer is a layer as containerd names it when the list is too long for a page: it mounts from within snapshots/.
// Compare: containerd core/mount/mount_linux.go:compactLowerdirOption() (2.4.2).
var relativeLayer = regexp.MustCompile(`^([0-9]+)/fs$`)

// addLayers finds our layers in the options of an overlay. A relative layer of an overlay whose upper is elsewhere is not ours.
func addLayers(dir, options string, used map[string]bool) {
	dir = escapeOption(dir)
	foreign := false
	var relative []string
	for _, option := range strings.Split(options, ",") {
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case "lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir":
		default:
			continue
		}
		for _, layer := range strings.Split(value, ":") {
			if rest, ok := strings.CutPrefix(layer, dir+"/"); ok {
				name, _, _ := strings.Cut(rest, "/")
				used[name] = true
			} else if m := relativeLayer.FindStringSubmatch(layer); m != nil {
				relative = append(relative, m[1])
			} else if key == "upperdir" {
				foreign = true
			}
		}
	}
	if !foreign {
		for _, name := range relative {
			used[name] = true
		}
	}
}

// escapeOption writes a path as the kernel shows it in mount options. Compare: fs/seq_file.c:seq_show_option() (Linux 6.18).
func escapeOption(path string) string {
	return strings.NewReplacer(" ", `\040`, "\t", `\011`).Replace(path)
}
