//go:build race

package copyup

const raceEnabled = true
