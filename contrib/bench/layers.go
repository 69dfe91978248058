package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// What a lookup costs with one layer and with many.

const (
	layerDirs  = 100 // in every layer the same
	layerFiles = 50  // of each directory, all in the bottom layer
)

var layerCounts = []int{1, 16, 128}

// layersLower is n layers with the same directories, each layer with a file of its own in each, the bottom with all others.
func (b *bench) layersLower(n int) (*lower, error) {
	name := func(i int) string { return fmt.Sprintf("layers%d.%d", n, i) }
	var dirs []string
	for i := range n { // the bottom is 0
		l, err := b.lowerOnce(name(i), func(dir string) error {
			for d := range layerDirs {
				sub := filepath.Join(dir, fmt.Sprintf("d%03d", d))
				if err := os.Mkdir(sub, 0o755); err != nil {
					return err
				}
				files := []string{fmt.Sprintf("own%03d", i)}
				for f := 0; i == 0 && f < layerFiles; f++ {
					files = append(files, smallName(f))
				}
				for _, f := range files {
					if err := unix.Mknod(filepath.Join(sub, f), unix.S_IFREG|0o644, 0); err != nil {
						return named("mknod", filepath.Join(sub, f), err)
					}
				}
			}
			return knowNames(dir)
		})
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, l.dir)
	}
	slices.Reverse(dirs)
	return &lower{dir: dirs[0], under: dirs[1:]}, nil
}

func (b *bench) layers() []experiment {
	x := experiment{
		name:     "layers",
		systems:  overlays,
		deadline: b.within(time.Minute),
	}
	most := layerCounts[len(layerCounts)-1]
	for _, kind := range []string{"hit", "miss", "readdir"} {
		what := map[string]string{
			"hit":     fmt.Sprintf("first stat of %d files of the bottom layer", layerDirs*layerFiles),
			"miss":    fmt.Sprintf("first stat of %d missing names", layerDirs*layerFiles),
			"readdir": fmt.Sprintf("readdir of %d directories that each layer has", layerDirs),
		}[kind]
		for _, n := range layerCounts {
			x.rows = append(x.rows, row{key: fmt.Sprint(kind, n), title: fmt.Sprintf("%s, layers: %d", what, n)})
		}
		r := row{key: kind + "-ratio", title: fmt.Sprintf("the same, %d layers / 1", most), unit: times}
		if kind != "readdir" {
			r.must = []bound{atMost(1.1)}
		}
		x.rows = append(x.rows, r)
	}
	x.run = func(y system, _ int) (values, error) {
		all := values{}
		for _, n := range layerCounts {
			low, err := b.layersLower(n)
			if err != nil {
				return nil, err
			}
			m, err := b.mount(y, low, x.deadline)
			if err != nil {
				return nil, err
			}
			v, err := b.worker(x.deadline, m, "lookup", m.root())
			if err = errors.Join(err, b.discard(m)); err != nil {
				return nil, err
			}
			for kind, t := range v {
				all[fmt.Sprint(kind, n)] = t
			}
		}
		for _, kind := range []string{"hit", "miss", "readdir"} {
			all[kind+"-ratio"] = all[fmt.Sprint(kind, most)] / all[fmt.Sprint(kind, 1)]
		}
		return all, nil
	}
	return []experiment{x}
}

// knowNames has the kernel know which of the names that are looked up a layer has: the first system does not pay for that.
func knowNames(dir string) error {
	for d := range layerDirs {
		for f := range layerFiles {
			for _, suffix := range []string{"", ".none"} {
				path := filepath.Join(dir, fmt.Sprintf("d%03d", d), smallName(f)+suffix)
				if err := statPath(path); err != nil && !errors.Is(err, unix.ENOENT) {
					return err
				}
			}
		}
	}
	return nil
}

// timeLookups looks each name up for the first time. The directories themselves are looked up and opened before. Its argument: the
// directory.
func timeLookups(args []string) (values, error) {
	v := values{}
	var dirs []string
	for d := range layerDirs {
		dirs = append(dirs, filepath.Join(args[0], fmt.Sprintf("d%03d", d)))
		if err := statPath(filepath.Join(dirs[d], smallName(0))); err != nil {
			return nil, err
		}
	}
	for _, c := range []struct {
		kind, suffix string
		want         error
	}{{"hit", "", nil}, {"miss", ".none", unix.ENOENT}} {
		start := time.Now()
		for f := range layerFiles {
			for _, d := range dirs {
				if err := statPath(filepath.Join(d, smallName(f)+c.suffix)); !errors.Is(err, c.want) {
					return nil, fmt.Errorf("%s: %w", c.kind, errors.Join(err, unix.EUCLEAN))
				}
			}
		}
		v[c.kind] = since(start)
	}
	start := time.Now()
	err := treePasses["readdir"](args[0], treeNames{dirs: dirs})
	v["readdir"] = since(start)
	return v, err
}
