package overlayfuse

import "github.com/hanwen/go-fuse/v2/fuse"

// The io mode of an open: cached, always. The pages of the FUSE inode are the one view that every reader, writer and
// mapping shares, so they are kept from one open to the next; the real files are only where they come from and go to.
// Nothing else sets FOPEN flags, and none of them lets the kernel use a real file by itself.

// openFlags are the FOPEN flags for a regular file. dropCache: the pages must be read again (see atimeDue).
func openFlags(write, dropCache bool) uint32 {
	flags := uint32(0)
	if !dropCache {
		flags |= fuse.FOPEN_KEEP_CACHE
	}
	if !write {
		// Closing has nothing to say: it works, and costs nothing, also while no server lives.
		flags |= fuse.FOPEN_NOFLUSH
	}
	return flags
}

// openDirFlags are the FOPEN flags for a directory.
func openDirFlags() uint32 { return 0 }
