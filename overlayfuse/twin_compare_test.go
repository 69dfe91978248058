package overlayfuse_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/internal/fstool"
)

// view is who shows the tree that is compared with the twin.
type view int

const (
	ourView view = iota
	kernelView
)

// snapshot reads a whole tree from a process of root.
func (r *rig) snapshot(tree string, handles bool) ([]fstool.Object, error) {
	words := []string{"snapshot", tree}
	if handles {
		words = append(words, "handles")
	}
	out, err := r.must(words...)
	if err != nil {
		return nil, err
	}
	var all []fstool.Object
	err = json.Unmarshal([]byte(out), &all)
	return all, err
}

// check compares the overlay with its twin: every object, its links and its number.
func (r *rig) check() *mismatch {
	if !r.mounted {
		return &mismatch{"gone", "the overlay is not mounted"}
	}
	twin, err := r.snapshot("r", true)
	if err != nil {
		return fault("twin", err)
	}
	ours, err := r.snapshot("m", false)
	if err != nil {
		return fault("hang", err)
	}
	if mis := compareTrees("tree", twin, ours, ourView); mis != nil {
		return mis
	}
	return r.checkNumbers(twin, ours)
}

// compareTrees returns the first difference of a tree from the twin.
func compareTrees(what string, twin, tree []fstool.Object, who view) *mismatch {
	byPath := map[string]fstool.Object{}
	for _, o := range tree {
		byPath[o.Path] = o
	}
	for _, t := range twin {
		o, ok := byPath[t.Path]
		if !ok {
			return &mismatch{what + " missing", t.Path}
		}
		delete(byPath, t.Path)
		if field, text := difference(t, o, who); field != "" {
			return &mismatch{what + " " + field, fmt.Sprintf("%s (%s): %s", t.Path, t.Type, text)}
		}
	}
	for _, path := range slices.Sorted(maps.Keys(byPath)) {
		return &mismatch{what + " extra", path}
	}
	if a, b := linkGroups(twin), linkGroups(tree); a != b {
		return &mismatch{what + " links", "twin " + a + "\ntree " + b}
	}
	return nil
}

// difference compares all but numbers and counts of links. Times: those that were set must be equal, and those that a change made
// must not be old.
func difference(t, o fstool.Object, who view) (field, text string) {
	for _, f := range []struct {
		name       string
		twin, tree any
	}{
		{"error", t.Err, o.Err}, {"type", t.Type, o.Type}, {"mode", fmt.Sprintf("%o", t.Mode), fmt.Sprintf("%o", o.Mode)},
		{"owner", [2]uint32{t.UID, t.GID}, [2]uint32{o.UID, o.GID}}, {"size", t.Size, o.Size}, {"rdev", t.Rdev, o.Rdev},
		{"xattrs", fmt.Sprint(t.Xattrs), fmt.Sprint(o.Xattrs)}, {"content", t.Content, o.Content}, {"mtime", timeOf(t), timeOf(o)},
	} {
		if f.name == "mtime" && t.Type == "fifo" && f.twin == today {
			continue // what is written into a pipe, neither FUSE nor the kernel's overlayfs tells the file
		}
		if f.twin != f.tree {
			return f.name, fmt.Sprintf("%s is %v, must be %v", f.name, f.tree, f.twin)
		}
	}
	if want := fmt.Sprint(o.Ino, " ", o.Type); o.Listed != want && who == ourView {
		return "listing", fmt.Sprintf("listed as %s, stat says %s", o.Listed, want)
	}
	return "", ""
}

const today = "today"

func timeOf(o fstool.Object) string {
	if o.Mtime > todayTime {
		return today
	}
	return fmt.Sprint(o.Mtime)
}

// linkGroups tells which names are one object.
func linkGroups(tree []fstool.Object) string {
	names := map[uint64][]string{}
	for _, o := range tree {
		names[o.Ino] = append(names[o.Ino], o.Path)
	}
	var groups []string
	for _, g := range names {
		if len(g) > 1 {
			groups = append(groups, strings.Join(g, "="))
		}
	}
	slices.Sort(groups)
	return strings.Join(groups, " ")
}

