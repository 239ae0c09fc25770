package tracing

import (
	"context"
	"crypto/sha256"
	"encoding/binary"

	"go.opentelemetry.io/otel/trace"

	"github.com/tomblancdev/stromboli"
)

// spanID is the id of a run's span of the given name: the same in every server.
func spanID(runID, name string) trace.SpanID {
	sum := sha256.Sum256([]byte(runID + "\x00" + name))
	id := trace.SpanID(sum[:8])
	if !id.IsValid() { // one in 2^64
		binary.BigEndian.PutUint64(id[:], 1)
	}
	return id
}

// runSpan is the name by which the id of a run's own span is made.
const runSpan = "run"

type spanIDKey struct{}

// named has the next span that is begun with ctx get an id.
func named(ctx context.Context, id trace.SpanID) context.Context {
	return context.WithValue(ctx, spanIDKey{}, id)
}

// givenIDs generates the ids that named gave.
type givenIDs struct{}

// NewIDs implements sdk.IDGenerator. No span here is without a parent.
func (givenIDs) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	return trace.TraceID{}, givenIDs{}.NewSpanID(ctx, trace.TraceID{})
}

// NewSpanID implements sdk.IDGenerator.
func (givenIDs) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	id, _ := ctx.Value(spanIDKey{}).(trace.SpanID)
	return id
}

// maxState bounds a tracestate, as the specification suggests.
const maxState = 512

// contextOf is a span's context as text.
func contextOf(sc trace.SpanContext) stromboli.TraceContext {
	if !sc.IsValid() {
		return stromboli.TraceContext{}
	}
	return stromboli.TraceContext{
		Parent: "00-" + sc.TraceID().String() + "-" + sc.SpanID().String() + "-" + sc.TraceFlags().String(),
		State:  boundedState(sc.TraceState().String()),
	}
}

func boundedState(s string) string {
	if len(s) > maxState {
		return ""
	}
	return s
}
