//go:build !race

package powercut_test

// bigSize is the size of the largest file of the lower.
const bigSize = 64 * mib
