// Package control is how the mount server (overlayfuse serve) is driven: its protocol, its client and its server.
//
// # Terms
//
// A mount has an ID, chosen by the client. It is mounted while it is on its mount point, and detached when it was taken
// off but is still used through a bind mount, another mount namespace or an open file. A detached mount goes on being
// served, and holds the lock on its upper directory, until its last user is gone; then its ID is free.
// A flush of directories that are not mounted takes their ID as well, while it lasts.
//
// # Protocol
//
// A Unix stream socket, mode 0600; a peer must be root or the server's own user. One request and one answer per
// connection, each a frame:
//
//	+----------------+---------------------+
//	| length, 4 byte | JSON, length bytes  |   length big-endian, at most 16 MiB
//	+----------------+---------------------+
//
// Every request carries the protocol's version; a server answers another one with EPROTONOSUPPORT and its own version.
// Unknown fields are ignored, so fields can be added. Descriptors may come with a frame as SCM_RIGHTS in a later
// version; version 1 sends none. A client that hangs up cancels a request that waits its turn, and a flush.
//
// What can be asked: ping, mount, unmount, flush, list, inspect. The answers to the last two wait for no other request, so a
// flush can be watched.
//
// # Locks
//
//	entry.turn      one operation at a time on one ID; held across system calls on layers and mounts
//	  Server.mu     the table of IDs; a leaf, never held across a system call
//
// # Errors
//
// An error crosses the socket as its text and its errno; errors.Is works on the far side for the errno and for
// ErrNotFound. An error with no errno is EIO.
//
// # What it is not
//
// Not a way to reach files: nothing here opens a path inside a mount. A server that did could wait for itself for ever;
// syncfs(2) on a mount is left to a short-lived child (child.go).
package control
