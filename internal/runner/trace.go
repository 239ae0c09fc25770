package runner

import (
	"context"
	"encoding/json"
	"time"

	"github.com/tomblancdev/stromboli"
)

// lastSpansTime bounds the wait at a run's end for what its agent has exported.
const lastSpansTime = 2 * time.Second

// traceOf is the place in a trace of the request in ctx.
func (r *Runner) traceOf(ctx context.Context) stromboli.TraceContext {
	if r.cfg.Tracer == nil {
		return stromboli.TraceContext{}
	}
	return r.cfg.Tracer.Context(ctx)
}

// traceParent is what the agent is told of the run's trace; empty: nothing. A
// failure costs the agent's own spans and nothing else.
func (e *execution) traceParent(ctx context.Context) string {
	if e.r.cfg.Tracer == nil {
		return ""
	}
	events, err := e.r.cfg.Log.Events(ctx, e.id, 0, 1)
	if err != nil || len(events) == 0 {
		e.log.DebugContext(ctx, "reading the run's place in a trace", "error", err)
		return ""
	}
	var at stromboli.TraceContext
	if json.Unmarshal(events[0].Data, &at) != nil {
		return ""
	}
	return e.r.cfg.Tracer.Agent(e.id, at)
}

// lastSpans hands on what the agent has exported, before its sandbox goes.
func (e *execution) lastSpans(ctx context.Context) {
	if e.r.cfg.Tracer == nil || !e.row.AgentStarted {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lastSpansTime)
	defer cancel()
	if e.traceParent(ctx) == "" {
		return
	}
	exports, err := e.r.cfg.Connections.Spans(ctx, e.row.SandboxID)
	if err != nil {
		e.log.DebugContext(ctx, "reading the spans of the run's agent", "error", err)
		return
	}
	e.r.cfg.Tracer.Exported(e.id, exports)
}
