package overlayfuse

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// optionName is what one name may look like: alone, with a value, or both.
type optionName struct {
	bare  func(p *optionParser)
	value func(p *optionParser, v string) error
}

// labelOptions are SELinux's, mount(8) "FILESYSTEM-INDEPENDENT MOUNT OPTIONS"; their values may be quoted.
var labelOptions = map[string]bool{"context": true, "fscontext": true, "defcontext": true, "rootcontext": true}

// refusedOptions are names that users of overlayfs, fuse-overlayfs and mount(8) may bring, and why they cannot be had.
var refusedOptions = map[string]string{
	"allow_root":        "access by root alone is not supported, permissions are the kernel's",
	"auto_unmount":      "the mount is not tied to a helper process",
	"bind":              "not a bind mount",
	"datadir+":          "data-only layers are not supported",
	"dirsync":           "changes of directories are not synchronous; use fsync(2)",
	"gid":               "use squash_to_gid=",
	"mand":              "mandatory locks are gone from Linux",
	"override_creds":    "the mounter's credentials cannot be overridden",
	"plugins":           "plugins of fuse-overlayfs are not supported",
	"remount":           "an overlay cannot be remounted with other options",
	"uid":               "use squash_to_uid=",
	"uuid":              "the file system id is not configurable",
	"xattr_permissions": "owner and mode are the files' own, not kept in xattrs",
}

