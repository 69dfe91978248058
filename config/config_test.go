package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/stretchr/testify/require"
)

func TestExampleSaysWhatDefaultSays(t *testing.T) {
	c, err := Parse("example", []byte(Example))
	require.NoError(t, err)
	require.Equal(t, Default(), c)
}

// TestExampleNamesEveryKey: with all its values removed from Default, the example alone gives them back.
func TestExampleNamesEveryKey(t *testing.T) {
	for _, key := range []string{"root", "address", "upperdir_label", "usage_ttl", "level", "format", "options", "io", "sharing", "views",
		"metacopy", "socket", "autostart", "command", "start_timeout"} {
		require.Contains(t, Example, "\n"+key+" = ", key)
	}
}

func TestEmptyFileIsTheDefault(t *testing.T) {
	c, err := Parse("empty", nil)
	require.NoError(t, err)
	require.Equal(t, Default(), c)
}

func TestDefaultPassesItsOwnChecks(t *testing.T) {
	c := Default()
	require.NoError(t, c.Check())
	for _, s := range []Socket{c.Address, c.Server.Socket} {
		var got Socket
		require.NoError(t, got.UnmarshalText([]byte(s.String())))
	}
	var root Path
	require.NoError(t, root.UnmarshalText([]byte(c.Root.String())))
}

func TestEveryValueIsRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.toml")
	require.NoError(t, os.WriteFile(file, []byte(`
root = "/srv/snapshots"
address = "/run/a.sock"
upperdir_label = true
usage_ttl = "1m30s"
[log]
level = "debug"
format = "json"
[mount]
options = ["noacl", "volatile"]
io = "passthrough"
sharing = "mapped"
views = "fuse"
[commit]
metacopy = "complete"
[server]
socket = "/run/b.sock"
autostart = false
command = ["/opt/overlayfuse", "serve"]
start_timeout = "3s"
`), 0o600))
	c, err := Load(file)
	require.NoError(t, err)
	require.Equal(t, Config{
		Root: Path{"/srv/snapshots"}, Address: Socket{"/run/a.sock"}, UpperdirLabel: true, UsageTTL: Duration{90 * time.Second},
		Log:    Log{Level: Level{logrus.DebugLevel}, Format: FormatJSON},
		Mount:  Mount{Options: []Option{{"noacl"}, {"volatile"}}, IO: IOPassthrough, Sharing: SharingMapped, Views: ViewsFUSE},
		Commit: Commit{Metacopy: MetacopyComplete},
		Server: Server{Socket: Socket{"/run/b.sock"}, Command: []string{"/opt/overlayfuse", "serve"},
			StartTimeout: Duration{3 * time.Second}},
	}, c)
	require.Equal(t, []string{"/opt/overlayfuse", "serve"}, c.Server.ServeCommand())
	require.Equal(t, []string{"overlayfuse", "serve", "--socket", "/run/overlayfuse/control.sock"}, Default().Server.ServeCommand())
}

