package systemd

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// units are the unit files, by name.
func units(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("*.service")
	if err != nil || len(paths) != 2 {
		t.Fatalf("want two unit files: %v, %v", paths, err)
	}
	texts := map[string]string{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		texts[path] = string(text)
	}
	return texts
}

// TestUnitsAreVerifiedBySystemd lets systemd-analyze read them; it must have nothing to say.
func TestUnitsAreVerifiedBySystemd(t *testing.T) {
	dir := t.TempDir()
	args := []string{"verify", "--man=no"}
	for name, text := range units(t) {
		for _, command := range []string{"overlayfuse", "containerd-overlayfuse-grpc"} {
			path := filepath.Join(dir, command)
			if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			text = strings.ReplaceAll(text, "/usr/local/bin/"+command+" ", path+" ")
		}
		unit := filepath.Join(dir, name)
		if err := os.WriteFile(unit, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, unit)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "systemd-analyze", args...)
	cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":", "SYSTEMD_LOG_TARGET=console")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("systemd-analyze: %v: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "overlayfuse") {
			t.Error(line)
		}
	}
}

// TestUnitsKeepMountsVisible fails on settings that would hide the mounts from containerd, or end the mount server with
// the daemon.
func TestUnitsKeepMountsVisible(t *testing.T) {
	for name, text := range units(t) {
		if !strings.Contains(text, "\nKillMode=process\n") {
			t.Errorf("%s: a stop kills more than the process itself", name)
		}
		for line := range strings.Lines(text) {
			setting, _, _ := strings.Cut(line, "=")
			switch setting {
			case "PrivateTmp", "PrivateMounts", "PrivateDevices", "ProtectSystem", "ProtectHome", "ProtectKernelTunables", "ProtectControlGroups",
				"ReadOnlyPaths", "InaccessiblePaths", "BindPaths", "RootDirectory", "MountFlags", "DynamicUser":
				t.Errorf("%s: %s gives the service a mount namespace of its own", name, setting)
			case "Requires", "BindsTo", "PartOf", "Requisite":
				t.Errorf("%s: %s ends one service with the other", name, setting)
			}
		}
	}
}
