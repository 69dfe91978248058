package overlayfuse

import (
	"fmt"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/copyup"
)

// MaxLayers is the largest number of lower layers of one mount.
// Compare: fs/overlayfs/params.h:OVL_MAX_STACK (Linux 6.18).
const MaxLayers = 500

// Config says what one mount is made of. The zero value of every field but Lower is its default.
type Config struct {
	// Lower are the lower layers, the topmost first: 1 to MaxLayers.
	Lower []string
	// Upper and Work are both set or both empty. Empty: the mount is read-only.
	Upper, Work string

	// ReadOnly refuses every change, also with an upper.
	ReadOnly bool
	// Volatile never waits for the disk: a crash of the machine can lose what the mount wrote, and the upper is then refused.
	Volatile bool
	// NoACL leaves POSIX ACLs out: they are neither shown nor set.
	NoACL bool
	// NoXattrs shows no extended attributes and sets none.
	NoXattrs bool
	// StaticNlink shows every directory with one link.
	StaticNlink bool

	// Namespace is the xattr namespace of the overlay's own marks.
	Namespace Namespace
	// Atime says when a read changes a file's access time; files of a lower layer never change theirs.
	Atime AtimePolicy
	// NoDirAtime keeps the access times of directories whatever Atime says.
	NoDirAtime bool

	// UIDMap and GIDMap translate the ids that the layers hold to those that the mount shows. Empty: the same.
	UIDMap, GIDMap []IDMap
	// SquashUID and SquashGID, if set, own every file that the mount shows; they come before UIDMap and GIDMap.
	SquashUID, SquashGID *uint32

	// PartialAbove is the size in bytes of a lower file above which the first write copies only the blocks that are written.
	// Nil: copyup.DefaultPartialAbove.
	PartialAbove *int64
	// IO says which open files the kernel may read and write by itself.
	IO IOPolicy
	// Sharing says which lower files use the lower's pages.
	Sharing Sharing
	// Background bounds dropping pages of the upper and completing files. Nil: copyup.DefaultBackground.
	Background *copyup.BackgroundConfig

	// Log gets what cannot be returned to a caller. Nil: logrus's standard logger.
	Log *logrus.Entry
}

func (c *Config) partialAbove() int64 {
	if c.PartialAbove == nil {
		return copyup.DefaultPartialAbove
	}
	return *c.PartialAbove
}

// engine is the bounds of the background, to be changed.
func (c *Config) engine() *copyup.BackgroundConfig {
	if c.Background == nil {
		b := copyup.DefaultBackground
		c.Background = &b
	}
	return c.Background
}

func (c *Config) background() copyup.BackgroundConfig {
	if c.Background == nil {
		return copyup.DefaultBackground
	}
	return *c.Background
}

// Namespace is the prefix under which the overlay's marks (opaque, redirect, metacopy, origin) are stored.
type Namespace uint8

const (
	// NamespaceAuto is NamespaceTrusted for root of the initial user namespace and NamespaceUser for everybody else.
	NamespaceAuto Namespace = iota
	// NamespaceTrusted is "trusted.overlay.", as in a privileged mount of the kernel's overlayfs.
	NamespaceTrusted
	// NamespaceUser is "user.overlay.", as with the kernel's option userxattr.
	NamespaceUser
)

// Prefix is the full prefix of the overlay's xattrs, with its last dot.
func (n Namespace) Prefix() string {
	if n.resolve() == NamespaceUser {
		return "user.overlay."
	}
	return "trusted.overlay."
}

func (n Namespace) String() string {
	switch n {
	case NamespaceAuto:
		return "auto"
	case NamespaceTrusted:
		return "trusted"
	case NamespaceUser:
		return "user"
	}
	return fmt.Sprintf("Namespace(%d)", uint8(n))
}

// resolve is never NamespaceAuto.
func (n Namespace) resolve() Namespace {
	if n != NamespaceAuto {
		return n
	}
	if privileged() {
		return NamespaceTrusted
	}
	return NamespaceUser
}

// AtimePolicy is the mount's rule for access times.
type AtimePolicy uint8

const (
	// AtimeRelative is mount(8)'s relatime.
	AtimeRelative AtimePolicy = iota
	// AtimeStrict is mount(8)'s strictatime.
	AtimeStrict
	// AtimeNone is mount(8)'s noatime.
	AtimeNone
)

func (a AtimePolicy) String() string {
	switch a {
	case AtimeRelative:
		return "relatime"
	case AtimeStrict:
		return "strictatime"
	case AtimeNone:
		return "noatime"
	}
	return fmt.Sprintf("AtimePolicy(%d)", uint8(a))
}

// check is what can be said about the configuration without looking at a file.
//
// Errors: EINVAL, with the reason.
func (c *Config) check() error {
	switch {
	case len(c.Lower) == 0:
		return fmt.Errorf("no lower layer: lowerdir= is missing: %w", unix.EINVAL)
	case len(c.Lower) > MaxLayers:
		return fmt.Errorf("%d lower layers, at most %d are possible: %w", len(c.Lower), MaxLayers, unix.EINVAL)
	case c.Upper != "" && c.Work == "":
		return fmt.Errorf("upperdir %s needs a workdir: %w", c.Upper, unix.EINVAL)
	case c.Upper == "" && c.Work != "":
		return fmt.Errorf("workdir %s needs an upperdir: %w", c.Work, unix.EINVAL)
	}
	for i, l := range c.Lower {
		if l == "" {
			return fmt.Errorf("lower layer %d of %d has an empty path: %w", i+1, len(c.Lower), unix.EINVAL)
		}
	}
	if err := checkIDMaps("uidmapping", c.UIDMap); err != nil {
		return err
	}
	return checkIDMaps("gidmapping", c.GIDMap)
}
