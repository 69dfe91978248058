package main

import (
	"reflect"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/overlayfuse/overlayfuse-snapshotter/config"
	"github.com/overlayfuse/overlayfuse-snapshotter/copyup"
	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse"
)

// TestExampleSaysTheDefaultsOfTheEngine: package config, which writes them down, knows nothing of the engine.
func TestExampleSaysTheDefaultsOfTheEngine(t *testing.T) {
	found := regexp.MustCompile(`(?m)^#   ([a-z_]+=\S+)`).FindAllStringSubmatch(config.Example, -1)
	options := []string{"lowerdir=/l"}
	for _, m := range found {
		options = append(options, m[1])
	}
	o, err := overlayfuse.ParseOptions(options...)
	require.NoError(t, err)
	require.Equal(t, int64(copyup.DefaultPartialAbove), *o.Config.PartialAbove)
	require.Equal(t, copyup.DefaultBackground, *o.Config.Background)
	settable := reflect.TypeOf(copyup.BackgroundConfig{}).NumField() - 2 // Tick is for tests, Shared no choice
	require.Len(t, found, settable+1, "partial_above and the bounds of the background")
}
