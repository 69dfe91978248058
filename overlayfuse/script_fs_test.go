package overlayfuse_test

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/internal/fstool"
)

func cmdFS(ts *testscript.TestScript, neg bool, args []string) { request(ts, neg, "", args) }

func cmdP2(ts *testscript.TestScript, neg bool, args []string) { request(ts, neg, "p2", args) }

func cmdAs(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: as UID[:GID[,GROUP]] OP ARG...")
	}
	request(ts, neg, args[0], args[1:])
}

// request makes one request of the process who, and compares its result with the expectation behind the arrow.
func request(ts *testscript.TestScript, neg bool, who string, args []string) {
	if neg {
		ts.Fatalf("say which error: => ENOENT")
	}
	arrow := slices.IndexFunc(args, func(w string) bool { return w == "=>" || w == "!=>" || w == "->" })
	words, how, want := args, "", ""
	if arrow >= 0 {
		words, how, want = args[:arrow], args[arrow], strings.Join(args[arrow+1:], " ")
	}
	s := scriptOf(ts)
	r, err := s.do(who, words)
	ts.Check(err)
	if r.Bad != "" {
		ts.Fatalf("%s", r.Bad)
	}
	result := r.Out
	if r.Errno != "" {
		result = r.Errno
	}
	switch {
	case how == "=>":
		if result != want {
			ts.Fatalf("got  %s\nwant %s", result, want)
		}
	case r.Errno != "":
		ts.Fatalf("%s", r.Errno)
	case how == "!=>":
		if result == want {
			ts.Fatalf("got %s: it must differ", result)
		}
	case how == "->":
		ts.Setenv(want, result)
	}
}

// do makes a request of the process who, which it starts if need be. A process that hangs takes its mounts with it.
func (s *script) do(who string, words []string) (fstool.Reply, error) {
	a, ok := s.agents[who]
	if !ok {
		cred, err := credential(who)
		if err != nil {
			return fstool.Reply{}, err
		}
		if a, err = fstool.Start(agentBinary(), s.dir, cred, opTimeout); err != nil {
			return fstool.Reply{}, err
		}
		s.agents[who] = a
	}
	r, err := a.Do(words)
	if errors.Is(err, fstool.ErrTimeout) {
		err = errors.Join(fmt.Errorf("%s: %w", strings.Join(words, " "), err), s.abort())
	}
	return r, err
}

// credential reads UID[:GID[,GROUP]]; root's processes have other names and get nil.
func credential(who string) (*syscall.Credential, error) {
	if who == "" || who == "p2" {
		return nil, nil
	}
	user, rest, _ := strings.Cut(who, ":")
	if rest == "" {
		rest = user
	}
	ids := make([]uint32, 0, 4)
	for _, w := range append([]string{user}, strings.Split(rest, ",")...) {
		n, err := strconv.ParseUint(w, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("bad ids %s: %w", who, err)
		}
		ids = append(ids, uint32(n))
	}
	return &syscall.Credential{Uid: ids[0], Gid: ids[1], Groups: ids[2:]}, nil
}

// must is do for requests that have to succeed.
func (s *script) must(words ...string) (string, error) {
	r, err := s.do("", words)
	if err == nil && r.Errno != "" {
		err = fmt.Errorf("%s: %s", strings.Join(words, " "), r.Errno)
	}
	if err == nil && r.Bad != "" {
		err = errors.New(r.Bad)
	}
	return r.Out, err
}

// stopAgents ends every process of the script, and with it their descriptors and locks.
func (s *script) stopAgents() error {
	var errs []error
	for who, a := range s.agents {
		delete(s.agents, who)
		if err := a.Stop(); err != nil {
			errs = append(errs, fmt.Errorf("fstool %s: %w", who, err))
		}
	}
	return errors.Join(errs...)
}
