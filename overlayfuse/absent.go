package overlayfuse

import "sync/atomic"

// absentXattrs remembers that an object has none of the attributes that are asked for all the time. Nobody but the mount sets any.
type absentXattrs struct{ v atomic.Uint32 }

// Of each attribute, one bit says that it is known not to be there, and the next one that it must be looked for from now on.
const (
	absentCapability = 1 << (2 * iota) // security.capability, before every first write
	absentDefaultACL                   // system.posix_acl_default, at every creation in a directory
)

// absentBit is the attribute's first bit; 0: nothing is remembered of it.
func absentBit(name string) uint32 {
	switch name {
	case capabilityXattr:
		return absentCapability
	case aclDefault:
		return absentDefaultACL
	}
	return 0
}

// known tells that the attribute is not there.
func (a *absentXattrs) known(bit uint32) bool { return a.v.Load()&(bit|bit<<1) == bit && bit != 0 }

// note is called by who looked and found nothing. An attribute that somebody has begun to set meanwhile stays to be looked for.
func (a *absentXattrs) note(bit uint32) {
	for {
		old := a.v.Load()
		if bit == 0 || old&(bit<<1) != 0 || a.v.CompareAndSwap(old, old|bit) {
			return
		}
	}
}

// forget is called before the attribute is set.
func (a *absentXattrs) forget(bit uint32) { a.v.Or(bit << 1) }
