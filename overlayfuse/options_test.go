package overlayfuse

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func id(n uint32) *uint32 { return &n }

func TestOptionsAreUnderstood(t *testing.T) {
	writable := Config{Lower: []string{"/l"}, Upper: "/u", Work: "/w"}
	with := func(change func(*Options)) Options {
		o := Options{Config: writable}
		change(&o)
		return o
	}
	const base = "lowerdir=/l,upperdir=/u,workdir=/w"
	for text, want := range map[string]Options{
		base:                          {Config: writable},
		"lowerdir=/a:/b:/c":           {Config: Config{Lower: []string{"/a", "/b", "/c"}, ReadOnly: true}, Mount: MountFlags{ReadOnly: true}},
		"lowerdir+=/a:b,lowerdir+=/c": {Config: Config{Lower: []string{"/a:b", "/c"}, ReadOnly: true}, Mount: MountFlags{ReadOnly: true}},
		`lowerdir=/a\:b:/c\,d:/e\\f`:  {Config: Config{Lower: []string{"/a:b", "/c,d", `/e\f`}, ReadOnly: true}, Mount: MountFlags{ReadOnly: true}},
		`lowerdir=/l,upperdir=/u\,1:2,workdir=/w\\`: {Config: Config{Lower: []string{"/l"}, Upper: "/u,1:2", Work: `/w\`}},
		base + ",ro":    with(func(o *Options) { o.Config.ReadOnly, o.Mount.ReadOnly = true, true }),
		base + ",ro,rw": {Config: writable},
		base + ",volatile,noacl,userxattr": with(func(o *Options) {
			o.Config.Volatile, o.Config.NoACL, o.Config.Namespace = true, true, NamespaceUser
		}),
		base + ",fsync=0": with(func(o *Options) { o.Config.Volatile = true }),
		base + ",noatime": with(func(o *Options) { o.Config.Atime, o.Mount.Atime = AtimeNone, AtimeNone }),
		base + ",strictatime,nodiratime": with(func(o *Options) {
			o.Config.Atime, o.Mount.Atime, o.Config.NoDirAtime, o.Mount.NoDirAtime = AtimeStrict, AtimeStrict, true, true
		}),
		base + ",nosuid,nodev,noexec,sync,nosymfollow": with(func(o *Options) {
			o.Mount = MountFlags{NoSuid: true, NoDev: true, NoExec: true, Sync: true, NoSymFollow: true}
		}),
		base + ",nosuid,suid,nodev,dev,noexec,exec": {Config: writable},
		base + `,fsname=a\,b`:                       with(func(o *Options) { o.Mount.Source = "a,b" }),
		base + ",squash_to_root":                    with(func(o *Options) { o.Config.SquashUID, o.Config.SquashGID = id(0), id(0) }),
		base + ",squash_to_uid=5,squash_to_root":    with(func(o *Options) { o.Config.SquashUID, o.Config.SquashGID = id(5), id(0) }),
		base + ",squash_to_gid=7":                   with(func(o *Options) { o.Config.SquashGID = id(7) }),
		base + ",uidmapping=0:1000:1:1:110000:65536": with(func(o *Options) {
			o.Config.UIDMap = []IDMap{{0, 1000, 1}, {1, 110000, 65536}}
		}),
		base + ",gidmapping=0:1000:1,1:110000:65536,ro": with(func(o *Options) {
			o.Config.GIDMap = []IDMap{{0, 1000, 1}, {1, 110000, 65536}}
			o.Config.ReadOnly, o.Mount.ReadOnly = true, true
		}),
		base + ",static_nlink,noxattrs=1,debug": with(func(o *Options) {
			o.Config.StaticNlink, o.Config.NoXattrs, o.Mount.Debug = true, true, true
		}),
		base + `,context="system_u:object_r:c_t:s0:c1,c2",nodev`: with(func(o *Options) {
			o.Mount.Labels, o.Mount.NoDev = []string{`context="system_u:object_r:c_t:s0:c1,c2"`}, true
		}),
		base + ",defaults,_netdev,nofail,user=joe,x-systemd.automount,comment=hi,allow_other,default_permissions": {Config: writable},
		base + ",redirect_dir=on,metacopy=on,index=off,xino=auto,timeout=1.5,threaded=0,fast_ino,writeback=1":     {Config: writable},
	} {
		got, err := ParseOptions(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
		} else if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %+v\nwant %+v", text, got, want)
		}
	}
}

func TestLaterOptionArgumentWins(t *testing.T) {
	o, err := ParseOptions("lowerdir=/l", "fsname=one,noatime", "fsname=two,relatime")
	if err != nil {
		t.Fatal(err)
	}
	if o.Mount.Source != "two" || o.Config.Atime != AtimeRelative {
		t.Errorf("got source %q, %v", o.Mount.Source, o.Config.Atime)
	}
}

func TestBadOptionsAreRefusedByName(t *testing.T) {
	const base = "lowerdir=/l,upperdir=/u,workdir=/w,"
	for text, want := range map[string]string{
		"":                                "lowerdir= is missing",
		"lowerdir=":                       `"lowerdir=": empty path of a layer`,
		"lowerdir=/a:":                    "empty path of a layer",
		"lowerdir=:/a":                    "empty path of a layer",
		"lowerdir=/a::/b":                 "data-only layers (::) are not supported",
		"lowerdir":                        `"lowerdir": needs a value`,
		`lowerdir=/a\`:                    "lone backslash",
		"lowerdir=/l,upperdir=/u":         "upperdir /u needs a workdir",
		"lowerdir=/l,workdir=/w":          "workdir /w needs an upperdir",
		"lowerdir=/l,upperdir=":           `"upperdir=": empty path`,
		base + "frobnicate":               `"frobnicate": unknown option`,
		base + "ro=1":                     `"ro=1": takes no value`,
		base + "metacopy=off":             `"metacopy=off": must be on`,
		base + "redirect_dir=nofollow":    `"redirect_dir=nofollow": must be on`,
		base + "nfs_export=on":            `"nfs_export=on": must be off`,
		base + "plugins=/x":               `"plugins=/x": plugins`,
		base + "remount":                  `"remount": `,
		base + "uid=5":                    "use squash_to_uid=",
		base + "squash_to_uid=x":          `"squash_to_uid=x": "x" is not an id`,
		base + "squash_to_uid=4294967295": "is not an id",
		base + "uidmapping=0:1":           "must be triples",
		base + "uidmapping=0:1:0":         "is empty",
		base + "gidmapping=0:0:10:5:20:2": "overlap",
		base + "static_nlink=yes":         "must be 0 or 1",
		base + "timeout=soon":             "not a number of seconds",
		base + "timeout=NaN":              "not a number of seconds",
		base + "subtype=other":            "must be overlayfuse",
		base + "0:1:2":                    "unknown option",
		base + `context="a,b`:             "open quote",
		"lowerdir=" + strings.Repeat("/l:", 500) + "/l": "501 lower layers, at most 500",
	} {
		_, err := ParseOptions(text)
		if !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: %v, want EINVAL and %q", text, err, want)
		}
	}
}

func FuzzLayerPathsSurviveEscaping(f *testing.F) {
	f.Add("/a", "/b:c")
	f.Add(`/a\`, `/,:\\,`)
	f.Fuzz(func(t *testing.T, a, b string) {
		if a == "" || b == "" {
			return
		}
		o, err := ParseOptions("nodev,lowerdir=" + EscapeOption(a) + ":" + EscapeOption(b) +
			",upperdir=" + EscapeOption(a) + ",workdir=" + EscapeOption(b) + ",noatime")
		if err != nil {
			t.Fatal(err)
		}
		want := Config{Lower: []string{a, b}, Upper: a, Work: b, Atime: AtimeNone}
		if !reflect.DeepEqual(o.Config, want) {
			t.Fatalf("got %+v, want %+v", o.Config, want)
		}
	})
}
