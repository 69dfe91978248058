package main

import (
	"fmt"
	"os"
	"strings"
)

// Exit codes, those of mount(8).
const (
	exitOK     = 0
	exitUsage  = 1  // bad arguments or options
	exitSystem = 2  // out of memory, cannot fork, the server failed
	exitMount  = 32 // the mount failed
)

// Exit codes of "overlayfuse fsck", those of fsck(8), whose bits add up.
const (
	exitFsckClean       = 0
	exitFsckCorrected   = 1  // errors were found and corrected
	exitFsckUncorrected = 4  // errors are left
	exitFsckOperational = 8  // it could not be checked: in use, not there, no permission
	exitFsckUsage       = 16 // bad arguments or options
	exitFsckCanceled    = 32 // SIGINT or SIGTERM
)

// fail prints err as one line, and gives the exit code back.
func fail(code int, err error) int {
	_, _ = fmt.Fprintln(os.Stderr, "overlayfuse: "+oneLine(err)) // a terminal that is gone is no concern of ours
	return code
}

// oneLine is the text of an error, joined ones included, without line breaks.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
