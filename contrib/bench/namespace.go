package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// namespaceVariable names the mount namespace that ownNamespace made, for the program that it executes.
const namespaceVariable = "BENCH_MOUNT_NAMESPACE"

// ownNamespace executes this program again in a mount namespace of its own: whatever ends the run, its mounts are gone
// with its last process. It returns only in there, or with an error.
//
// Preconditions: the goroutine is locked to its thread.
func ownNamespace() error {
	here, err := os.Readlink("/proc/thread-self/ns/mnt")
	if err != nil {
		return err
	}
	if os.Getenv(namespaceVariable) == here {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if here, err = os.Readlink("/proc/thread-self/ns/mnt"); err != nil {
		return err
	}
	if err := os.Setenv(namespaceVariable, here); err != nil {
		return err
	}
	return unix.Exec("/proc/self/exe", os.Args, os.Environ())
}
