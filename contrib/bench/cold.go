package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// dropCaches writes back the file system that path is on, and then drops all clean pages, entries and inodes of the
// machine; proc_sys_vm(5).
func dropCaches(path string) error {
	if err := syncPath(path, unix.Syncfs); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}
