package tracing

import (
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"

	"github.com/tomblancdev/stromboli/internal/claude"
)

// onStep goes on with a conversation. A subagent's is known by the tool within
// which it works; one of a tool that nobody called is nobody's.
func (c *course) onStep(s claude.Step, when time.Time) {
	t := c.talks[s.Within]
	if t == nil {
		tool, known := c.tools[s.Within]
		if !known || !tool.there() || len(c.talks) >= maxSpans {
			return
		}
		t = &talk{ready: when}
		c.talks[s.Within] = t
	}
	switch {
	case s.Over:
		finish(&t.turn, t.until)
		t.answer, t.ready = "", when
	case s.Answer != "":
		c.onAnswer(t, s, when)
	}
	for _, r := range s.Results {
		c.onResult(t, r, when)
	}
}

// onAnswer begins a turn with the first line of an answer: it has gone on since
// the model was asked.
func (c *course) onAnswer(t *talk, s claude.Step, when time.Time) {
	if s.Answer != t.answer {
		c.answers++
		finish(&t.turn, t.until)
		parent := c.run
		if s.Within != "" {
			parent = c.tools[s.Within]
		}
		t.answer, t.open = s.Answer, 0
		t.turn = c.begin(parent, "turn "+s.Within+" "+s.Answer, "turn", earlier(t.ready, when),
			attribute.String(genOperation, "chat"), attribute.String(genProvider, providerAnthropic),
			attribute.String(genResponseModel, s.Model), attribute.String(genResponseID, s.Answer),
			attribute.Int64(genInput, s.Input.All), attribute.Int64(genCacheRead, s.Input.CacheRead), attribute.Int64(genCacheCreation, s.Input.CacheCreation),
			attribute.Int("stromboli.turn", c.answers),
		)
		if t.turn.there() && c.model != "" && s.Within == "" {
			t.turn.SetAttributes(attribute.String(genRequestModel, c.model))
		}
	}
	t.until = when
	if t.turn.there() {
		t.turn.AddEvent("answer", at(when)) // its parts; tools begin with theirs
	}
	for _, call := range s.Calls {
		if _, twice := c.tools[call.ID]; twice || !t.turn.there() {
			continue
		}
		tool := c.begin(t.turn, "tool "+call.ID, "execute_tool "+call.Name, when,
			attribute.String(genOperation, "execute_tool"), attribute.String(genToolName, call.Name),
			attribute.String(genToolCall, call.ID), attribute.String(genToolType, "function"),
		)
		if tool.there() {
			c.tools[call.ID] = tool
			t.open++
		}
	}
}

func (c *course) onResult(t *talk, r claude.ToolResult, when time.Time) {
	tool, known := c.tools[r.ID]
	if !known {
		return
	}
	delete(c.tools, r.ID)
	if sub := c.talks[r.ID]; sub != nil && r.ID != "" {
		finish(&sub.turn, sub.until)
		delete(c.talks, r.ID)
	}
	if r.Failed {
		tool.SetAttributes(attribute.String(errorType, "tool_error"))
		tool.SetStatus(codes.Error, "")
	}
	finish(&tool, when)
	// The model is asked again now, unless the answer goes on: tools may run
	// before their answer ends.
	t.until, t.ready = when, when
	t.open--
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
