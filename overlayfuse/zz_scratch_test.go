package overlayfuse

import (
	"fmt"
	"testing"
	"time"
)

func TestScratchFlush(t *testing.T) {
	for _, keep := range []bool{true, false} {
		files := map[string]int{}
		for i := range 4000 {
			files[fmt.Sprintf("d%d/f%d", i%50, i)] = 16 << 10
		}
		o := newOffline(t, files)
		for name := range files {
			o.touch(name)
		}
		begin := time.Now()
		s := o.mustFlush(FlushOptions{KeepMetacopy: keep})
		t.Logf("keep=%v %+v %v", keep, s, time.Since(begin))
	}
}