// knownOptions are all the names that are taken.
var knownOptions = map[string]optionName{
	// Layers: Documentation/filesystems/overlayfs.rst and fuse-overlayfs(1).
	"lowerdir": {value: func(p *optionParser, v string) (err error) {
		p.Config.Lower, err = splitLayers(v)
		return err
	}},
	"lowerdir+": {value: func(p *optionParser, v string) error {
		if v == "" {
			return fmt.Errorf("empty path of a layer")
		}
		p.Config.Lower = append(p.Config.Lower, unescape(v))
		return nil
	}},
	"upperdir": pathOption(func(c *Config) *string { return &c.Upper }),
	"workdir":  pathOption(func(c *Config) *string { return &c.Work }),

	// Behaviour, of both.
	"volatile":     flag(func(p *optionParser) { p.Config.Volatile = true }),
	"userxattr":    flag(func(p *optionParser) { p.Config.Namespace = NamespaceUser }),
	"redirect_dir": oneOf("renaming a directory always leaves a redirect, and redirects are always followed", "on"),
	"metacopy":     oneOf("a change of metadata never copies data; Flush does", "on"),
	"index":        oneOf("", "on", "off"), // hard links are always kept; off promises nothing
	"xino":         oneOf("", "on", "off", "auto"),
	"nfs_export":   oneOf("file handles are valid only while the inode lives", "off"),
	"verity":       oneOf("digests of fs-verity are not checked", "off"),

	// Ours: the copy-up engine. Sizes are bytes, with K, M or G for powers of 1024; times are Go's, such as 10s; 0 turns a thing off.
	"partial_above": sizeOption(func(c *Config, n int64) { c.PartialAbove = &n }),
	"io": choiceOption("auto, passthrough, cached or writeback", func(c *Config) *IOPolicy { return &c.IO },
		IOAuto, IOPassthrough, IOCached, IOWriteback),
	"sharing": choiceOption("none, exec, mapped or all", func(c *Config) *Sharing { return &c.Sharing },
		SharingNone, SharingExec, SharingMapped, SharingAll),
	"upper_cache":   sizeOption(func(c *Config, n int64) { c.engine().CacheBytes = n }),
	"stream":        sizeOption(func(c *Config, n int64) { c.engine().StreamBytes = n }),
	"drop_after":    timeOption(func(c *Config) *time.Duration { return &c.engine().DropAfter }),
	"settle_after":  timeOption(func(c *Config) *time.Duration { return &c.engine().SettleAfter }),
	"complete_rate": sizeOption(func(c *Config, n int64) { c.engine().CompleteRate = n }), // a second
	"complete_hot":  timeOption(func(c *Config) *time.Duration { return &c.engine().CompleteHot }),
	"complete_above": {value: func(p *optionParser, v string) error {
		n, err := strconv.ParseUint(v, 10, 8)
		if err != nil || n > 100 {
			return fmt.Errorf("not a percentage")
		}
		p.Config.engine().CompleteAbove = int(n)
		return nil
	}},
	"complete_workers": {value: func(p *optionParser, v string) error {
		n, err := strconv.ParseUint(v, 10, 8)
		if err != nil || n == 0 || n > 64 {
			return fmt.Errorf("not a number from 1 to 64")
		}
		p.Config.engine().Workers = int(n)
		return nil
	}},

	// fuse-overlayfs's own.
	"noacl":          flag(func(p *optionParser) { p.Config.NoACL = true }),
	"acl":            flag(func(p *optionParser) { p.Config.NoACL = false }),
	"noxattrs":       sw(func(p *optionParser, on bool) { p.Config.NoXattrs = on }),
	"static_nlink":   sw(func(p *optionParser, on bool) { p.Config.StaticNlink = on }),
	"fsync":          sw(func(p *optionParser, on bool) { p.Config.Volatile = !on }),
	"squash_to_root": sw(func(p *optionParser, on bool) { p.squashRoot = on }),
	"squash_to_uid":  idOption(func(c *Config) **uint32 { return &c.SquashUID }),
	"squash_to_gid":  idOption(func(c *Config) **uint32 { return &c.SquashGID }),
	"uidmapping":     mapOption(func(c *Config) *[]IDMap { return &c.UIDMap }),
	"gidmapping":     mapOption(func(c *Config) *[]IDMap { return &c.GIDMap }),
	// How that server works inside; ours promises the same files either way.
	"fast_ino":  sw(nil),
	"threaded":  sw(nil),
	"writeback": sw(nil),
	"timeout": {value: func(_ *optionParser, v string) error {
		if t, err := strconv.ParseFloat(v, 64); err != nil || !(t >= 0) {
			return fmt.Errorf("not a number of seconds")
		}
		return nil
	}},

	// mount(8), and what it leaves in the text for its helpers.
	"ro":          flag(func(p *optionParser) { p.Config.ReadOnly = true }),
	"rw":          flag(func(p *optionParser) { p.Config.ReadOnly = false }),
	"suid":        flag(func(p *optionParser) { p.Mount.NoSuid = false }),
	"nosuid":      flag(func(p *optionParser) { p.Mount.NoSuid = true }),
	"dev":         flag(func(p *optionParser) { p.Mount.NoDev = false }),
	"nodev":       flag(func(p *optionParser) { p.Mount.NoDev = true }),
	"exec":        flag(func(p *optionParser) { p.Mount.NoExec = false }),
	"noexec":      flag(func(p *optionParser) { p.Mount.NoExec = true }),
	"symfollow":   flag(func(p *optionParser) { p.Mount.NoSymFollow = false }),
	"nosymfollow": flag(func(p *optionParser) { p.Mount.NoSymFollow = true }),
	"async":       flag(func(p *optionParser) { p.Mount.Sync = false }),
	"sync":        flag(func(p *optionParser) { p.Mount.Sync = true }),
	"atime":       flag(func(p *optionParser) { p.Config.Atime = AtimeRelative }), // mount(8): undoes noatime
	"relatime":    flag(func(p *optionParser) { p.Config.Atime = AtimeRelative }),
	"norelatime":  flag(func(p *optionParser) { p.Config.Atime = AtimeStrict }),
	"strictatime": flag(func(p *optionParser) { p.Config.Atime = AtimeStrict }),
	"noatime":     flag(func(p *optionParser) { p.Config.Atime = AtimeNone }),
	"diratime":    flag(func(p *optionParser) { p.Config.NoDirAtime = false }),
	"nodiratime":  flag(func(p *optionParser) { p.Config.NoDirAtime = true }),
	"fsname":      {value: func(p *optionParser, v string) error { p.Mount.Source = unescape(v); return nil }},
	"subtype":     oneOf("the type is always fuse.overlayfuse", "overlayfuse"),
	"debug":       flag(func(p *optionParser) { p.Mount.Debug = true }),
	"context":     labelOption("context"),
	"fscontext":   labelOption("fscontext"),
	"defcontext":  labelOption("defcontext"),
	"rootcontext": labelOption("rootcontext"),
	"lazytime":    ignored, // allows late timestamps, promises nothing
	"nolazytime":  ignored,

	// True of every mount of ours, or said to others than us.
	"defaults":            ignored,
	"allow_other":         ignored,
	"default_permissions": ignored,
	"nonempty":            ignored,
	"silent":              ignored,
	"loud":                ignored,
	"_netdev":             ignored,
	"nofail":              ignored,
	"auto":                ignored,
	"noauto":              ignored,
	"user":                {bare: func(*optionParser) {}, value: anyValue},
	"nouser":              ignored,
	"users":               ignored,
	"nousers":             ignored,
	"owner":               ignored,
	"group":               ignored,
	"comment":             {value: anyValue},
	"helper":              {value: anyValue},
	"uhelper":             {value: anyValue},
}

