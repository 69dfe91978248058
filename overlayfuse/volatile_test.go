package overlayfuse

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const volatileMark = "/w/work/incompat/volatile"

// volatileTree is a tree whose upper a volatile mount has used.
func volatileTree(t *testing.T) (string, Config) {
	t.Helper()
	dir := tree(t, "l", "u", "w")
	cfg := writableConfig(dir)
	cfg.Volatile = true
	l, err := openLayers(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir + volatileMark); err != nil {
		t.Fatalf("mark of a volatile mount: %v", err)
	}
	return dir, cfg
}

func TestVolatileUpperOfThisBootIsUsableAndMadeGood(t *testing.T) {
	dir, cfg := volatileTree(t)
	again, err := openLayers(cfg)
	if err != nil {
		t.Fatalf("volatile again: %v", err)
	}
	if _, err := os.Stat(dir + volatileMark); err != nil {
		t.Errorf("mark during the second volatile mount: %v", err)
	}
	if err := again.close(); err != nil {
		t.Fatal(err)
	}
	cfg.Volatile = false
	openForTest(t, cfg)
	if _, err := os.Stat(dir + "/w/work/incompat"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("mark after a durable mount: %v, want it gone", err)
	}
}

func TestVolatileUpperOfAnotherBootIsRefused(t *testing.T) {
	dir, cfg := volatileTree(t)
	boot, err := bootID()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir+volatileMark+"/boot-"+boot, dir+volatileMark+"/boot-00000000"); err != nil {
		t.Fatal(err)
	}
	for _, cfg.Volatile = range []bool{true, false} {
		l, err := openLayers(cfg)
		if err == nil {
			_ = l.close()
		}
		if !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "was last written by a volatile mount") {
			t.Errorf("volatile %v: %v, want EINVAL", cfg.Volatile, err)
		}
	}
	if err := os.RemoveAll(dir + volatileMark); err != nil {
		t.Fatal(err)
	}
	openForTest(t, cfg)
}

func TestMarksThatTheKernelLeftAreHonoured(t *testing.T) {
	for _, mark := range []string{"incompat/volatile", "incompat/some-future-thing"} {
		dir := tree(t, "l", "u", "w/work/"+mark)
		l, err := openLayers(writableConfig(dir))
		if err == nil {
			_ = l.close()
		}
		if !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s: %v, want EINVAL", mark, err)
		}
	}
}
