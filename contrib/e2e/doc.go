// Package e2e holds tests of the whole line: a private containerd (contrib/stack) with this repository's snapshotter,
// and real containers on it. The tests need root, /dev/fuse and what contrib/stack/install.sh installs, and leave
// nothing behind.
//
// One stack serves all tests of a run. Every command has a deadline. SNAPSHOTTER=overlayfs runs the tests that do not
// concern our own processes on the kernel's overlayfs, to tell a fault of a test from a fault of ours.
package e2e
