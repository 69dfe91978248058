package main

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/overlayfuse/overlayfuse-snapshotter/copyup"
	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse"
	"github.com/overlayfuse/overlayfuse-snapshotter/overlayfuse/control"
)

// metric is one line for each mount. Compare: https://prometheus.io/docs/instrumenting/exposition_formats (text format 0.0.4).
type metric struct {
	name, kind, help string
	// value is false where a mount has none.
	value func(i *control.Inspection) (int64, bool)
}

// metrics are all that are shown. A name that ends in _total counts since the mount.
var metrics = []metric{
	counter("copyups_avoided_total", "Copy-ups of data that never came: no write after an open for writing, truncation to nothing, metadata alone.",
		func(c *copyup.Counters) int64 { return int64(c.Avoided) }),
	counter("copyups_deferred_total", "Opens for writing that copied nothing.",
		func(c *copyup.Counters) int64 { return int64(c.Deferred) }),
	counter("write_faults_total", "First write faults that succeeded.",
		func(c *copyup.Counters) int64 { return int64(c.Faults) }),
	counter("copyups_partial_total", "First write faults that left blocks in the lower.",
		func(c *copyup.Counters) int64 { return int64(c.Partial) }),
	counter("copyups_reflinked_total", "First write faults that shared blocks with the lower.",
		func(c *copyup.Counters) int64 { return int64(c.Reflinked) }),
	counter("copyups_completed_total", "Files whose last block arrived and was durable.",
		func(c *copyup.Counters) int64 { return int64(c.Completed) }),
	counter("copyups_failed_total", "Copy-ups and completions that failed.",
		func(c *copyup.Counters) int64 { return int64(c.Failed) }),
	counter("copied_bytes_total", "Bytes of lowers that were written to uppers.",
		func(c *copyup.Counters) int64 { return int64(c.BytesCopied) }),
	counter("cloned_bytes_total", "Bytes that uppers share with lowers by reflink.",
		func(c *copyup.Counters) int64 { return int64(c.BytesCloned) }),
	counter("dropped_cache_bytes_total", "Bytes of uppers that were dropped from the page cache once they were written back.",
		func(c *copyup.Counters) int64 { return int64(c.BytesDropped) }),
	counter("files_poisoned_total", "Files that answered EIO because upper and memory were in doubt.",
		func(c *copyup.Counters) int64 { return int64(c.Poisoned) }),
	gauge("not_copied_bytes", "Bytes that whole copy-ups of the same files would have copied and that were not.",
		func(fs *overlayfuse.Inspection) int64 { return fs.Counters.NotCopied }),
	gauge("inodes", "Live inodes.", func(fs *overlayfuse.Inspection) int64 { return int64(fs.Inodes) }),
	gauge("writeback", "Whether the kernel writes back late and opens without asking (io=writeback).",
		func(fs *overlayfuse.Inspection) int64 {
			if fs.IO == overlayfuse.IOWriteback.String() {
				return 1
			}
			return 0
		}),
	gauge("kept_files", "Files that io=writeback keeps open for a while.", func(fs *overlayfuse.Inspection) int64 { return int64(fs.Kept) }),
	gauge("open_handles", "Open files; with io=writeback 0, the kernel does not say.", func(fs *overlayfuse.Inspection) int64 { return int64(fs.Handles) }),
	gauge("passthrough_handles", "Open files that the kernel reads and writes by itself.",
		func(fs *overlayfuse.Inspection) int64 { return int64(fs.Passthrough) }),
	gauge("shared_handles", "Open files of a lower that use the lower's own pages.",
		func(fs *overlayfuse.Inspection) int64 { return int64(fs.Shared) }),
	gauge("partial_files", "Live inodes with some of their data in a lower alone.",
		func(fs *overlayfuse.Inspection) int64 { return int64(fs.Partial) }),
	gauge("metacopy_files", "Live inodes with an upper and all of their data in a lower.",
		func(fs *overlayfuse.Inspection) int64 { return int64(fs.Metacopy) }),
	gauge("listing_bytes", "Bytes of the listings of merged lower directories, which mounts of the same lower layers share.",
		func(fs *overlayfuse.Inspection) int64 { return fs.ListingBytes }),
	{"flush_running", "gauge", "Whether the upper is being flushed.",
		func(i *control.Inspection) (int64, bool) {
			if i.Flush != nil {
				return 1, true
			}
			return 0, true
		}},
	flushGauge("flush_files", "Files that the flush has completed.", func(p *overlayfuse.FlushProgress) int64 { return p.Files }),
	flushGauge("flush_files_wanted", "Files that the flush has to complete.", func(p *overlayfuse.FlushProgress) int64 { return p.FilesTotal }),
	flushGauge("flush_bytes", "Bytes that the flush has brought to the upper.", func(p *overlayfuse.FlushProgress) int64 { return p.Bytes }),
	flushGauge("flush_bytes_wanted", "Bytes that the flush has to bring to the upper.", func(p *overlayfuse.FlushProgress) int64 { return p.BytesTotal }),
	flushGauge("flush_synced", "Files and directories that the flush has made durable.", func(p *overlayfuse.FlushProgress) int64 { return p.Synced }),
	flushGauge("flush_synced_wanted", "Files and directories that the flush has to make durable.", func(p *overlayfuse.FlushProgress) int64 { return p.SyncTotal }),
}

func counter(name, help string, value func(*copyup.Counters) int64) metric {
	return metric{name, "counter", help, ofMount(func(fs *overlayfuse.Inspection) int64 { return value(&fs.Counters) })}
}

func gauge(name, help string, value func(*overlayfuse.Inspection) int64) metric {
	return metric{name, "gauge", help, ofMount(value)}
}

func ofMount(value func(*overlayfuse.Inspection) int64) func(*control.Inspection) (int64, bool) {
	return func(i *control.Inspection) (int64, bool) {
		if i.FS == nil {
			return 0, false
		}
		return value(i.FS), true
	}
}

func flushGauge(name, help string, value func(*overlayfuse.FlushProgress) int64) metric {
	return metric{name, "gauge", help, func(i *control.Inspection) (int64, bool) {
		if i.Flush == nil {
			return 0, false
		}
		return value(i.Flush), true
	}}
}

var labelEscapes = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

// writeMetrics writes every metric of every mount.
func writeMetrics(w io.Writer, all []control.Inspection) error {
	out := bufio.NewWriter(w) // an error of a write comes again at Flush
	for _, m := range metrics {
		headed := false
		for i := range all {
			v, ok := m.value(&all[i])
			if !ok {
				continue
			}
			if !headed {
				_, _ = fmt.Fprintf(out, "# HELP overlayfuse_%s %s\n# TYPE overlayfuse_%s %s\n", m.name, m.help, m.name, m.kind)
				headed = true
			}
			_, _ = fmt.Fprintf(out, "overlayfuse_%s{mount=\"%s\"} %d\n", m.name, labelEscapes.Replace(all[i].ID), v)
		}
	}
	return out.Flush()
}
