package tracing_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/tracing"
	"github.com/tomblancdev/stromboli/internal/tracing/tracingtest"
)

// tree is a trace as text: a line per span with its seconds, children below
// their parents, in the order of their beginnings.
func tree(spans []tracingtest.Span, parent string, from uint64) string {
	children := slices.DeleteFunc(slices.Clone(spans), func(s tracingtest.Span) bool { return s.Parent != parent })
	slices.SortFunc(children, func(a, b tracingtest.Span) int {
		return int(a.GetStartTimeUnixNano()) - int(b.GetStartTimeUnixNano())
	})
	var b strings.Builder
	for _, s := range children {
		if from == 0 {
			from = s.GetStartTimeUnixNano()
		}
		sec := func(ns uint64) uint64 { return (ns - from) / uint64(time.Second) }
		fmt.Fprintf(&b, "%s %d-%d\n", s.GetName(), sec(s.GetStartTimeUnixNano()), sec(s.GetEndTimeUnixNano()))
		for line := range strings.Lines(tree(spans, s.ID, from)) {
			b.WriteString("  " + line)
		}
	}
	return b.String()
}

const wholeTree = `invoke_agent claude-code 0-18
  queued 1-2
  sandbox start 2-5
    creating 2-3
    starting 3-5
  turn 5-9
    execute_tool Bash 8-9
  turn 9-14
    execute_tool Task 10-14
      turn 11-12
        execute_tool Read 11-12
      turn 12-13
  turn 14-15
`

// TestRun sends a run's spans by both protocols to a real receiver, twice, as two
// servers would of which one died: it is the same trace.
func TestRun(t *testing.T) {
	t.Parallel()
	c := tracingtest.Start(t)
	for _, endpoint := range []string{c.GRPC, c.HTTP} {
		before := len(c.Spans(""))
		tr := start(t, endpoint, stored{"run-1": whole(callerParent), "run-2": whole("")})
		tr.Ended("run-2") // in no trace
		tr.Ended("run-missing")
		tr.Ended("run-1")
		tr.stop()
		spans := c.Spans("")[before:]
		if d := cmp.Diff(wholeTree, tree(spans, "b7ad6b7169203331", 0)); d != "" {
			t.Errorf("%s (-want +got):\n%s", endpoint, d)
		}
		run := byName(t, spans, "invoke_agent claude-code")
		if d := cmp.Diff(map[string]any{
			"gen_ai.operation.name": "invoke_agent", "gen_ai.provider.name": "anthropic", "gen_ai.agent.name": "claude-code", "gen_ai.conversation.id": "session-1",
			"gen_ai.request.model": "opus", "gen_ai.response.model": "claude-opus-5-5", "gen_ai.usage.input_tokens": int64(50), "gen_ai.usage.output_tokens": int64(9),
			"gen_ai.usage.cache_read.input_tokens": int64(30), "gen_ai.usage.cache_creation.input_tokens": int64(0),
			"stromboli.run.id": "run-1", "stromboli.run.kind": "sync", "stromboli.run.resumed": false, "stromboli.run.status": "completed", "stromboli.run.estimated_cost_usd": 0.0,
		}, run.Attrs); d != "" {
			t.Errorf("attributes of the run (-want +got):\n%s", d)
		}
		tool := byName(t, spans, "execute_tool Bash")
		if d := cmp.Diff(map[string]any{
			"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "Bash", "gen_ai.tool.call.id": "t1", "gen_ai.tool.type": "function", "error.type": "tool_error",
		}, tool.Attrs); d != "" {
			t.Errorf("attributes of the tool (-want +got):\n%s", d)
		}
		if run.Resource["service.name"] != "svc" || run.Trace != callerTrace {
			t.Errorf("resource %v, trace %s", run.Resource, run.Trace)
		}
	}
	seen := map[string]int{}
	for _, s := range c.Spans("") {
		seen[s.ID]++
	}
	for id, n := range seen {
		if n != 2 {
			t.Errorf("span %s was sent %d times by the two servers, want twice", id, n)
		}
	}
	if c.Holds(canary) {
		t.Error("what was said was sent to the collector")
	}
}

