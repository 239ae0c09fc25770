package tracing_test

import (
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/tracing"
	"github.com/tomblancdev/stromboli/internal/tracing/tracingtest"
)

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err) // a literal of ours
	}
	return b
}

func attr(key, value string) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: value}}}
}

// exported is the body of an export of spans that are within the run's time,
// unless they say otherwise.
func exported(spans ...*tracepb.Span) []byte {
	for _, s := range spans {
		if s.TraceId == nil {
			s.TraceId = unhex(callerTrace)
		}
		if s.StartTimeUnixNano == 0 {
			s.StartTimeUnixNano = uint64(time.Now().Add(-time.Second).UnixNano())
			s.EndTimeUnixNano = s.StartTimeUnixNano + 1000
		}
	}
	b, err := proto.Marshal(&coltracepb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource:   &resourcepb.Resource{Attributes: []*commonpb.KeyValue{attr("service.name", canary)}},
		ScopeSpans: []*tracepb.ScopeSpans{{Scope: &commonpb.InstrumentationScope{Name: canary}, Spans: spans}},
	}}})
	if err != nil {
		panic(err) // our own
	}
	return b
}

// TestAgentSpans: what a sandbox exports is taken only as far as it belongs to
// its run's trace, and holds nothing that it makes up itself.
func TestAgentSpans(t *testing.T) {
	t.Parallel()
	c := tracingtest.Start(t)
	tr := start(t, c.GRPC, stored{"run-1": whole(callerParent)})
	told := tr.Agent("run-1", stromboli.TraceContext{Parent: callerParent})
	runID := strings.Split(told, "-")[2]
	in := func(n byte) []byte { return []byte{0, 0, 0, 0, 0, 0, 0, n} }
	text := "please do " + canary
	good := exported(
		&tracepb.Span{
			SpanId: in(1), ParentSpanId: unhex(runID), Name: "claude_code.interaction", TraceState: canary,
			Attributes: []*commonpb.KeyValue{
				attr("user_prompt", text), attr("gen_ai.request.model", "claude-opus-5-5"), attr("gen_ai.request.model", "twice"), attr("stop_reason", text),
				{Key: "output_tokens", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: 7}}},
				{Key: "success", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_BytesValue{BytesValue: []byte(canary)}}},
			},
			Events: []*tracepb.Span_Event{{Name: canary}}, Links: []*tracepb.Span_Link{{TraceId: unhex(callerTrace), SpanId: in(9), TraceState: canary}},
			Status: &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: canary},
		},
		&tracepb.Span{SpanId: in(2), ParentSpanId: in(1), Name: "claude_code.tool"},
		&tracepb.Span{SpanId: in(3), ParentSpanId: in(77), Name: canary}, // an orphan with a name of its own
		&tracepb.Span{SpanId: unhex(runID), Name: "claude_code.tool"},    // in the place of the run's own
	)
	bad := exported(
		&tracepb.Span{SpanId: in(4), TraceId: unhex(strings.Repeat("2", 32)), Name: "claude_code.tool"},
		&tracepb.Span{SpanId: in(1), Name: "claude_code.tool"},
		&tracepb.Span{SpanId: []byte("short"), Name: "claude_code.tool"},
		&tracepb.Span{SpanId: in(5), StartTimeUnixNano: 1, EndTimeUnixNano: 2, Name: "claude_code.tool"},
		&tracepb.Span{SpanId: in(6), StartTimeUnixNano: 1 << 63, EndTimeUnixNano: 1 << 63, Name: "claude_code.tool"},
	)
	many := make([]*tracepb.Span, 2000)
	for i := range many {
		many[i] = &tracepb.Span{SpanId: []byte{1, 0, 0, 0, 0, 0, byte(i >> 8), byte(i)}, Name: "claude_code.tool"}
	}
	tr.Exported("run-1", [][]byte{good, bad, []byte("garbage"), exported(many...)})
	tr.Exported("run-1", nil)
	tr.Exported("run-missing", [][]byte{good})
	all := c.Wait("", "the agent's spans", func(s []tracingtest.Span) bool { return len(s) >= 1000 })
	tr.stop()
	if len(all) != 1000 {
		t.Errorf("%d spans, want 1000", len(all))
	}
	if log := tr.log.String(); !strings.Contains(log, "refused=1010") { // 6 bad ones, an unreadable export, 1003 too many
		t.Errorf("the log doesn't say that 1010 were refused:\n%s", log)
	}
	first := all[0]
	if d := cmp.Diff(map[string]any{"gen_ai.request.model": "claude-opus-5-5", "output_tokens": int64(7)}, first.Attrs); d != "" {
		t.Errorf("attributes (-want +got):\n%s", d)
	}
	if first.Parent != runID || all[1].Parent != first.ID || all[2].Parent != runID || all[2].GetName() != "claude_code.other" {
		t.Errorf("parents %s, %s, %s; names %s", first.Parent, all[1].Parent, all[2].Parent, all[2].GetName())
	}
	for _, s := range all {
		if s.ID == runID || s.Trace != callerTrace || s.Resource["service.name"] != "svc" {
			t.Fatalf("a span %s of trace %s, resource %v", s.ID, s.Trace, s.Resource)
		}
	}
	if c.Holds(canary) {
		t.Error("what a sandbox made up was sent to the collector")
	}
}

// TestAgentsOff: nothing is told to agents, and nothing taken from them.
func TestAgentsOff(t *testing.T) {
	t.Parallel()
	c := tracingtest.Start(t)
	tr := start(t, c.GRPC, stored{"run-1": whole(callerParent)}, func(cfg *tracing.Config) { cfg.Agents = false })
	if told := tr.Agent("run-1", stromboli.TraceContext{Parent: callerParent}); told != "" {
		t.Errorf("told %q", told)
	}
	tr.Exported("run-1", [][]byte{exported(&tracepb.Span{SpanId: []byte("12345678"), Name: "claude_code.tool"})})
	tr.stop()
	if n := len(c.Spans("")); n != 0 {
		t.Errorf("%d spans", n)
	}
}
