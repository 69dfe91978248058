//go:build race

package powercut_test

// bigSize is smaller with the race detector, which looks at each byte of the copies that is read and compared.
const bigSize = 16 * mib
