package overlayfuse

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
)

// flushLogInterval is the time between two lines of progress in the log.
const flushLogInterval = 5 * time.Second

// FlushPhase is what a flush is about. It is meant for people.
type FlushPhase string

// The phases, in their order; with very many files, scanning and completing come several times.
const (
	FlushIdle       FlushPhase = "" // not begun, or ended
	FlushLinking    FlushPhase = "linking names"
	FlushScanning   FlushPhase = "looking for incomplete files"
	FlushCompleting FlushPhase = "completing files"
	FlushSyncing    FlushPhase = "syncing"
)

// FlushProgress is how far a flush is. The totals are known when the first scan has ended.
type FlushProgress struct {
	Phase      FlushPhase `json:"phase"`
	Files      int64      `json:"files"`       // completed
	FilesTotal int64      `json:"files_total"` // to be completed
	Bytes      int64      `json:"bytes"`       // of data that they lacked and have now
	BytesTotal int64      `json:"bytes_total"`
	Synced     int64      `json:"synced"` // files and directories made durable
	SyncTotal  int64      `json:"sync_total"`
}

// FlushMeter shows the progress of one flush while it runs. The zero value is ready.
type FlushMeter struct {
	phase                                atomic.Pointer[FlushPhase]
	files, filesTotal, bytes, bytesTotal atomic.Int64
	synced, syncTotal                    atomic.Int64
}

// Read gives the progress of this moment.
func (m *FlushMeter) Read() FlushProgress {
	p := FlushProgress{Files: m.files.Load(), FilesTotal: m.filesTotal.Load(),
		Bytes: m.bytes.Load(), BytesTotal: m.bytesTotal.Load(),
		Synced: m.synced.Load(), SyncTotal: m.syncTotal.Load()}
	if phase := m.phase.Load(); phase != nil {
		p.Phase = *phase
	}
	return p
}

func (m *FlushMeter) enter(p FlushPhase) { m.phase.Store(&p) }

// logEvery writes the progress to the log until stop is called.
func (m *FlushMeter) logEvery(interval time.Duration, log *logrus.Entry) (stop func()) {
	ended := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				return
			case <-tick.C:
				p := m.Read()
				log.WithFields(logrus.Fields{"phase": p.Phase, "files": p.Files, "files_total": p.FilesTotal,
					"bytes": p.Bytes, "bytes_total": p.BytesTotal, "synced": p.Synced, "sync_total": p.SyncTotal}).Info("overlay: flushing")
			}
		}
	})
	return func() {
		close(ended)
		running.Wait()
	}
}
