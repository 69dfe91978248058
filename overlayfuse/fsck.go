package overlayfuse

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// The check of an upper that no mount uses, and its repair:
//
//	fsck.go          what is asked and answered
//	fsck_open.go     the layers, locked as a mount locks them
//	fsck_walk.go     the upper's directories and what they merge with
//	fsck_file.go     a regular file: its marks, its data, the lower that it stands on
//	fsck_extents.go  where a file has data of its own
//	fsck_links.go    what has several names
//	fsck_repair.go   how a file is put right
//	fsck_work.go     what is in the workdir: unfinished objects, the volatile mark, the index
//
// Nothing is written to a lower: its descriptors cannot, and a file of the upper that has names elsewhere is not repaired.

// CheckOptions says what Check may do.
type CheckOptions struct {
	// Repair puts right what can be. Otherwise nothing changes, not even an access time (where the process may make private mounts).
	Repair bool
}

// Severity says how bad a finding is.
type Severity uint8

const (
	// SeverityNote is what a crash or a running completion leaves, and the next mount copes with. Repair tidies it up.
	SeverityNote Severity = iota
	// SeverityWarning is what nobody of ours writes, and what hides nothing.
	SeverityWarning
	// SeverityError is what makes a name an error or shows the wrong data.
	SeverityError
)

func (s Severity) String() string {
	switch s {
	case SeverityNote:
		return "note"
	case SeverityWarning:
		return "warning"
	case SeverityError:
		return "error"
	}
	return fmt.Sprintf("Severity(%d)", uint8(s))
}

// Finding is one thing that Check found.
type Finding struct {
	Path     string // on the host, as the layer was configured; whatever bytes the names have
	Problem  string // in words; also why a repair failed
	Severity Severity
	Repaired bool
}

// CheckReport is what Check found, in the order of the walk.
type CheckReport struct {
	Findings []Finding
	// Unchecked says what could not be looked at, a sentence each: there is no lower to compare with.
	Unchecked []string

	Dirs, Files int // visited in the upper; files of every type, by name
	Metacopies  int // regular files of which only attributes are in the upper
	Partials    int // regular files of which some data is
}

// Corrected counts the errors that were repaired.
func (r *CheckReport) Corrected() int { return r.count(true) }

// Left counts the errors that are still there.
func (r *CheckReport) Left() int { return r.count(false) }

func (r *CheckReport) count(repaired bool) int {
	n := 0
	for _, f := range r.Findings {
		if f.Severity == SeverityError && f.Repaired == repaired {
			n++
		}
	}
	return n
}

// Check looks at everything that the marks of cfg's upper and workdir say, and with opts.Repair puts right what can be. Without
// lower layers in cfg it leaves out what only they can tell, and says so.
//
// Errors: what keeps it from looking at all: EBUSY if a mount uses the upper or workdir; EROFS for a repair of what cannot be
// written; ELOOP, ENOENT and the others of New; EINTR with the cause if ctx ends. The report then says how far it came. What is
// wrong inside a layer is a finding.
// Crash: every repair is one step, or a row of which the first one counts; the next Check goes on.
func Check(ctx context.Context, cfg Config, opts CheckOptions) (_ CheckReport, err error) {
	c, err := openCheck(ctx, cfg, opts)
	if err != nil {
		return CheckReport{}, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	err = c.run()
	err = errors.Join(err, c.syncRepairs())
	return c.report, err
}

// checker is one run of Check, in one goroutine.
type checker struct {
	ctx    context.Context
	repair bool

	layers *layers
	prefix string
	upper  *chain   // of the upper alone: it opens directories of any depth with few descriptors
	lower  *chain   // nil: there are no lowers to compare with
	root   *entry   // of lower
	origin *origins // nil: nor file systems that an origin could be on
	unit   int64    // bytes: the block of the upper's file system

	links     map[objKey]*linkedObject // what has several names and is no directory, put aside until all names are known
	linkOrder []objKey
	doubtful  bool // the upper may have lost data in a crash: nothing in it is repaired
	holes     holeTest
	report    CheckReport
}

func (c *checker) run() error {
	if c.lower == nil {
		c.report.Unchecked = append(c.report.Unchecked,
			"no lowerdir: whether redirects lead somewhere and what is missing in the upper is there was not checked")
	}
	c.layers.temp = c.workSubdir(tempDirName)
	c.layers.index = c.workSubdir(indexDirName)
	if err := c.checkVolatile(); err != nil {
		return err
	}
	if err := c.walk(); err != nil {
		return err
	}
	if err := c.checkIndex(); err != nil {
		return err
	}
	if err := c.checkLinked(); err != nil {
		return err
	}
	c.checkTemp()
	c.checkLost()
	return nil
}

// alive is the error of a context that has ended.
func (c *checker) alive() error {
	if err := c.ctx.Err(); err != nil {
		return fmt.Errorf("check: %w (%w)", err, unix.EINTR)
	}
	return nil
}

// found notes a finding that cannot be repaired.
func (c *checker) found(path string, s Severity, format string, args ...any) {
	c.report.Findings = append(c.report.Findings, Finding{Path: path, Problem: fmt.Sprintf(format, args...), Severity: s})
}

// fix notes a finding, and repairs it if that is wanted.
func (c *checker) fix(path string, s Severity, problem string, repair func() error) {
	f := Finding{Path: path, Problem: problem, Severity: s}
	if c.repair && !c.doubtful {
		if err := repair(); err != nil {
			f.Problem += fmt.Sprintf("; not repaired: %v", err)
		} else {
			f.Repaired = true
		}
	}
	c.report.Findings = append(c.report.Findings, f)
}

// syncRepairs makes durable what was repaired.
func (c *checker) syncRepairs() error {
	for _, f := range c.report.Findings {
		if !f.Repaired {
			continue
		}
		return c.syncUpper()
	}
	return nil
}
