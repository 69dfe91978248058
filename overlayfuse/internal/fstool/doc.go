// Package fstool is the hand of the script suite: a process that makes the system calls of a script, one at a time,
// and answers with their results.
//
// The test process never touches a mount that it tests (a server that hangs would hang it too). It starts this
// process (Main) with the script's directory as its working directory, and speaks lines with it (Agent): a request
// is a JSON array of words, the first an operation's name; the answer is a JSON Reply. Descriptors, mappings and locks
// live in the process under names that the script chooses, so one script can hold a file open through a copy-up.
// The credentials of a caller are those that its process was started with: there is one process for each.
//
// Terms: PATH is relative to the script's directory; FD is a name that the script gave to a descriptor; MODE is
// octal. A symlink in the last component is never followed, except by the operations that open.
//
// Errors: an answer carries the errno's name (ENOENT), or a text when the script asked for nonsense.
package fstool