// TestFaultsNameFileLineAndKey: every kind of fault, with the line it is on and the key it is about.
func TestFaultsNameFileLineAndKey(t *testing.T) {
	long := "/" + strings.Repeat("x", maxSocketPath)
	for _, tc := range []struct{ text, key, reason string }{
		{"rot = \"/x\"", "rot", "unknown key"},
		{"[server]\nsockett = \"/x\"", "server.sockett", "unknown key"},
		{"[sever]\nsocket = \"/x\"", "sever", "unknown key"},
		{"root = \"relative\"", "root", "not absolute"},
		{"root = \"\"", "root", "empty"},
		{"root = \"/\"", "root", "root directory"},
		{"root = \"/a/../b\"", "root", "not clean"},
		{"root = \"/a:b\"", "root", "mount options cannot carry"},
		{"root = \"/a,b\"", "root", "mount options cannot carry"},
		{"root = \"/a\\\\b\"", "root", "mount options cannot carry"},
		{"root = 7", "root", ""},
		{"address = \"" + long + "\"", "address", "108 bytes, at most 107"},
		{"\n\naddress = \"x.sock\"", "address", "not absolute"},
		{"[server]\n\nsocket = \"x.sock\"", "server.socket", "not absolute"},
		{"usage_ttl = \"soon\"", "usage_ttl", "not a duration"},
		{"usage_ttl = \"-1s\"", "usage_ttl", "negative"},
		{"usage_ttl = 5", "usage_ttl", ""},
		{"[log]\nlevel = \"loud\"", "log.level", "not a log level"},
		{"[log]\nformat = \"xml\"", "log.format", "not a log format"},
		{"[mount]\nviews = \"overlay\"", "mount.views", "not a kind of view"},
		{"[mount]\nio = \"fast\"", "mount.io", "auto, passthrough, cached or writeback"},
		{"[mount]\nsharing = \"libs\"", "mount.sharing", "none, exec, mapped or all"},
		{"[mount]\noptions = [\"io=auto\"]", "mount.options", "io of [mount]"},
		{"[mount]\noptions = [\"upperdir=/x\"]", "mount.options", "set by the snapshotter"},
		{"[mount]\noptions = [\"userxattr\"]", "mount.options", "trusted.overlay"},
		{"[commit]\nmetacopy = \"yes\"", "commit.metacopy", "auto, keep or complete"},
		{"[mount]\noptions = [\"a,b\"]", "mount.options", "comma"},
		{"[mount]\noptions = [\"\"]", "mount.options", "no name"},
		{"[server]\nautostart = \"yes\"", "server.autostart", ""},
		{"upperdir_label = 1", "upperdir_label", ""},
		{"root = ", "root", ""},
	} {
		t.Run(tc.text, func(t *testing.T) {
			_, err := Parse("/etc/c.toml", []byte("# first line\n"+tc.text+"\n"))
			var fault *Error
			require.ErrorAs(t, err, &fault)
			require.Equal(t, "/etc/c.toml", fault.File)
			lines := strings.Split("# first line\n"+tc.text, "\n")
			last := lines[len(lines)-1]
			want := len(lines)
			if strings.HasPrefix(tc.key, "sever") { // an unknown table is reported at its header
				want = 2
				last = "[sever]"
			}
			require.Equal(t, want, fault.Line, "the line of %q", last)
			require.Equal(t, tc.key, fault.Key)
			require.Contains(t, fault.Reason, tc.reason)
			require.NotEmpty(t, fault.Reason)
			require.NotContains(t, fault.Reason, "\n")
		})
	}
}

func TestEveryUnknownKeyIsNamed(t *testing.T) {
	_, err := Parse("f", []byte("a = 1\n[log]\nb = 2\n"))
	require.ErrorContains(t, err, "f:1: a: unknown key")
	require.ErrorContains(t, err, "f:3: log.b: unknown key")
}

func TestFaultsBetweenValues(t *testing.T) {
	_, err := Parse("f", []byte("address = \"/run/s\"\n[server]\nsocket = \"/run/s\"\n"))
	require.ErrorContains(t, err, "address and server.socket are both /run/s")
	_, err = Parse("f", []byte("[server]\nstart_timeout = \"0s\"\n"))
	require.ErrorContains(t, err, "server.start_timeout is 0")
}

// TestAutoKeepsMetacopyWhereEveryReaderFollowsIt: not where the label shows the directory itself.
func TestAutoKeepsMetacopyWhereEveryReaderFollowsIt(t *testing.T) {
	for text, want := range map[string]bool{
		"":                                  true,
		"upperdir_label = true":             false,
		"[commit]\nmetacopy = \"complete\"": false,
		"[commit]\nmetacopy = \"keep\"":     true,
		"upperdir_label = true\n[commit]\nmetacopy = \"keep\"": true,
	} {
		c, err := Parse("f", []byte(text))
		require.NoError(t, err)
		require.Equal(t, want, c.KeepMetacopy(), text)
	}
}

func TestMissingFile(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "none"))
	require.True(t, errors.Is(err, os.ErrNotExist))
}
