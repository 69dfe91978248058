package overlayfuse

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Options is the text of "-o", understood.
type Options struct {
	Config Config
	Mount  MountFlags
}

// ParseOptions understands the texts of all "-o" arguments, the later ones winning: the names of overlayfs and
// fuse-overlayfs for the layers, and mount(8)'s own.
// An option is taken if what it promises holds on this file system; any other is refused by its name.
// Layers are not looked at: see New.
//
// Errors: EINVAL, naming the option.
func ParseOptions(texts ...string) (Options, error) {
	p := optionParser{}
	for _, text := range texts {
		words, err := splitOptions(text)
		if err != nil {
			return Options{}, err
		}
		for _, w := range words {
			if err := p.word(w); err != nil {
				return Options{}, err
			}
		}
	}
	return p.finish()
}

// optionParser collects what later options can still change.
type optionParser struct {
	Options
	squashRoot bool
	lastIDs    *[]IDMap // where a further UID:MAPPED-UID:LEN goes
}

// word takes one option, still escaped.
func (p *optionParser) word(w string) error {
	name, value, hasValue := strings.Cut(w, "=")
	if p.lastIDs != nil && !hasValue && strings.Count(w, ":") >= 2 && strings.Trim(w, "0123456789:") == "" {
		return wrapOption(w, p.idmap(p.lastIDs, w))
	}
	p.lastIDs = nil
	switch {
	case w == "", strings.HasPrefix(w, "x-"), strings.HasPrefix(w, "X-"):
		return nil
	case refusedOptions[name] != "":
		return badOption(w, refusedOptions[name])
	}
	o, ok := knownOptions[name]
	switch {
	case !ok:
		return badOption(w, "unknown option")
	case o.bare != nil && !hasValue:
		o.bare(p)
		return nil
	case o.value != nil && hasValue:
		return wrapOption(w, o.value(p, value))
	case hasValue:
		return badOption(w, "takes no value")
	}
	return badOption(w, "needs a value")
}

// finish applies what depends on more than one option.
func (p *optionParser) finish() (Options, error) {
	c, m := &p.Config, &p.Mount
	if p.squashRoot {
		root := uint32(0)
		if c.SquashUID == nil {
			c.SquashUID = &root
		}
		if c.SquashGID == nil {
			c.SquashGID = &root
		}
	}
	if c.Upper == "" {
		c.ReadOnly = true
	}
	m.ReadOnly = c.ReadOnly
	m.Atime, m.NoDirAtime = c.Atime, c.NoDirAtime
	if err := c.check(); err != nil {
		return Options{}, err
	}
	return p.Options, nil
}

// splitOptions cuts at the commas that neither a backslash nor, in SELinux labels, double quotes protect. The
// backslashes stay.
// Compare: fs/overlayfs/params.c:ovl_next_opt() (Linux 6.18).
func splitOptions(text string) ([]string, error) {
	var words []string
	start, quoted := 0, false
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
			if i == len(text) {
				return nil, badOption(text[start:], "ends in a lone backslash")
			}
		case '"':
			name, _, hasValue := strings.Cut(text[start:i], "=")
			if hasValue && labelOptions[name] {
				quoted = !quoted
			}
		case ',':
			if !quoted {
				words = append(words, text[start:i])
				start = i + 1
			}
		}
	}
	if quoted {
		return nil, badOption(text[start:], "has an open quote")
	}
	return append(words, text[start:]), nil
}

// splitLayers cuts at the colons that no backslash protects, and takes the backslashes away.
//
// Errors: an empty path; "::", which starts the data-only layers.
// Compare: fs/overlayfs/params.c:ovl_parse_param_split_lowerdirs() (Linux 6.18).
func splitLayers(value string) ([]string, error) {
	var layers []string
	start := 0
	for i := 0; i <= len(value); i++ {
		switch {
		case i == len(value) || value[i] == ':':
			if i == start && i > 0 && i < len(value) {
				return nil, fmt.Errorf("data-only layers (::) are not supported")
			}
			if i == start {
				return nil, fmt.Errorf("empty path of a layer")
			}
			layers = append(layers, unescape(value[start:i]))
			start = i + 1
		case value[i] == '\\':
			i++
		}
	}
	return layers, nil
}

// unescape takes away each backslash that protects the next character.
// Compare: fs/overlayfs/params.c:ovl_unescape() (Linux 6.18).
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// EscapeOption protects a path for use in an option text, as the value of lowerdir=, upperdir= or workdir=.
func EscapeOption(path string) string {
	return strings.NewReplacer(`\`, `\\`, `,`, `\,`, `:`, `\:`).Replace(path)
}

func badOption(word, why string) error {
	return fmt.Errorf("option %q: %s: %w", word, why, unix.EINVAL)
}

func wrapOption(word string, err error) error {
	if err == nil {
		return nil
	}
	return badOption(word, err.Error())
}
