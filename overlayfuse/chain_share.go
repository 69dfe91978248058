package overlayfuse

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// sharedChain is what all mounts with the same lower layers and the same xattr namespace have in common: private mounts and
// descriptors of the layers, and what was read of them. Nothing in it depends on a mount's other options. The last mount closes it.
type sharedChain struct {
	key   string
	users int // protected by chains.mu

	setup   sync.Mutex // reserves the opening; held across I/O
	chain   *chain     // nil until it is open. The rest is constant from then on
	root    *entry     // the merged root
	origin  *origins
	private bool // see layers.private
	cache   *listingCache
}

// chains are those in use in this process.
//
// Locks: mu is a leaf.
var chains = struct {
	mu   sync.Mutex
	open map[string]*sharedChain
}{open: map[string]*sharedChain{}}

// chainKey is the same for two lists of layers if they are the same directories, seen through the same mounts: an idmapped
// mount shows other owners.
func chainKey(roots []layerRoot, prefix string) (string, error) {
	var b strings.Builder
	b.WriteString(prefix)
	for _, r := range roots {
		id, err := identify(r.fd)
		if err != nil {
			return "", fmt.Errorf("lower layer %s: %w", r.path, err)
		}
		fmt.Fprintf(&b, " %x:%x:%x", id.dev, id.ino, id.mount)
	}
	return b.String(), nil
}

// shareLowers makes l one of the users of its lower layers' chain, whose descriptors replace those that l has opened.
//
// Errors: those of making a private mount, each with the layer.
func (l *layers) shareLowers() error {
	key, err := chainKey(l.lower, l.namespace.Prefix())
	if err != nil {
		return err
	}
	chains.mu.Lock()
	s := chains.open[key]
	if s == nil {
		s = &sharedChain{key: key, cache: allListings}
		chains.open[key] = s
	}
	s.users++
	chains.mu.Unlock()

	if err := s.join(l); err != nil {
		return errors.Join(err, s.release())
	}
	return nil
}

// join gives l the descriptors, or makes them of those that l has.
func (s *sharedChain) join(l *layers) error {
	s.setup.Lock()
	defer s.setup.Unlock()
	if s.chain == nil {
		if err := s.openChain(l); err != nil {
			return err
		}
	} else {
		for i := range l.lower {
			closeFD(l.lower[i].fd)
			l.lower[i].fd = s.chain.roots[i].fd
		}
		l.private = l.private && s.private
	}
	l.shared = s
	return nil
}

// openChain takes the descriptors of l over; on an error they stay l's.
//
// Preconditions: setup is held.
func (s *sharedChain) openChain(l *layers) (err error) {
	for i := range l.lower {
		if err := l.privateLower(&l.lower[i]); err != nil {
			return err
		}
	}
	c := &chain{roots: append([]layerRoot(nil), l.lower...), prefix: l.namespace.Prefix(), dirs: newDirCache(), share: s}
	root, err := c.root()
	if err != nil {
		return err
	}
	if s.origin, err = openOrigins(c); err != nil {
		return err
	}
	s.chain, s.root, s.private = c, root, l.private
	return nil
}

// release gives one use up, and with the last one the descriptors.
func (s *sharedChain) release() error {
	chains.mu.Lock()
	s.users--
	last := s.users == 0
	if last {
		delete(chains.open, s.key)
	}
	chains.mu.Unlock()
	if !last || s.chain == nil {
		return nil
	}
	s.cache.drop(s.chain)
	s.chain.dirs.close()
	s.origin.close()
	var errs []error
	for _, r := range s.chain.roots {
		if err := unix.Close(r.fd); err != nil {
			errs = append(errs, fmt.Errorf("close lower layer %s: %w", r.path, err))
		}
	}
	return errors.Join(errs...)
}
