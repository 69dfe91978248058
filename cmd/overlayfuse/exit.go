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

// fail prints err as one line, and gives the exit code back.
func fail(code int, err error) int {
	_, _ = fmt.Fprintln(os.Stderr, "overlayfuse: "+oneLine(err)) // a terminal that is gone is no concern of ours
	return code
}

// oneLine is the text of an error, joined ones included, without line breaks.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
