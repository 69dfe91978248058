package overlayfuse_test

import (
	"testing"
	"time"
)

// TestLookupDuringTruncation: files of a lower layer are truncated to nothing and written anew by one process while another
// lists the directory and so looks their uppers up; none of them ever gets its old size back.
func TestLookupDuringTruncation(t *testing.T) {
	s, err := newPlainScript(t, "overlayfuse", "truncation")
	if err != nil {
		t.Fatal(err)
	}
	do := func(who, want string, words ...string) {
		t.Helper()
		r, err := s.do(who, words)
		if err != nil || r.Bad != "" || r.Errno != "" || want != "*" && r.Out != want {
			t.Fatalf("%v: %+v, %v; want %q", words, r, err, want)
		}
	}
	const files = 60
	name := func(dir string, i int) string { return dir + "/f" + string(rune('0'+i/10)) + string(rune('0'+i%10)) }
	for i := range files {
		do("", "", "put", name("l1", i), "the lower's text, which is long")
	}
	m, err := s.parseMount([]string{"-fo", "partial_above=0"})
	if err == nil {
		err = s.mount(m)
	}
	if err != nil {
		t.Fatal(err)
	}
	do("p2", "*", "ls", "m") // starts the second process
	stop, listed := make(chan struct{}), make(chan error)
	go func() {
		for {
			select {
			case <-stop:
				listed <- nil
				return
			default:
			}
			if _, err := s.do("p2", []string{"lsino", "m"}); err != nil {
				listed <- err
				return
			}
		}
	}()
	deadline := time.Now().Add(20 * time.Second)
	for i := range files {
		do("", "", "chmod", name("m", i), "0600")
		do("", "", "truncate", name("m", i), "0")
		do("", "0", "stat", name("m", i), "size")
		do("", "", "append", name("m", i), "x")
		do("", "x", "cat", name("m", i))
		if time.Now().After(deadline) {
			t.Fatal("too slow")
		}
	}
	close(stop)
	if err := <-listed; err != nil {
		t.Fatal(err)
	}
	if _, err := s.umount("m"); err != nil {
		t.Fatal(err)
	}
}
