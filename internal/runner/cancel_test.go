package runner_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
)

func TestCancel(t *testing.T) {
	t.Parallel()
	t.Run("pending", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		l := w.start(options{max: 1})
		first := l.submit(`read -r x; exit`)
		second := l.submit(`result never`)
		l.cancel(second.ID)
		run := l.wait(second.ID)
		want(t, run, stromboli.Cancelled, stromboli.ReasonRequest)
		if w.starts(run) != 0 {
			t.Error("a cancelled run was started")
		}
		if _, err := l.Cancel(t.Context(), me(), second.ID, stromboli.ReasonRequest); !errors.Is(err, stromboli.Conflict) {
			t.Errorf("cancelling an ended run: %v", err)
		}
		if _, err := l.Cancel(t.Context(), stromboli.Principal{Tenant: "other"}, first.ID, stromboli.ReasonRequest); !errors.Is(err, stromboli.NotFound) {
			t.Errorf("cancelling another tenant's run: %v", err)
		}
		l.until(first.ID, stromboli.PhaseGenerating)
		l.cancel(first.ID)
		l.cancel(first.ID) // again is the same success
		want(t, l.wait(first.ID), stromboli.Cancelled, stromboli.ReasonRequest)
		// The counters are right: the next one needs no queue.
		l.empty()
		l.needsNoQueue()
	})
	t.Run("stubborn agent", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		l := w.start(options{})
		run := l.submit(`trap "" TERM INT; say ready; while :; do sleep 1; done`)
		l.said(run.ID, "ready")
		begin := time.Now()
		l.cancel(run.ID)
		want(t, l.wait(run.ID), stromboli.Cancelled, stromboli.ReasonRequest)
		if d := time.Since(begin); d < 3*time.Second || d > 20*time.Second {
			t.Errorf("it took %s", d)
		}
		l.empty()
	})
	t.Run("while the sandbox is made", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		f := &faults{}
		hold := make(chan struct{})
		var once sync.Once
		f.after = func(op string) { // the sandbox's name is recorded
			if op == "update" {
				once.Do(func() { <-hold })
			}
		}
		l := w.start(options{faults: f})
		run := l.submit(`result never`)
		l.until(run.ID, stromboli.PhaseCreating)
		l.cancel(run.ID)
		close(hold)
		run = l.wait(run.ID)
		want(t, run, stromboli.Cancelled, stromboli.ReasonRequest)
		if w.starts(run) != 0 {
			t.Error("started after the cancel")
		}
		l.empty()
	})
	t.Run("beats a result", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		f := &faults{}
		l := w.start(options{faults: f})
		var id string
		f.mu.Lock()
		f.fail = func(op string) error {
			if op != "finish" {
				return nil
			}
			f.fail = nil
			go l.cancel(id)
			return errInjected
		}
		f.mu.Unlock()
		run := l.submit(`result "made it"; sleep 0.3`)
		id = run.ID
		run = l.wait(run.ID)
		want(t, run, stromboli.Cancelled, stromboli.ReasonRequest)
		if run.Outcome.Output != "made it" {
			t.Errorf("output %q", run.Outcome.Output)
		}
	})
}

// A cancel that comes between the claim's commit and the execution is carried out.
func TestCancelWhileClaimed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := &faults{}
	l := w.start(options{max: 1, faults: f})
	first := l.submit(`read -r x; exit`)
	second := l.submit(`say started; sleep 60`)
	answered := make(chan error, 1)
	var once sync.Once
	f.mu.Lock()
	f.after = func(op string) {
		if op == "claim" {
			once.Do(func() {
				under := make(chan struct{})
				go func() {
					close(under)
					_, err := l.Cancel(context.Background(), me(), second.ID, stromboli.ReasonRequest)
					answered <- err
				}()
				<-under
				select { // as far as it gets
				case err := <-answered:
					answered <- err
				case <-time.After(50 * time.Millisecond):
				}
			})
		}
	}
	f.mu.Unlock()
	l.until(first.ID, stromboli.PhaseGenerating)
	l.cancel(first.ID)
	must(t, <-answered)
	want(t, l.wait(second.ID), stromboli.Cancelled, stromboli.ReasonRequest)
}
