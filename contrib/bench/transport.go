package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// transportRun measures what one round trip costs with each transport. The file system behind it answers at once.
type transportRun struct {
	*bench
	count   int                 // of each operation, of a client alone
	samples map[string][]values // by transport
}

// benchTransport is "bench transport".
func benchTransport(args []string) int {
	s := settings{dir: "/var/tmp"}
	flags := flag.NewFlagSet("bench transport", flag.ContinueOnError)
	flags.IntVar(&s.rounds, "rounds", 5, "rounds; each runs every transport once")
	count := flags.Int("count", 4000, "operations of each kind and client in a round")
	out := flags.String("out", "", "also write the tables into this `file`")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return exitOK
	} else if err != nil || flags.NArg() > 0 {
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	base, err := os.MkdirTemp(s.dir, "bench-")
	if err == nil {
		r := &transportRun{count: *count, samples: map[string][]values{},
			bench: &bench{settings: s, ctx: ctx, base: base, lowers: map[string]*lower{}}}
		if err = errors.Join(withRings(r.run), r.reads()); err == nil {
			table := r.table() + r.readTable()
			fmt.Print(table)
			if *out != "" {
				err = os.WriteFile(*out, []byte(table), 0o644)
			}
		}
		err = errors.Join(err, os.RemoveAll(base))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench transport:", err)
		return exitFailed
	}
	return exitOK
}

// run measures all transports; without rings, those that need no FUSE over io_uring.
func (r *transportRun) run(rings bool) error {
	for round := range r.rounds {
		for i := range transports {
			i = (i + round) % len(transports)
			if transports[i].rings && !rings {
				continue
			}
			v, err := r.one(i)
			if err != nil {
				return fmt.Errorf("%s: %w", transports[i].name, err)
			}
			r.samples[transports[i].name] = append(r.samples[transports[i].name], v)
		}
	}
	return nil
}

