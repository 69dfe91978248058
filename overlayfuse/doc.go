// Package overlayfuse is an overlay file system on FUSE.
package overlayfuse
