package overlayfuse

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"
)

// openCheck opens and locks the layers as a mount does, but changes nothing in them.
//
// Errors: see Check.
func openCheck(ctx context.Context, cfg Config, opts CheckOptions) (_ *checker, err error) {
	if err := checkable(cfg); err != nil {
		return nil, err
	}
	l := &layers{upper: noRoot, work: noRoot, temp: noRoot, index: noRoot, clone: -1,
		namespace: cfg.Namespace.resolve(), private: hasCapability(unix.CAP_SYS_ADMIN)}
	c := &checker{ctx: ctx, repair: opts.Repair, layers: l, prefix: l.namespace.Prefix(), links: map[objKey]*linkedObject{}}
	defer func() {
		if err != nil {
			_ = c.close() // the cause is the error that is returned
		}
	}()
	if l.namespace == NamespaceTrusted && !privileged() {
		return nil, fmt.Errorf("trusted.overlay xattrs need CAP_SYS_ADMIN in the initial user namespace; "+
			"use the option userxattr: %w", unix.EPERM)
	}
	if err := l.openForCheck(cfg, opts.Repair); err != nil {
		return nil, err
	}
	c.upper = &chain{roots: []layerRoot{l.upper}, prefix: c.prefix, dirs: newDirCache()}
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(l.upper.fd, &sfs); err != nil {
		return nil, fmt.Errorf("upperdir %s: statfs: %w", l.upper.path, err)
	}
	c.unit = max(int64(sfs.Bsize), 512)
	if len(l.lower) == 0 {
		return c, nil
	}
	c.lower = &chain{roots: l.lower, prefix: c.prefix, dirs: newDirCache()}
	c.origin, err = openOrigins(c.lower)
	return c, err
}

// checkable is Config.check of a configuration that may lack lowers and must have an upper.
func checkable(cfg Config) error {
	if cfg.Upper == "" {
		return fmt.Errorf("no upper to check: upperdir= is missing: %w", unix.EINVAL)
	}
	if len(cfg.Lower) == 0 {
		cfg.Lower = []string{"/"} // for the check of the rest
	}
	return cfg.check()
}

// openForCheck opens what cfg names. What a mount would make in the workdir need not be there: temp and index may be noRoot.
func (l *layers) openForCheck(cfg Config, repair bool) (err error) {
	for _, p := range cfg.Lower {
		r, err := openRoot("lower layer", p)
		if err != nil {
			return err
		}
		l.lower = append(l.lower, r)
	}
	if l.upper, err = openRoot("upperdir", cfg.Upper); err != nil {
		return err
	}
	if l.work, err = openRoot("workdir", cfg.Work); err != nil {
		return err
	}
	if err := l.checkOverlap(); err != nil {
		return err
	}
	if repair {
		if err := writable("upperdir", l.upper); err != nil {
			return err
		}
	}
	if err := l.lock("upperdir", l.upper); err != nil {
		return err
	}
	if err := l.lock("workdir", l.work); err != nil {
		return err
	}
	cfg.Atime, cfg.NoDirAtime = AtimeNone, false
	if err := l.privateUpper(cfg); err != nil {
		return err
	}
	if !repair && l.clone >= 0 {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(l.clone, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return fmt.Errorf("upperdir %s: read-only mount: %w", l.upper.path, err)
		}
	}
	for i := range l.lower {
		if err := l.privateLower(&l.lower[i]); err != nil {
			return err
		}
	}
	return nil
}

// close gives everything up. A second call does nothing.
func (c *checker) close() error {
	for _, ch := range []*chain{c.upper, c.lower} {
		if ch != nil {
			ch.dirs.close()
		}
	}
	if c.origin != nil {
		c.origin.close()
	}
	return c.layers.close()
}

// syncUpper writes back the upper's file system (syncfs(2)).
func (c *checker) syncUpper() error {
	fd, err := openIn(c.layers.upper.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("upperdir %s: open: %w", c.layers.upper.path, err)
	}
	defer closeFD(fd)
	if err := unix.Syncfs(fd); err != nil {
		return fmt.Errorf("upperdir %s: syncfs: %w", c.layers.upper.path, err)
	}
	return nil
}