var ignored = flag(func(*optionParser) {})

func anyValue(*optionParser, string) error { return nil }

func flag(set func(p *optionParser)) optionName { return optionName{bare: set} }

// sw is one of fuse-overlayfs's switches: NAME, NAME=0 or NAME=1.
func sw(set func(p *optionParser, on bool)) optionName {
	if set == nil {
		set = func(*optionParser, bool) {}
	}
	return optionName{
		bare: func(p *optionParser) { set(p, true) },
		value: func(p *optionParser, v string) error {
			if v != "0" && v != "1" {
				return fmt.Errorf("must be 0 or 1")
			}
			set(p, v == "1")
			return nil
		},
	}
}

// oneOf takes the listed values, none of which changes anything; why says what is always so.
func oneOf(why string, values ...string) optionName {
	return optionName{value: func(_ *optionParser, v string) error {
		for _, ok := range values {
			if v == ok {
				return nil
			}
		}
		what := "must be " + strings.Join(values, " or ")
		if why != "" {
			what += ": " + why
		}
		return fmt.Errorf("%s", what)
	}}
}

// choiceOption is one of a few named values, which all says.
func choiceOption[T fmt.Stringer](all string, field func(c *Config) *T, values ...T) optionName {
	return optionName{value: func(p *optionParser, v string) error {
		for _, choice := range values {
			if v == choice.String() {
				*field(&p.Config) = choice
				return nil
			}
		}
		return fmt.Errorf("not %s", all)
	}}
}

func pathOption(field func(c *Config) *string) optionName {
	return optionName{value: func(p *optionParser, v string) error {
		if v == "" {
			return fmt.Errorf("empty path")
		}
		*field(&p.Config) = unescape(v)
		return nil
	}}
}

func idOption(field func(c *Config) **uint32) optionName {
	return optionName{value: func(p *optionParser, v string) error {
		id, err := parseID(v)
		if err != nil {
			return err
		}
		*field(&p.Config) = &id
		return nil
	}}
}

func mapOption(field func(c *Config) *[]IDMap) optionName {
	return optionName{value: func(p *optionParser, v string) error {
		p.lastIDs = field(&p.Config)
		*p.lastIDs = nil
		return p.idmap(p.lastIDs, v)
	}}
}

func labelOption(name string) optionName {
	return optionName{value: func(p *optionParser, v string) error {
		if v == "" {
			return fmt.Errorf("empty label")
		}
		p.Mount.Labels = append(p.Mount.Labels, name+"="+v)
		return nil
	}}
}

// idmap appends the triples HOST:MAPPED:LENGTH of v, which colons or escaped commas separate.
func (p *optionParser) idmap(to *[]IDMap, v string) error {
	fields := strings.FieldsFunc(strings.ReplaceAll(v, `\,`, ":"), func(r rune) bool { return r == ':' })
	if len(fields) == 0 || len(fields)%3 != 0 {
		return fmt.Errorf("must be triples ID:MAPPED-ID:LENGTH")
	}
	for i := 0; i < len(fields); i += 3 {
		var n [3]uint32
		for j := range n {
			id, err := parseID(fields[i+j])
			if err != nil {
				return err
			}
			n[j] = id
		}
		*to = append(*to, IDMap{Host: n[0], Mapped: n[1], Length: n[2]})
	}
	return nil
}

// parseID reads a decimal id; 2^32-1 means "none" to chown(2) and is not one.
func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 1<<32-1 {
		return 0, fmt.Errorf("%q is not an id (0 to %d)", s, uint32(1<<32-2))
	}
	return uint32(n), nil
}

// sizeOption is a number of bytes, with K, M or G for powers of 1024.
func sizeOption(set func(c *Config, n int64)) optionName {
	return optionName{value: func(p *optionParser, v string) error {
		digits := strings.TrimRight(v, "KMG")
		shift := map[string]uint{"": 0, "K": 10, "M": 20, "G": 30}
		by, known := shift[v[len(digits):]]
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || !known || n < 0 || n > 1<<62>>by {
			return fmt.Errorf("not a size such as 64K, 16M or 1G")
		}
		set(&p.Config, n<<by)
		return nil
	}}
}

// timeOption is a length of time as time.ParseDuration has it.
func timeOption(field func(c *Config) *time.Duration) optionName {
	return optionName{value: func(p *optionParser, v string) error {
		d, err := time.ParseDuration(v)
		if err != nil || d < 0 {
			return fmt.Errorf("not a length of time such as 30s")
		}
		*field(&p.Config) = d
		return nil
	}}
}
