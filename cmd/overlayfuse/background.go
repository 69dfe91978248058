package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/syslog"
	"os"
	"os/exec"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// verdict is what the background process tells the one that started it, once.
type verdict struct {
	Code  int    `json:"code"`
	Error string `json:"error,omitempty"`
}

// startBackground runs this command again, detached from the terminal, and waits for its verdict.
func startBackground() int {
	self, err := os.Executable()
	if err != nil {
		return fail(exitSystem, err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fail(exitSystem, err)
	}
	cmd := exec.Command(self, append([]string{"--ready-fd=3"}, os.Args[1:]...)...)
	cmd.Args[0] = os.Args[0]
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fail(exitSystem, fmt.Errorf("start in the background: %w", err))
	}
	if err := w.Close(); err != nil {
		return fail(exitSystem, err)
	}
	var v verdict
	if err := json.NewDecoder(r).Decode(&v); err != nil {
		if !errors.Is(err, io.EOF) {
			return fail(exitSystem, fmt.Errorf("background process: %w", err))
		}
		// It died without a word.
		return fail(exitSystem, fmt.Errorf("background process: %w", errors.Join(cmd.Wait(), io.ErrUnexpectedEOF)))
	}
	if v.Error != "" {
		return fail(v.Code, errors.New(v.Error))
	}
	return v.Code
}

// background is the process that startBackground started: it serves, and logs to syslog, if there is one.
func (r *mountRequest) background() int {
	if w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_WARNING, "overlayfuse"); err == nil {
		logrus.SetOutput(w)
		logrus.SetFormatter(&logrus.TextFormatter{DisableColors: true, DisableTimestamp: true})
	} else {
		logrus.SetOutput(io.Discard)
	}
	return r.serve(func(err error) error {
		code := exitOK
		if err != nil {
			code = exitMount
		} else {
			err = os.Chdir("/") // keep no directory busy; relative paths were opened by now
			if err != nil {
				logrus.WithError(err).Warn("chdir")
				err = nil
			}
		}
		if tellStarter(r.readyFD, code, err) != code {
			return unix.EPIPE
		}
		return nil
	})
}

// tellStarter sends the verdict, and gives its code back; exitSystem if nobody listens.
func tellStarter(fd, code int, err error) int {
	v := verdict{Code: code}
	if err != nil {
		v.Error = oneLine(err)
	}
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "ready-fd")
	if f == nil {
		return exitSystem
	}
	if err := errors.Join(json.NewEncoder(f).Encode(v), f.Close()); err != nil {
		return exitSystem
	}
	return code
}
