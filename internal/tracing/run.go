package tracing

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/tomblancdev/stromboli"
)

const (
	// pageEvents is how many events are read at once.
	pageEvents = 256
	// maxSpans bounds the spans of one run; a run that has more says how many are
	// missing.
	maxSpans = 2000
	// readTime bounds the reading of a run's events.
	readTime = 30 * time.Second
	// batchSpans is how many spans are sent at once.
	batchSpans = 512
)

// sendRun makes the spans of a run that has ended and sends them, if the run is
// in a trace that is recorded.
func (t *Tracer) sendRun(ctx context.Context, runID string) error {
	spans, err := t.runSpans(ctx, runID)
	if err != nil {
		return err
	}
	for len(spans) > 0 {
		n := min(len(spans), batchSpans)
		if err := t.out.send(ctx, spans[:n]); err != nil {
			return err
		}
		spans = spans[n:]
	}
	return nil
}

// runSpans makes them: none where the run is in no trace that is recorded.
func (t *Tracer) runSpans(ctx context.Context, runID string) ([]sdk.ReadOnlySpan, error) {
	ctx, cancel := context.WithTimeout(ctx, readTime)
	defer cancel()
	var made *course
	for after := int64(0); ; {
		events, err := t.cfg.Events.Events(ctx, runID, after, pageEvents)
		if err != nil {
			return nil, fmt.Errorf("reading the events of run %s: %w", runID, err)
		}
		if len(events) == 0 {
			break
		}
		for _, ev := range events {
			after = ev.Seq
			if made == nil {
				if made = t.begin(runID, ev); made == nil { //nolint:contextcheck // it reads text
					return nil, nil
				}
			}
			made.observe(ev)
		}
	}
	if made == nil {
		return nil, nil
	}
	return made.end(), nil
}

// begin reads a run's first event: nil where it is in no trace that is recorded.
func (t *Tracer) begin(runID string, first stromboli.Event) *course {
	parent := parse(contextIn(first))
	if !parent.IsSampled() {
		return nil
	}
	kept := &gathered{}
	provider := sdk.NewTracerProvider(
		sdk.WithResource(t.out.resource), sdk.WithRawSpanLimits(spanLimits()), sdk.WithIDGenerator(givenIDs{}),
		sdk.WithSampler(sdk.AlwaysSample()), sdk.WithSpanProcessor(kept),
	)
	return &course{
		id: runID, tracer: provider.Tracer(scope), kept: kept,
		ctx: trace.ContextWithRemoteSpanContext(context.Background(), parent),
	}
}

// contextIn is the place in a trace that a run's first event tells.
func contextIn(first stromboli.Event) stromboli.TraceContext {
	var at stromboli.TraceContext
	if first.Type != stromboli.EventRunCreated || json.Unmarshal(first.Data, &at) != nil {
		return stromboli.TraceContext{}
	}
	return at
}

// gathered keeps the spans that have ended. It belongs to one goroutine.
type gathered struct{ spans []sdk.ReadOnlySpan }

// OnStart implements sdk.SpanProcessor.
func (*gathered) OnStart(context.Context, sdk.ReadWriteSpan) {}

// OnEnd implements sdk.SpanProcessor.
func (g *gathered) OnEnd(s sdk.ReadOnlySpan) { g.spans = append(g.spans, s) }

// ForceFlush implements sdk.SpanProcessor.
func (*gathered) ForceFlush(context.Context) error { return nil }

// Shutdown implements sdk.SpanProcessor.
func (*gathered) Shutdown(context.Context) error { return nil }

// at is when something happened, for a span.
func at(when time.Time) trace.SpanEventOption { return trace.WithTimestamp(when) }
