// Package copyup is the data of one regular file of an overlay: in the lower file until the first write, in the upper
// file from then on.
package copyup
