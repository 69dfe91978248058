package e2e

import (
	"bufio"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// noRunsLeft fails if a demonstration left its folder or a mount.
func noRunsLeft(t *testing.T) {
	t.Helper()
	names, err := os.ReadDir("/var/tmp")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasPrefix(name.Name(), demoPrefix(t)) {
			t.Errorf("/var/tmp/%s is left", name.Name())
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), "/var/tmp/"+demoPrefix(t)) {
		t.Errorf("mounts are left:\n%s", mounts)
	}
}

// demoPrefix keeps the folders of these demonstrations apart from one that a person runs at the same time.
func demoPrefix(t *testing.T) string {
	return "ofs-" + strings.ToLower(t.Name()[len("TestDemonstration"):])[:3] + "."
}

// TestDemonstrationHolds runs what `make run` runs, with a smaller file: each of its checks holds, and nothing is left.
func TestDemonstrationHolds(t *testing.T) {
	cmd := command(5*time.Minute, "../stack/demo.sh")
	cmd.Env = append(os.Environ(), "BIG_MIB=64", "DEMO_DIR=/var/tmp/"+demoPrefix(t)+"XXXX")
	text, err := output(cmd)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	for _, claim := range []string{
		"whiteouts and the opaque directory hold", "the open copied nothing", "no data was copied",
		"the earlier reader sees the write", "it reads the same data, with the same owner and mode",
	} {
		if !strings.Contains(text, "ok: "+claim) {
			t.Errorf("does not show: %s\n%s", claim, text)
		}
	}
	noRunsLeft(t)
}

// TestDemonstrationInterrupted interrupts it while its container runs, as control-C does: nothing is left.
func TestDemonstrationInterrupted(t *testing.T) {
	cmd := command(2*time.Minute, "../stack/demo.sh")
	cmd.Env = append(os.Environ(), "BIG_MIB=64", "DEMO_DIR=/var/tmp/"+demoPrefix(t)+"XXXX")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var interruptedAt time.Time
	lines, interrupted := bufio.NewScanner(out), false
	for lines.Scan() {
		if !interrupted && strings.Contains(lines.Text(), "started in") {
			interrupted, interruptedAt = true, time.Now()
			if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
				t.Error(err)
			}
		}
	}
	err = cmd.Wait()
	if !interrupted {
		t.Fatalf("it ended before its container ran: %v", err)
	}
	t.Logf("it ended %.1f s after the interrupt", time.Since(interruptedAt).Seconds())
	if cmd.ProcessState.ExitCode() != 130 {
		t.Errorf("ended with %v, want exit status 130", err)
	}
	noRunsLeft(t)
}
