package tracing

import (
	"context"
	"encoding/json"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/claude"
)

// Names and values of OpenTelemetry's conventions for generative AI.
const (
	genOperation      = "gen_ai.operation.name"
	genProvider       = "gen_ai.provider.name"
	genAgent          = "gen_ai.agent.name"
	genConversation   = "gen_ai.conversation.id"
	genRequestModel   = "gen_ai.request.model"
	genResponseModel  = "gen_ai.response.model"
	genResponseID     = "gen_ai.response.id"
	genInput          = "gen_ai.usage.input_tokens"
	genOutput         = "gen_ai.usage.output_tokens"
	genCacheRead      = "gen_ai.usage.cache_read.input_tokens"
	genCacheCreation  = "gen_ai.usage.cache_creation.input_tokens"
	genToolName       = "gen_ai.tool.name"
	genToolCall       = "gen_ai.tool.call.id"
	genToolType       = "gen_ai.tool.type"
	errorType         = "error.type"
	providerAnthropic = "anthropic"
	agentName         = "claude-code"
)

// course makes the spans of one run from its events, in their order:
//
//	invoke_agent claude-code       the run
//	├ queued                       until it had a slot
//	├ sandbox start                until the agent had its message
//	│ └ pulling, creating, …       the phases on the way
//	└ turn                         one answer of the model, with its tools
//	  └ execute_tool NAME          …within which a subagent has turns of its own
type course struct {
	id     string
	tracer trace.Tracer
	kept   *gathered
	ctx    context.Context //nolint:containedctx // carries the parent of the run's span

	run     span
	model   string // that was asked for
	last    time.Time
	waiting span // queued
	start   span // sandbox start
	phase   span // within start
	phases  int

	talks   map[string]*talk // by the tool within which it is; "" is the main one
	tools   map[string]span  // that have not come back
	answers int
	dropped int64 // spans that there was no room for
}

// span is a span with what its children need. The zero span is none.
type span struct {
	trace.Span
	ctx context.Context //nolint:containedctx // that its children are begun with
}

func (s span) there() bool { return s.Span != nil }

// talk is one conversation with the model.
type talk struct {
	ready  time.Time // when the model was asked next
	turn   span
	answer string
	until  time.Time // the newest of the turn
	open   int       // of its tools
}

// begin begins a span whose id follows from the run's and key.
func (c *course) begin(parent span, key, name string, when time.Time, attrs ...attribute.KeyValue) span {
	if parent.ctx == nil || len(c.kept.spans)+len(c.tools)+len(c.talks) >= maxSpans {
		c.dropped++
		return span{}
	}
	ctx, s := c.tracer.Start(named(parent.ctx, spanID(c.id, key)), name, at(when), trace.WithAttributes(attrs...))
	return span{s, ctx}
}

// finish ends a span where there is one.
func finish(s *span, when time.Time) {
	if s.there() {
		s.End(at(when))
	}
	*s = span{}
}

// created is what a run.created event tells.
type created struct {
	Kind      string `json:"kind"`
	SessionID string `json:"session_id"`
	Resume    bool   `json:"resume"`
	Image     string `json:"image"`
	Model     string `json:"model"`
}

func (c *course) observe(ev stromboli.Event) {
	if ev.At.After(c.last) {
		c.last = ev.At
	}
	switch ev.Type { //nolint:exhaustive // the others say nothing of its course
	case stromboli.EventRunCreated:
		c.onCreated(ev)
	case stromboli.EventPhase:
		var d stromboli.PhaseData
		if json.Unmarshal(ev.Data, &d) == nil {
			c.onPhase(d.Phase, ev.At)
		}
	case stromboli.EventRunStarted:
		c.onStarted(ev)
	case stromboli.EventOutput:
		var d stromboli.OutputData
		if json.Unmarshal(ev.Data, &d) == nil && d.Stream == claude.Stdout {
			if s, ok := claude.StepOf([]byte(d.Line)); ok {
				c.onStep(s, ev.At)
			}
		}
	case stromboli.EventRunFinished:
		c.onFinished(ev)
	}
}

