package tracing

import (
	"context"
	"net/http"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/tomblancdev/stromboli"
)

// Request begins the span of a request, which joins the trace that the caller
// names in traceparent, if it is valid. end takes the route's pattern ("POST
// /run", empty where there is no route) and the answer's status.
func (t *Tracer) Request(r *http.Request) (ctx context.Context, end func(pattern string, status int)) {
	ctx, span := t.trace.Start(callerContext(r), "HTTP "+method(r.Method), trace.WithSpanKind(trace.SpanKindServer))
	return ctx, func(pattern string, status int) {
		defer span.End()
		if !span.IsRecording() {
			return
		}
		span.SetAttributes(attribute.String("http.request.method", method(r.Method)), attribute.Int("http.response.status_code", status))
		if _, route, ok := strings.Cut(pattern, " "); ok {
			span.SetName(pattern)
			span.SetAttributes(attribute.String("http.route", route))
		}
		if status >= http.StatusInternalServerError {
			span.SetStatus(codes.Error, http.StatusText(status))
		}
	}
}

// callerContext is the request's context with the caller's place in a trace. A
// tracestate that is too long is left out, as the specification allows.
func callerContext(r *http.Request) context.Context {
	parents := r.Header.Values("Traceparent")
	if len(parents) != 1 || len(parents[0]) > 256 {
		return r.Context()
	}
	carrier := propagation.MapCarrier{"traceparent": parents[0]}
	if state := strings.Join(r.Header.Values("Tracestate"), ","); len(state) <= maxState {
		carrier["tracestate"] = state
	}
	return propagation.TraceContext{}.Extract(r.Context(), carrier)
}

// method bounds the names that a span may get.
func method(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return m
	}
	return "_OTHER"
}

// Context is the place in a trace of the request in ctx.
func (t *Tracer) Context(ctx context.Context) stromboli.TraceContext {
	return contextOf(trace.SpanContextFromContext(ctx))
}

// Agent is the traceparent that the agent of a run is told, so that its spans
// become children of the run's: empty where the run is in no trace, or in one
// that isn't recorded.
func (t *Tracer) Agent(runID string, at stromboli.TraceContext) string {
	parent := parse(at)
	if !t.cfg.Agents || !parent.IsSampled() {
		return ""
	}
	return contextOf(parent.WithSpanID(spanID(runID, runSpan))).Parent
}

// parse reads a place in a trace; an invalid one is none.
func parse(at stromboli.TraceContext) trace.SpanContext {
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": at.Parent, "tracestate": at.State})
	return trace.SpanContextFromContext(ctx)
}