// checkNumbers compares link counts, and st_ino with what the same object had before. At its first call after a mount of new layers
// it takes both as they are.
func (r *rig) checkNumbers(twin, ours []fstool.Object) *mismatch {
	first := r.hidden == nil
	if first {
		r.hidden = map[uint64]uint32{}
	}
	seen := map[string]uint64{}
	for i, t := range twin { // both are sorted, and have the same names
		o := ours[i]
		if o.Dev != ours[0].Dev {
			return &mismatch{"st_dev", fmt.Sprintf("%s: %s, the root %s", o.Path, o.Dev, ours[0].Dev)}
		}
		seen[t.Handle] = o.Ino
		if was, ok := r.inos[t.Handle]; ok && was != o.Ino {
			return &mismatch{"st_ino changed", fmt.Sprintf("%s (%s): was %d, is %d", o.Path, o.Type, was, o.Ino)}
		}
		if first && o.Nlink > t.Nlink {
			r.hidden[o.Ino] = o.Nlink - t.Nlink
		}
		if r.flushed && o.Nlink == t.Nlink {
			delete(r.hidden, o.Ino) // the file has all its names in the upper now
		}
		if want := t.Nlink + r.hidden[o.Ino]; o.Nlink != want {
			return &mismatch{"nlink", fmt.Sprintf("%s (%s): %d links, must be %d (%d of them out of sight)", o.Path, o.Type, o.Nlink, want, r.hidden[o.Ino])}
		}
	}
	r.inos = seen
	return nil
}

// asOverlay makes of the twin's reply what an overlay says, where the file system below it says something else than ext4 does: xfs has
// EEXIST for a directory that is not empty, as rename(2) allows, and btrfs tells everybody of trusted.* xattrs.
func asOverlay(s step, twin *fstool.Reply, ours fstool.Reply) {
	switch {
	case s.words[0] == "rename" && !slices.Contains(s.words, "noreplace") && twin.Errno == "EEXIST" && ours.Errno == "ENOTEMPTY":
		twin.Errno = ours.Errno
	case s.words[0] == "lsxattr" && s.who != "":
		names := slices.DeleteFunc(strings.Fields(twin.Out), func(n string) bool { return strings.HasPrefix(n, "trusted.") })
		twin.Out = strings.Join(names, " ")
	}
}

// compareReplies compares the results of one operation.
func (r *rig) compareReplies(s step, twin, ours fstool.Reply) *mismatch {
	fd := ""
	if len(s.words) > 1 && strings.HasPrefix(s.words[1], "#") {
		fd = s.words[1]
	}
	switch s.words[0] {
	case "open", "opendir", "tmpfile":
		if ours.Errno == "" {
			delete(r.fdInos, s.who+fd)
		}
	case "fstat":
		if mis := r.compareStats(s, fd, &twin, &ours); mis != nil {
			return mis
		}
	}
	asOverlay(s, &twin, ours)
	if twin != ours {
		show := func(p fstool.Reply) string { return strings.TrimSpace(p.Errno + " " + p.Bad + " " + p.Out) }
		return &mismatch{"reply of " + s.words[0] + " " + twin.Errno + "/" + ours.Errno, fmt.Sprintf("%v: twin %q, ours %q", s, show(twin), show(ours))}
	}
	return nil
}

// compareStats checks the inode number, and takes out of the replies what may differ: it, a directory's size, links out of sight.
func (r *rig) compareStats(s step, fd string, twin, ours *fstool.Reply) *mismatch {
	t, o := strings.Fields(twin.Out), strings.Fields(ours.Out)
	if len(t) != 7 || len(o) != 7 {
		return nil
	}
	key := s.who + fd
	if was, ok := r.fdInos[key]; ok && was != o[6] {
		return &mismatch{"fstat st_ino changed", fmt.Sprintf("%v: was %s, is %s", s, was, o[6])}
	}
	r.fdInos[key] = o[6]
	keep := 5
	if t[0] == "dir" {
		keep = 4
	}
	var ino uint64
	var links, want uint32
	if _, err := fmt.Sscan(o[6], &ino); err != nil {
		return fault("fstat", err)
	}
	if _, err := fmt.Sscan(o[5]+" "+t[5], &links, &want); err != nil {
		return fault("fstat", err)
	}
	if t[0] != "dir" && links != want+r.hidden[ino] && links != want {
		return &mismatch{"fstat nlink", fmt.Sprintf("%v: %d links, must be %d", s, links, want+r.hidden[ino])}
	}
	twin.Out, ours.Out = strings.Join(t[:keep], " "), strings.Join(o[:keep], " ")
	return nil
}
