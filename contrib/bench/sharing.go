package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Containers of one image: how much of it is in memory more than once.

const (
	containersOfOneImage = 20
	// rest is how long everything is left alone before memory is measured: a server may keep what it needs for a load while it has one.
	rest   = 5 * time.Second
	python = "/usr/bin/python3"
	// pythonWork loads a good part of the standard library and waits.
	pythonWork = `
import importlib, os, sys
for name in "json re argparse asyncio http.client http.server email.message sqlite3 decimal fractions logging.config ` +
		`multiprocessing unittest xml.dom.minidom zipfile tarfile tempfile subprocess urllib.request ssl ctypes csv ` +
		`difflib pydoc concurrent.futures statistics random hashlib bz2 lzma zoneinfo dataclasses typing ast dis inspect".split():
    try: importlib.import_module(name)
    except ImportError: pass
os.write(1, b"ready\n")
sys.stdin.read()
`
)

// sharings are the values of ours's option sharing, the narrowest first; "" is the default.
var sharings = []string{"", "none", "exec", "mapped", "all"}

// pythonLower holds a Python with its library and what it is linked with, to chroot into.
func (b *bench) pythonLower() (*lower, error) {
	return b.lowerOnce("python", func(dir string) error {
		script := `set -e
			p=$(readlink -f "$1")
			library=/usr/lib/$(basename "$p")
			tar -C / -chf "$2/tar" --hard-dereference -P "$1" "$library" \
				$(ldd "$p" $(find "$library" -name '*.so') | grep -o '/[^ :]*[^ :]' | sort -u)
			tar -C "$2" --transform 's,^/,,' -xPf "$2/tar"
			rm "$2/tar"`
		return b.child(2*time.Minute, nil, exec.Command("sh", "-c", script, "sh", python, dir))
	})
}

func (b *bench) sharing() []experiment {
	x := experiment{
		name:     "memory-sharing",
		systems:  overlays,
		deadline: b.within(3 * time.Minute),
		needs: func() string {
			if _, err := os.Stat(python); err != nil {
				return err.Error()
			}
			return ""
		},
	}
	for _, s := range sharings {
		title := "page cache and servers' resident memory, " + fmt.Sprint(containersOfOneImage) + " × Python of one image"
		var must []bound
		switch s {
		case "":
		case sharings[len(sharings)-1]:
			must = []bound{against(kernel, 1.2)}
			fallthrough
		default:
			title = "the same, sharing=" + s
		}
		x.rows = append(x.rows, row{key: "total" + s, title: title, unit: bytesUnit, must: must})
		if s == "" {
			x.rows = append(x.rows,
				row{key: "cache", title: "of it page cache (the cgroup's)", unit: bytesUnit},
				row{key: "anon", title: "of it servers, beside what is page cache", unit: bytesUnit})
		}
	}
	x.run = func(y system, _ int) (values, error) {
		low, err := b.pythonLower()
		if err != nil {
			return nil, err
		}
		all := values{}
		for _, s := range sharings {
			var options []string
			if s != "" && y == ours {
				options = []string{"sharing=" + s}
			}
			if s != "" && y != ours {
				all["total"+s] = all["total"]
				continue
			}
			v, err := b.sharedMemory(y, low, x.deadline, options)
			if s != "" && errors.Is(err, unix.EINVAL) { // no such option
				b.note(fmt.Sprintf("sharing=%s skipped: %v", s, err))
				continue
			}
			if err != nil {
				return nil, err
			}
			if s == "" {
				all["cache"], all["anon"] = v["cache"], v["anon"]
			}
			all["total"+s] = v["cache"] + v["anon"]
		}
		return all, nil
	}
	return []experiment{x}
}

// sharedMemory runs Python in each of many mounts of low at once.
func (b *bench) sharedMemory(y system, low *lower, deadline time.Duration, options []string) (v values, err error) {
	if err := dropCaches(b.base); err != nil {
		return nil, err
	}
	if err := b.join(); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.leave()) }()
	f, err := b.fleet(y, low, containersOfOneImage, deadline, options...)
	defer func() { err = errors.Join(err, b.disband(f)) }()
	if err != nil {
		return nil, err
	}
	script := `for point; do chroot "$point" "$PYTHON" -B -c "$WORK" <&3 & done 3<&0; wait`
	cmd := exec.Command("sh", append([]string{"-c", script, "sh"}, f.points...)...)
	cmd.Env = append(os.Environ(), "PYTHON="+python, "WORK="+pythonWork)
	b.group.enter(cmd)
	err = b.hold(deadline, f.mounts, cmd, len(f.points), func() error {
		time.Sleep(rest)
		cache, err := b.group.pageCache()
		if err != nil {
			return err
		}
		anon, err := f.anonymous()
		v = values{"cache": cache, "anon": anon}
		return err
	})
	return v, err
}

// hold starts cmd, calls look when cmd has said "ready" n times, then ends cmd by closing its standard input.
func (b *bench) hold(deadline time.Duration, mounts []*mounted, cmd *exec.Cmd, n int, look func() error) error {
	stdin, feed, err := os.Pipe()
	if err != nil {
		return err
	}
	said, stdout, err := os.Pipe()
	if err != nil {
		return errors.Join(err, stdin.Close(), feed.Close())
	}
	cmd.Stdin, cmd.Stdout = stdin, stdout
	looked := make(chan error, 1)
	go func() {
		lines := bufio.NewScanner(said)
		for ready := 0; ready < n; {
			if !lines.Scan() {
				looked <- errors.Join(io.ErrUnexpectedEOF, feed.Close())
				return
			}
			if strings.TrimSpace(lines.Text()) == "ready" {
				ready++
			}
		}
		err := look()
		looked <- errors.Join(err, feed.Close())
	}()
	// Its servers may all be the same one.
	err = b.child(deadline, mounts[0], cmd)
	if err != nil {
		for _, m := range slices.Backward(mounts) {
			m.kill()
		}
	}
	err = errors.Join(err, stdin.Close(), stdout.Close())
	return errors.Join(err, <-looked, said.Close())
}
