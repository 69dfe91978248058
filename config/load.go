package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Error is a fault of a configuration file.
type Error struct {
	File   string
	Line   int    // from 1; 0: the whole file
	Key    string // dotted; empty: the text is no TOML at this line
	Reason string
}

func (e *Error) Error() string {
	where := e.File
	if e.Line > 0 {
		where = fmt.Sprintf("%s:%d", where, e.Line)
	}
	if e.Key != "" {
		where += ": " + e.Key
	}
	return where + ": " + e.Reason
}

// Load lays the file over the defaults.
//
// Errors: what opening the file gives, or an *Error for each fault found, joined.
func Load(file string) (Config, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(file, text)
}

// Parse lays the text over the defaults; file is only named in errors.
func Parse(file string, text []byte) (Config, error) {
	c := Default()
	dec := toml.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return Config{}, located(file, text, err)
	}
	if err := c.Check(); err != nil {
		return Config{}, &Error{File: file, Reason: err.Error()}
	}
	return c, nil
}

// Check is what no single value can tell.
func (c *Config) Check() error {
	if c.Address == c.Server.Socket {
		return fmt.Errorf("address and server.socket are both %s", c.Address)
	}
	if c.Server.Autostart && c.Server.StartTimeout.Duration == 0 {
		return errors.New("server.start_timeout is 0, so server.autostart can never succeed")
	}
	return nil
}

// located turns the decoder's errors into ours.
func located(file string, text []byte, err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		var all []error
		for i := range strict.Errors {
			e := &strict.Errors[i]
			line, _ := e.Position()
			all = append(all, &Error{File: file, Line: line, Key: strings.Join(e.Key(), "."), Reason: "unknown key"})
		}
		return errors.Join(all...)
	}
	var bad *toml.DecodeError
	if errors.As(err, &bad) {
		line, _ := bad.Position()
		key := strings.Join(bad.Key(), ".")
		if key == "" {
			key = keyAt(text, line)
		}
		return &Error{File: file, Line: line, Key: key, Reason: strings.TrimPrefix(bad.Error(), "toml: ")}
	}
	line := firstLineWith(text, err)
	return &Error{File: file, Line: line, Key: keyAt(text, line), Reason: strings.TrimPrefix(err.Error(), "toml: ")}
}

// firstLineWith is the line at which the error first occurs, 0 if none is: the decoder gives no position for a number or a
// boolean that stands where a text belongs.
func firstLineWith(text []byte, err error) int {
	end := 0
	for line := 1; end < len(text); line++ {
		if next := bytes.IndexByte(text[end:], '\n'); next >= 0 {
			end += next + 1
		} else {
			end = len(text)
		}
		c := Default()
		if got := toml.Unmarshal(text[:end], &c); got != nil && got.Error() == err.Error() {
			return line
		}
	}
	return 0
}

// keyAt is the key that a line assigns to, with its table; empty if the line assigns to none.
func keyAt(text []byte, line int) string {
	table, lines := "", strings.Split(string(text), "\n")
	for i := 0; i < line && i < len(lines); i++ {
		l := strings.TrimSpace(lines[i])
		if name, ok := strings.CutPrefix(l, "["); ok && i < line-1 {
			if name, _, ok = strings.Cut(name, "]"); ok {
				table = strings.TrimSpace(name) + "."
			}
		}
		if i == line-1 {
			if key, _, ok := strings.Cut(l, "="); ok {
				return table + strings.TrimSpace(key)
			}
		}
	}
	return ""
}
