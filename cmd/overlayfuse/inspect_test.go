package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/overlayfuse/overlayfuse-snapshotter/copyup"
	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse"
	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/control"
)

// serving runs a mount server on dir/s until the test ends.
func serving(t *testing.T, dir string) *control.Client {
	t.Helper()
	cmd := exec.Command(command, "serve", "--socket", dir+"/s")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Error(err)
		}
		_ = cmd.Wait() // it was killed
	})
	var client *control.Client
	eventually(t, "the server", func() (ok bool) {
		var err error
		client, err = control.Dial(t.Context(), dir+"/s")
		return err == nil
	})
	return client
}

func TestInspectShowsWhatAMountDid(t *testing.T) {
	dir := testDirs(t)
	client := serving(t, dir)
	if code, out, errOut := runIn(t, dir, "overlayfuse", "inspect", "--socket", "s"); code != exitOK || out != "[]\n" || errOut != "" {
		t.Errorf("of no mount: %d, %q, %q", code, out, errOut)
	}
	spec := control.Spec{ID: `a "b"\`, MountPoint: dir + "/m", Lower: []string{dir + "/l"}, Upper: dir + "/u", Work: dir + "/w"}
	if err := client.Mount(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir+"/m/lower", 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errOut := runIn(t, dir, "overlayfuse", "inspect", "--socket", "s", spec.ID)
	var all []control.Inspection
	if err := json.Unmarshal([]byte(out), &all); code != exitOK || errOut != "" || err != nil || len(all) != 1 {
		t.Fatalf("%d, %q, %q, %v", code, out, errOut, err)
	}
	if i := all[0]; i.ID != spec.ID || i.State != control.Mounted || i.FS.Metacopy != 1 || i.FS.Counters.Avoided != 1 || i.FS.Counters.NotCopied != 5 {
		t.Errorf("%s", out)
	}
	for _, name := range []string{`"bytes_not_copied": 5`, `"state": "mounted"`, `"handles": 0`} {
		if !strings.Contains(out, name) {
			t.Errorf("no %s in %s", name, out)
		}
	}
	code, out, errOut = runIn(t, dir, "overlayfuse", "inspect", "--metrics", "--socket", "s")
	if code != exitOK || errOut != "" {
		t.Fatalf("%d, %q", code, errOut)
	}
	for _, line := range []string{
		`overlayfuse_copyups_avoided_total{mount="a \"b\"\\"} 1`,
		`overlayfuse_not_copied_bytes{mount="a \"b\"\\"} 5`,
		`overlayfuse_flush_running{mount="a \"b\"\\"} 0`,
		"# TYPE overlayfuse_copyups_avoided_total counter",
	} {
		if !strings.Contains(out, line+"\n") {
			t.Errorf("no line %s in\n%s", line, out)
		}
	}
	checkExposition(t, out)
	code, out, errOut = runIn(t, dir, "overlayfuse", "inspect", "--socket", "s", "other")
	if code != exitSystem || out != "" || !strings.Contains(errOut, "mount other: no such mount") {
		t.Errorf("unknown ID: %d, %q, %q", code, out, errOut)
	}
	if err := unix.Unmount(dir+"/m", 0); err != nil {
		t.Fatal(err)
	}
}

// TestMetricsOfEveryKind: poisoned files and a flush that runs, also of directories that are not mounted.
func TestMetricsOfEveryKind(t *testing.T) {
	fs := &overlayfuse.Inspection{Inodes: 3, Handles: 4, Partial: 1, Metacopy: 2, Counters: copyup.Counters{BytesCopied: 7, Poisoned: 1},
		Poisoned: []overlayfuse.PoisonedFile{{Path: "/f", Ino: 9, Cause: "in doubt"}}}
	progress := &overlayfuse.FlushProgress{Phase: overlayfuse.FlushCompleting, Files: 1, FilesTotal: 2, Bytes: 3, BytesTotal: 4,
		Synced: 5, SyncTotal: 6}
	var out strings.Builder
	if err := writeMetrics(&out, []control.Inspection{
		{ID: "one", State: control.Mounted, FS: fs, Flush: progress}, {ID: "two", State: control.Unmounted, Flush: progress},
	}); err != nil {
		t.Fatal(err)
	}
	checkExposition(t, out.String())
	for _, line := range []string{
		`overlayfuse_files_poisoned_total{mount="one"} 1`, `overlayfuse_copied_bytes_total{mount="one"} 7`,
		`overlayfuse_flush_running{mount="two"} 1`, `overlayfuse_flush_files{mount="one"} 1`, `overlayfuse_flush_files_wanted{mount="two"} 2`,
		`overlayfuse_flush_bytes{mount="two"} 3`, `overlayfuse_flush_bytes_wanted{mount="one"} 4`,
		`overlayfuse_flush_synced{mount="one"} 5`, `overlayfuse_flush_synced_wanted{mount="two"} 6`,
	} {
		if !strings.Contains(out.String(), line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
	if strings.Contains(out.String(), `inodes{mount="two"}`) {
		t.Error("counters of what is not mounted")
	}
}

var exposition = regexp.MustCompile(`^(?:# HELP ([a-z_]+) [^\n]+|# TYPE ([a-z_]+) (?:counter|gauge)|([a-z_]+)\{mount="(?:[^"\\\n]|\\[\\"n])*"\} -?[0-9]+)$`)

// checkExposition checks the grammar of Prometheus's text format: HELP, TYPE and then all lines of a name, each name once.
func checkExposition(t *testing.T, text string) {
	t.Helper()
	described := map[string]bool{}
	now := ""
	for line := range strings.Lines(text) {
		m := exposition.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		switch {
		case m == nil:
			t.Errorf("not in the format: %q", line)
		case m[1] != "":
			if described[m[1]] {
				t.Errorf("%s comes twice", m[1])
			}
			now, described[m[1]] = m[1], true
		case m[2] != now && m[3] != now:
			t.Errorf("%q below %s", line, now)
		}
	}
}
