//go:build !race

package copyup

const raceEnabled = false
