package e2e

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
)

// demonstration makes `make run`'s demonstration with a smaller file, in a folder of its own below /var/tmp, so that
// what a killed run or another person's left there is not this one's. Fails at the end if a folder or a mount is left.
func demonstration(t *testing.T, within time.Duration) *exec.Cmd {
	t.Helper()
	runs, err := os.MkdirTemp("/var/tmp", "ofs-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(runs))
		if err != nil {
			t.Fatal(err)
		}
		for _, mount := range mounts {
			t.Errorf("a mount is left: %+v", *mount)
		}
		if err := os.Remove(runs); err != nil {
			t.Errorf("a run is left: %v", err)
		}
	})
	cmd := command(within, "../stack/demo.sh")
	cmd.Env = append(os.Environ(), "BIG_MIB=64", "DEMO_DIR="+runs+"/XXXX")
	return cmd
}

// TestDemonstrationHolds runs what `make run` runs, with a smaller file: each of its checks holds, and nothing is left.
func TestDemonstrationHolds(t *testing.T) {
	text, err := output(demonstration(t, 5*time.Minute))
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
}

// TestDemonstrationInterrupted interrupts it while its container runs, as control-C does: nothing is left.
func TestDemonstrationInterrupted(t *testing.T) {
	cmd := demonstration(t, 2*time.Minute)
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
}