func (c *course) onCreated(ev stromboli.Event) {
	var d created
	_ = json.Unmarshal(ev.Data, &d) // the first event was read before
	c.model = d.Model
	c.talks, c.tools = map[string]*talk{"": {ready: ev.At}}, map[string]span{}
	c.run = c.begin(span{ctx: c.ctx}, runSpan, "invoke_agent "+agentName, ev.At,
		attribute.String(genOperation, "invoke_agent"), attribute.String(genProvider, providerAnthropic),
		attribute.String(genAgent, agentName), attribute.String(genConversation, d.SessionID),
		attribute.String("stromboli.run.id", c.id), attribute.String("stromboli.run.kind", d.Kind),
		attribute.Bool("stromboli.run.resumed", d.Resume),
	)
	if d.Model != "" {
		c.run.SetAttributes(attribute.String(genRequestModel, d.Model))
	}
}

func (c *course) onPhase(p stromboli.Phase, when time.Time) {
	c.phases++
	n := strconv.Itoa(c.phases)
	finish(&c.phase, when)
	switch p {
	case stromboli.PhaseQueued:
		c.waiting = c.begin(c.run, "queued", "queued", when)
		return
	case stromboli.PhasePulling, stromboli.PhaseCreating, stromboli.PhaseHooks, stromboli.PhaseStarting:
		finish(&c.waiting, when)
		if !c.start.there() {
			c.start = c.begin(c.run, "sandbox start "+n, "sandbox start", when)
		}
		c.phase = c.begin(c.start, "phase "+n, string(p), when)
		return
	case stromboli.PhaseGenerating:
		c.talks[""].ready = when
	case stromboli.PhaseWaitingApproval, stromboli.PhaseWaitingBudget, stromboli.PhaseCancelling, stromboli.PhaseFinishing:
	}
	finish(&c.waiting, when)
	finish(&c.start, when)
}

func (c *course) onStarted(ev stromboli.Event) {
	var d stromboli.StartedData
	if !c.start.there() || json.Unmarshal(ev.Data, &d) != nil {
		return
	}
	c.start.SetAttributes(
		attribute.String("stromboli.sandbox.id", d.Sandbox), attribute.String("stromboli.sandbox.start", d.Start),
		attribute.String("container.image.name", d.Image), attribute.String("container.image.id", d.ImageDigest),
	)
}

func (c *course) onFinished(ev stromboli.Event) {
	var out stromboli.Outcome
	if json.Unmarshal(ev.Data, &out) != nil {
		return
	}
	c.run.SetAttributes(attribute.String("stromboli.run.status", string(out.Status)))
	if out.Status != stromboli.Completed {
		c.run.SetAttributes(attribute.String(errorType, string(out.Reason)))
		c.run.SetStatus(codes.Error, string(out.Reason))
	}
	if u := out.Usage; u != nil {
		c.run.SetAttributes(
			attribute.Int64(genInput, u.InputTokens+u.CacheReadInputTokens+u.CacheCreationInputTokens), attribute.Int64(genOutput, u.OutputTokens),
			attribute.Int64(genCacheRead, u.CacheReadInputTokens), attribute.Int64(genCacheCreation, u.CacheCreationInputTokens),
			attribute.Float64("stromboli.run.estimated_cost_usd", u.EstimatedCostUSD),
		)
		if u.Model != "" {
			c.run.SetAttributes(attribute.String(genResponseModel, u.Model))
		}
	}
}

// end ends what has not, and returns all spans, the run's last.
func (c *course) end() []sdk.ReadOnlySpan {
	for _, s := range c.tools {
		s.SetAttributes(attribute.String(errorType, "unfinished"))
		s.SetStatus(codes.Error, "the run ended before the tool did")
		s.End(at(c.last))
	}
	for _, t := range c.talks {
		if t.open > 0 {
			t.until = c.last
		}
		finish(&t.turn, t.until)
	}
	finish(&c.phase, c.last)
	finish(&c.waiting, c.last)
	finish(&c.start, c.last)
	if c.dropped > 0 {
		c.run.SetAttributes(attribute.Int64("stromboli.spans.dropped", c.dropped))
	}
	finish(&c.run, c.last)
	return c.kept.spans
}
