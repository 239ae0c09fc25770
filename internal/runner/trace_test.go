package runner_test

import (
	"context"
	"encoding/json"
	"sync"
	"testing"

	"github.com/tomblancdev/stromboli"
)

type traceKey struct{}

// fakeTracer tells the place that is in the context.
type fakeTracer struct {
	mu       sync.Mutex
	asked    []stromboli.TraceContext // places of which agents were told
	exported map[string][][]byte
}

// Context implements runner.Tracer.
func (*fakeTracer) Context(ctx context.Context) stromboli.TraceContext {
	at, _ := ctx.Value(traceKey{}).(stromboli.TraceContext)
	return at
}

// Agent implements runner.Tracer.
func (f *fakeTracer) Agent(_ string, at stromboli.TraceContext) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, at)
	return at.Parent
}

// Exported implements runner.Tracer.
func (f *fakeTracer) Exported(id string, exports [][]byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.exported[id] = exports
}

// TestTrace: a run's place in a trace is durable with it, the agent is told of
// it, also under the next server, and what it exported is handed on at its end.
func TestTrace(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tracer := &fakeTracer{exported: map[string][][]byte{}}
	l := w.start(options{tracer: tracer})
	at := stromboli.TraceContext{Parent: "the parent", State: "the state"}
	run, err := l.Submit(context.WithValue(context.Background(), traceKey{}, at), me(), submission(`echo "at=$TRACEPARENT"; sleep 0.5; result done`))
	must(t, err)
	l.until(run.ID, stromboli.PhaseGenerating)
	l.stop()
	l = w.start(options{tracer: tracer})
	l.wait(run.ID)
	events, err := l.log.Events(context.Background(), run.ID, 0, 1)
	must(t, err)
	var stored stromboli.TraceContext
	must(t, json.Unmarshal(events[0].Data, &stored))
	if stored != at {
		t.Errorf("stored %+v", stored)
	}
	l.said(run.ID, "at=the parent")
	outside := l.submit(`result done`)
	l.wait(outside.ID)
	tracer.mu.Lock()
	defer tracer.mu.Unlock()
	if got := tracer.exported[run.ID]; len(got) != 1 || string(got[0]) != "spans" {
		t.Errorf("handed on %q", got)
	}
	if _, ok := tracer.exported[outside.ID]; ok {
		t.Error("a run in no trace has spans")
	}
	for _, asked := range tracer.asked {
		if asked != at && asked != (stromboli.TraceContext{}) {
			t.Errorf("the agent's place is %+v", asked)
		}
	}
}