// TestRunCutShort: who never came back is unfinished, and whatever a sandbox
// makes up, there are no more spans than a run may have.
func TestRunCutShort(t *testing.T) {
	t.Parallel()
	c := tracingtest.Start(t)
	cut := &script{at: time.Now()}
	cut.created(callerParent)
	cut.phase(stromboli.PhaseGenerating)
	cut.answer("", "msg_1", use("t1", "Bash"))
	cut.answer("unknown-tool", "msg_2", use("t2", "Bash"))
	cut.result("", "nobody", false)
	cut.line(`{"type":"assistant","message":{"id":7}}`)
	cut.line(`not JSON`)
	cut.add(stromboli.EventRunFinished, stromboli.Outcome{Status: stromboli.Crashed, Reason: stromboli.ReasonLost, Error: canary})
	flood := &script{at: time.Now()}
	flood.created(strings.Replace(callerParent, callerTrace, strings.Repeat("1", 32), 1))
	for i := range 12 {
		var calls []string
		for j := range 200 {
			calls = append(calls, use(fmt.Sprintf("t%d-%d", i, j), strings.Repeat("x", 200)))
		}
		flood.answer("", fmt.Sprintf("msg_%d", i), strings.Join(calls, ","))
	}
	tr := start(t, c.GRPC, stored{"run-1": cut.events, "run-2": flood.events})
	tr.Ended("run-1")
	tr.Ended("run-2")
	defer func() {
		if t.Failed() {
			t.Log(tr.log.String())
		}
	}()
	c.Wait(strings.Repeat("1", 32), "the last span of the second run", func(all []tracingtest.Span) bool {
		return len(all) > 0 && all[len(all)-1].GetName() == "invoke_agent claude-code"
	})
	tr.stop()
	spans := c.Spans(callerTrace)
	if got, want := tree(spans, "b7ad6b7169203331", 0), "invoke_agent claude-code 0-7\n  turn 1-7\n    execute_tool Bash 2-7\n"; got != want {
		t.Errorf("got\n%s want\n%s", got, want)
	}
	if run := byName(t, spans, "invoke_agent claude-code"); run.Attrs["error.type"] != "lost" || run.GetStatus().GetMessage() != "lost" {
		t.Errorf("%v, %v", run.Attrs, run.GetStatus())
	}
	all := c.Spans(strings.Repeat("1", 32))
	if run := byName(t, all, "invoke_agent claude-code"); len(all) > 2001 || run.Attrs["stromboli.spans.dropped"] == nil {
		t.Errorf("%d spans, dropped %v", len(all), run.Attrs["stromboli.spans.dropped"])
	}
	if c.Holds(canary) || c.Holds(strings.Repeat("x", 200)) {
		t.Error("what a sandbox said was sent to the collector")
	}
}

// TestNotRecorded: a caller that doesn't record its trace has none recorded here.
func TestNotRecorded(t *testing.T) {
	t.Parallel()
	c := tracingtest.Start(t)
	parent := strings.TrimSuffix(callerParent, "1") + "0"
	tr := start(t, c.GRPC, stored{"run-1": whole(parent)}, func(cfg *tracing.Config) { cfg.SampleRatio = 0 })
	tr.Ended("run-1")
	_, end := tr.Request(request(parent, ""))
	end("POST /run", 200)
	_, end = tr.Request(request("", "")) // one that begins here
	end("POST /run", 200)
	tr.stop()
	if n := len(c.Spans("")); n != 0 {
		t.Errorf("%d spans", n)
	}
	if got := tr.Agent("run-1", stromboli.TraceContext{Parent: parent}); got != "" {
		t.Errorf("the agent is told %q", got)
	}
}
