// Package systemd holds unit files, and tests of them.
package systemd
