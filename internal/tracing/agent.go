package tracing

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"go.opentelemetry.io/otel/trace"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// maxAgentSpans bounds the spans that the CLI of one run's agent may add.
const maxAgentSpans = 1000

// sendExports sends what the CLI of a run's agent has exported, as far as it is
// fit to be. It comes from a sandbox: see agentSpans.
func (t *Tracer) sendExports(ctx context.Context, k task) error {
	first, err := t.cfg.Events.Events(ctx, k.runID, 0, 1)
	if err != nil {
		return fmt.Errorf("reading the first event of run %s: %w", k.runID, err)
	}
	if len(first) == 0 {
		return nil
	}
	parent := parse(contextIn(first[0])) //nolint:contextcheck // it reads text
	if !t.cfg.Agents || !parent.IsSampled() {
		return nil
	}
	spans, refused := agentSpans(k.runID, parent.TraceID(), first[0].At, time.Now(), k.exports)
	if refused > 0 {
		t.log.WarnContext(ctx, "spans of a run's agent were refused: they belong to another trace, are malformed or too many", "run", k.runID, "refused", refused)
	}
	for len(spans) > 0 {
		n := min(len(spans), batchSpans)
		err := t.out.upload(ctx, []*tracepb.ResourceSpans{{
			Resource:   t.resourceOfAgent(),
			ScopeSpans: []*tracepb.ScopeSpans{{Scope: &commonpb.InstrumentationScope{Name: agentName}, Spans: spans[:n]}},
		}}, n)
		if err != nil {
			return err
		}
		spans = spans[n:]
	}
	return nil
}

// resourceOfAgent is this server's: whatever the CLI says it is.
func (t *Tracer) resourceOfAgent() *resourcepb.Resource {
	var out resourcepb.Resource
	for _, kv := range t.out.resource.Attributes() {
		out.Attributes = append(out.Attributes, &commonpb.KeyValue{
			Key: string(kv.Key), Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: kv.Value.AsString()}},
		})
	}
	return &out
}

// maxSkew is how far the clock of a sandbox, which is the host's, may be off.
const maxSkew = time.Second

// agentSpans makes spans of what a sandbox has sent, none of which is believed:
// those of another trace or time are refused; ids are made anew, so that none
// takes the place of another's; who has no parent among them is a child of the
// run; and of names and attributes only those stay that are known and hold no
// text.
func agentSpans(runID string, id trace.TraceID, from, until time.Time, exports [][]byte) (spans []*tracepb.Span, refused int) {
	known := map[string]bool{}
	least, most := uint64(from.Add(-maxSkew).UnixNano()), uint64(until.Add(maxSkew).UnixNano())
	own := spanID(runID, runSpan)
	fit := func(s *tracepb.Span) bool {
		return string(s.GetSpanId()) != string(own[:]) && string(s.GetTraceId()) == string(id[:]) && len(s.GetSpanId()) == len(trace.SpanID{}) && !known[string(s.GetSpanId())] &&
			s.GetStartTimeUnixNano() >= least && s.GetStartTimeUnixNano() <= s.GetEndTimeUnixNano() && s.GetEndTimeUnixNano() <= most
	}
	for _, body := range exports {
		var req coltracepb.ExportTraceServiceRequest
		if proto.Unmarshal(body, &req) != nil {
			refused++
			continue
		}
		for _, rs := range req.GetResourceSpans() {
			for _, ss := range rs.GetScopeSpans() {
				for _, s := range ss.GetSpans() {
					if !fit(s) || len(spans) >= maxAgentSpans {
						refused++
						continue
					}
					known[string(s.GetSpanId())] = true
					spans = append(spans, s)
				}
			}
		}
	}
	for i, s := range spans {
		spans[i] = cleanSpan(runID, s, known)
	}
	return spans, refused
}

func cleanSpan(runID string, s *tracepb.Span, known map[string]bool) *tracepb.Span {
	own := agentSpanID(runID, s.GetSpanId())
	parent := spanID(runID, runSpan)
	if known[string(s.GetParentSpanId())] {
		parent = agentSpanID(runID, s.GetParentSpanId())
	}
	clean := &tracepb.Span{
		TraceId: s.GetTraceId(), SpanId: own[:], ParentSpanId: parent[:], Flags: uint32(trace.FlagsSampled),
		Name: "claude_code.other", Kind: tracepb.Span_SPAN_KIND_INTERNAL,
		StartTimeUnixNano: s.GetStartTimeUnixNano(), EndTimeUnixNano: s.GetEndTimeUnixNano(),
	}
	if slices.Contains(agentNames(), s.GetName()) {
		clean.Name = s.GetName()
	}
	if s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR {
		clean.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR}
	}
	seen := map[string]bool{}
	for _, kv := range s.GetAttributes() {
		if v := cleanValue(kv.GetKey(), kv.GetValue()); v != nil && !seen[kv.GetKey()] {
			seen[kv.GetKey()] = true
			clean.Attributes = append(clean.Attributes, &commonpb.KeyValue{Key: kv.GetKey(), Value: v})
		}
	}
	return clean
}

func agentSpanID(runID string, id []byte) trace.SpanID {
	return spanID(runID, "agent "+hex.EncodeToString(id))
}

// cleanValue is the value of a known attribute, if it is a number, a boolean, or
// a short word; nil otherwise.
func cleanValue(key string, v *commonpb.AnyValue) *commonpb.AnyValue {
	if !slices.Contains(agentAttributes(), key) {
		return nil
	}
	switch v := v.GetValue().(type) {
	case *commonpb.AnyValue_IntValue, *commonpb.AnyValue_DoubleValue, *commonpb.AnyValue_BoolValue:
		return &commonpb.AnyValue{Value: v}
	case *commonpb.AnyValue_StringValue:
		if word(v.StringValue) {
			return &commonpb.AnyValue{Value: v}
		}
	}
	return nil
}

// word reports whether s is a name and no text.
func word(s string) bool {
	if len(s) > 128 {
		return false
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-' && r != '.' && r != ':' && r != '/' {
			return false
		}
	}
	return true
}

// agentNames are the CLI's spans (2.1.330).
func agentNames() []string {
	return []string{
		"claude_code.interaction", "claude_code.llm_request", "claude_code.tool", "claude_code.tool.execution",
		"claude_code.tool.blocked_on_user", "claude_code.hook",
	}
}

// agentAttributes are those of the CLI's that tell what happened, when and how
// often. What a command was, and how long a prompt, isn't among them.
func agentAttributes() []string {
	return []string{
		"gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "gen_ai.response.id", "gen_ai.tool.name", "gen_ai.tool.call.id",
		"gen_ai.conversation.id", "llm_request.context", "effort", "speed", "stop_reason", "decision", "source",
		"input_tokens", "output_tokens", "cache_read_tokens", "cache_creation_tokens",
		"attempt", "success", "duration_ms", "ttft_ms", "first_content_ms", "interaction.sequence", "interaction.duration_ms",
	}
}
