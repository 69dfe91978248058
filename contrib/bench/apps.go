package main

import (
	"time"
)

// What people run: commands on trees, git, the Go compiler.

// slowNames is what the operations on names must keep.
var slowNames = []bound{against(kernel, 2.5), against(fuseOverlayfs, 1.0/3)}

func (b *bench) applications() []experiment {
	list := []experiment{
		{
			name:  "app-untar",
			lower: b.goTree,
			rows: []row{
				{key: "untar", title: "tar x of Go's src (11,000 files) into a new directory", must: slowNames},
				{key: "rm", title: "rm -rf of it", must: slowNames},
				{key: "cp", title: "cp -a of src of the lower layer", must: slowNames[:1]},
				{key: "rm-lower", title: "rm -rf of src of the lower layer", must: slowNames},
			},
			measure: b.scripts(
				step{Script: `tar -C "$LOWER/go" -cf "$SCRATCH/tar" src && sync -f "$ROOT"; mkdir new`},
				step{Key: "untar", Script: `tar -C new -xf "$SCRATCH/tar"`},
				step{Key: "rm", Script: `rm -rf new`},
				step{Key: "cp", Script: `cp -a go/src copy`},
				step{Key: "rm-lower", Script: `rm -rf go/src`},
			),
		},
		{
			name:  "app-grep",
			lower: b.readOnly(b.goTree),
			rows: []row{
				{key: "cold", title: "grep -r of Go's tree, cold", must: []bound{against(kernel, 1.3)}},
				{key: "warm", title: "the same, warm", must: []bound{against(kernel, 2)}},
			},
			measure: b.scripts(
				step{Key: "cold", Cold: true, Script: `! grep -rF NotInAnyOfTheFiles"Q" go/src`},
				step{Key: "warm", Times: 3, Script: `! grep -rF NotInAnyOfTheFiles"Q" go/src`},
			),
		},
		{
			name:  "app-git",
			lower: b.goTree,
			needs: lacks("git"),
			rows: []row{
				{key: "status", title: "git status in Go's tree", must: []bound{against(kernel, 1.1)}},
				{key: "first", title: "the first one, cold"},
			},
			measure: b.scripts(
				step{Key: "first", Cold: true, Script: `git -C go status`},
				step{Key: "status", Times: 5, Script: `git -C go status`},
			),
		},
		b.compiling(),
	}
	for i := range list {
		list[i].systems = all
		list[i].deadline = b.within(10 * time.Minute)
	}
	return list
}

// compiling is a build whose sources, tools, cache and result are all on the mount.
func (b *bench) compiling() experiment {
	program := "cmd/go"
	if b.quick {
		program = "cmd/vet"
	}
	const build = `GOROOT="$ROOT/go" GOCACHE="$ROOT/cache" GOTMPDIR="$ROOT/tmp" GOPATH="$ROOT/path" GOFLAGS=-mod=mod GOPROXY=off \
		GOTOOLCHAIN=local GOENV=off CGO_ENABLED=0 go/bin/go -C go/src/cmd build -buildvcs=false -o "$ROOT/program" `
	return experiment{
		name:  "app-go-build",
		lower: b.goTree,
		rows: []row{
			{key: "build", title: "go build " + program + " (200+ packages), empty cache", must: []bound{against(kernel, 1.1)}},
			{key: "again", title: "the same again, nothing to do", must: []bound{against(kernel, 1.1)}},
		},
		measure: b.scripts(
			step{Script: `mkdir cache tmp path`},
			step{Key: "build", Script: build + program},
			step{Key: "again", Times: 5, Script: build + program},
		),
	}
}

// scripts measures steps.
func (b *bench) scripts(list ...step) func(m *mounted, round int) (values, error) {
	return func(m *mounted, _ int) (values, error) { return b.steps(b.within(10*time.Minute), m, list...) }
}