// one measures one transport: a client alone, two, eight, and one in bursts beside a process for each CPU that only computes.
func (r *transportRun) one(i int) (v values, err error) {
	m := &mounted{dir: filepath.Join(r.base, strconv.Itoa(r.serial))}
	r.serial++
	for _, d := range []string{"mnt", "upper", "work", "lower"} {
		if err := os.MkdirAll(filepath.Join(m.dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := r.mountTransport(m, i); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.detach()) }()

	v = values{}
	for _, clients := range []int{1, 2, 8} {
		before := cpuOf(m)
		w, err := r.client(m, i, clients, r.count/clients, 0)
		if err != nil {
			return nil, err
		}
		if clients == 1 {
			for _, op := range transportOps {
				for _, k := range []string{" mean", " median", " p99"} {
					v[op+k] = w[op+k]
				}
			}
			v["cpu"] = (cpuOf(m) - before) / w["operations"]
		}
		v["rate "+strconv.Itoa(clients)] = w["rate"]
	}
	return v, r.beside(m, i, v)
}

// beside measures what the transport and processes that want the CPUs do to each other.
func (r *transportRun) beside(m *mounted, i int, v values) error {
	const burners, seconds = 2, 2.0
	type result struct {
		v   values
		err error
	}
	results := make(chan result, burners)
	for range burners {
		go func() {
			// Not by r.worker: a process dies with the thread that started it, and this one may.
			w, err := burner(r.ctx, seconds)
			results <- result{w, err}
		}()
	}
	w, err := r.client(m, i, 1, 1000, 1000)
	for range burners {
		b := <-results
		err = errors.Join(err, b.err)
		v["burnt"] += b.v["work"]
	}
	if err == nil {
		v["beside median"], v["beside p99"] = w["getattr median"], w["getattr p99"]
	}
	return err
}

func burner(ctx context.Context, seconds float64) (values, error) {
	out, err := exec.CommandContext(ctx, "/proc/self/exe", "-worker", "transport-burn", fmt.Sprint(seconds)).Output()
	if err != nil {
		return nil, err
	}
	_, rest, _ := strings.Cut(string(out), `"work":`)
	var work float64
	_, err = fmt.Sscan(strings.TrimRight(rest, ",}\n"), &work)
	return values{"work": work}, err
}

// client runs the client in a process of its own.
func (r *transportRun) client(m *mounted, i, clients, count, pause int) (values, error) {
	args := []string{m.root(), strconv.Itoa(clients), strconv.Itoa(count), strconv.Itoa(pause)}
	if transports[i].here {
		args = append(args, "here")
	}
	return r.worker(time.Minute, m, "transport-client", args...)
}

// mountTransport mounts on m with a transport, and returns when it answers.
func (r *transportRun) mountTransport(m *mounted, i int) error {
	if transports[i].serve == nil {
		for n := range 8 {
			if err := os.WriteFile(filepath.Join(m.dir, "lower", "f"+strconv.Itoa(n)), nil, 0o644); err != nil {
				return err
			}
		}
		return unix.Mount("overlay", m.root(), "overlay", 0, fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", m.dir, m.dir, m.dir))
	}
	return r.serve(m, exec.Command("/proc/self/exe", "-worker", "transport-serve", strconv.Itoa(i), m.root()))
}

// cpuOf is the CPU time in µs that m's server has used.
func cpuOf(m *mounted) float64 {
	if m.server == nil {
		return 0
	}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", m.server.Process.Pid))
	if err != nil {
		return 0
	}
	var sum float64
	for _, t := range threads {
		text, err := os.ReadFile(t)
		if err != nil {
			continue // ended
		}
		var ns float64
		if _, err := fmt.Sscan(string(text), &ns); err == nil {
			sum += ns / 1e3
		}
	}
	return sum
}

// table shows medians over the rounds.
func (r *transportRun) table() string {
	var s strings.Builder
	fmt.Fprintf(&s, "Latencies in µs (mean / median / 99th percentile) of one client; operations per second of 1, 2 and 8 clients; CPU time of\n"+
		"the server per operation in µs. Medians of %d interleaved rounds. An open and close is two requests.\n\n", r.rounds)
	s.WriteString("| transport | open+close | missing name | getattr | op/s, 1 | 2 | 8 | server CPU |\n|---|---|---|---|---|---|---|---|\n")
	for _, t := range transports {
		if len(r.samples[t.name]) == 0 {
			continue
		}
		m := func(k string) float64 { return middleOf(r.samples[t.name], k) }
		fmt.Fprintf(&s, "| %s |", t.name)
		for _, op := range transportOps {
			fmt.Fprintf(&s, " %.1f / %.1f / %.0f |", m(op+" mean"), m(op+" median"), m(op+" p99"))
		}
		fmt.Fprintf(&s, " %.0f | %.0f | %.0f | %.1f |\n", m("rate 1"), m("rate 2"), m("rate 8"), m("cpu"))
	}
	s.WriteString("\nOne client in bursts of 20 requests, a millisecond apart, beside two processes that only compute: latency of getattr in µs, and\n" +
		"what those two got done, in % of what they did beside the kernel's overlayfs.\n\n| transport | median | 99th percentile | others' work |\n|---|---|---|---|\n")
	for _, t := range transports {
		if len(r.samples[t.name]) == 0 {
			continue
		}
		m := func(k string) float64 { return middleOf(r.samples[t.name], k) }
		fmt.Fprintf(&s, "| %s | %.1f | %.0f | %.1f |\n", t.name, m("beside median"), m("beside p99"), 100*m("burnt")/middleOf(r.samples[transports[0].name], "burnt"))
	}
	return s.String()
}

// middleOf is the median of a quantity.
func middleOf(samples []values, k string) float64 {
	var l []float64
	for _, v := range samples {
		l = append(l, v[k])
	}
	slices.Sort(l)
	if len(l) == 0 {
		return 0
	}
	return l[len(l)/2]
}
