package runner_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
)

// TestClockSet: the machine's clock is set back, and forward, under runs and
// between servers. Limits hold all the same, what is recorded stays in order,
// and nothing is ended or kept for it.
func TestClockSet(t *testing.T) {
	t.Parallel()
	for name, jump := range map[string]time.Duration{"back": -26 * time.Hour, "forward": 26 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			var offset atomic.Int64
			// Without the monotonic reading, which the machine's clock can't lose.
			now := func() time.Time { return time.Now().Round(0).Add(time.Duration(offset.Load())) }
			l := w.start(options{max: 2, now: now})
			goes := l.submit(`say here; sleep 2; result fine`)
			l.said(goes.ID, "here")
			late := l.submit(`say here; sleep 60`, timeout(3*time.Second))
			l.said(late.ID, "here")
			queued := l.submit(`result first`)
			offset.Store(int64(jump))
			last := l.submit(`result last`)
			want(t, l.wait(goes.ID), stromboli.Completed, "")
			end := l.wait(late.ID)
			want(t, end, stromboli.Failed, stromboli.ReasonTimeout)
			a, b := l.wait(queued.ID), l.wait(last.ID)
			want(t, a, stromboli.Completed, "")
			want(t, b, stromboli.Completed, "")
			for _, run := range []stromboli.Run{end, a, b} {
				if run.StartedAt.Before(run.CreatedAt) || run.FinishedAt.Before(run.StartedAt) {
					t.Errorf("created %s, started %s, finished %s", run.CreatedAt, run.StartedAt, run.FinishedAt)
				}
			}
			if name == "back" && b.StartedAt.After(a.StartedAt.Add(24*time.Hour)) {
				t.Error("the clock wasn't set")
			}

			// Between two servers: the shim's clock is the one that counts.
			goes = l.submit(`say here; sleep 2; say more; sleep 1; result fine`, timeout(40*time.Second))
			l.said(goes.ID, "here")
			l.stop()
			offset.Store(0)
			l = w.start(options{now: now})
			run := l.wait(goes.ID)
			want(t, run, stromboli.Completed, "")
			if n := w.starts(run); n != 1 {
				t.Errorf("%d starts", n)
			}
			l.empty()
		})
	}
}
