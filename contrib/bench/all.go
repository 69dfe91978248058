package main

import "slices"

// everything is all of "bench all", in the order of the table.
func (b *bench) everything() []experiment {
	return slices.Concat(
		b.trees(),
		b.layers(),
		[]experiment{b.fileReads(), b.fileWrites(), b.smallIOs()},
		b.fios(),
		b.programs(),
		b.manyNames(),
		b.bigFirsts(),
		b.smalls()[:2], // append and chmod
		b.applications(),
		b.databases(),
		b.containers(),
		b.sharing(),
		b.footprints(),
	)
}

// bigFirsts are the first open, write and chmod of a big lower file, with the bounds of "bench all".
func (b *bench) bigFirsts() []experiment {
	var list []experiment
	for _, x := range b.latencies() {
		if x.name != "big-open" && x.name != "big-pwrite" && x.name != "big-chmod" {
			continue
		}
		x.rows = slices.Clone(x.rows)
		x.rows[0].must = []bound{against(kernel, 0.01), against(fuseOverlayfs, 0.01)}
		list = append(list, x)
	}
	return list
}

// all runs the experiments that were asked for.
func (b *bench) all() (*report, error) {
	r, err := b.series(b.everything())
	r.plotted = true
	return r, err
}
