//go:build race

package overlayfuse_test

// raceEnabled: the server is built with the race detector too.
const raceEnabled = true
