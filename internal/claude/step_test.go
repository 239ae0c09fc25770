package claude

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestStepOfRecording: what the real CLI printed of a run with one tool.
func TestStepOfRecording(t *testing.T) {
	t.Parallel()
	var got []Step
	for _, l := range record(t, "cut_after_tool").lines {
		if s, ok := StepOf(l.data); ok && l.stream == Stdout {
			got = append(got, s)
		}
	}
	in := InputTokens{All: 150, CacheRead: 30, CacheCreation: 20}
	const model, tool = "claude-opus-5-5", "toolu_3aaed48a8d74"
	if d := cmp.Diff([]Step{
		{Model: model},
		{Model: model, Answer: "msg_001", Input: in},
		{Model: model, Answer: "msg_001", Input: in, Calls: []ToolCall{{ID: tool, Name: "Bash"}}},
		{Results: []ToolResult{{ID: tool}}},
		{Model: model, Answer: "msg_002", Input: in},
		{}, // the CLI asks to go on
		{Model: model, Answer: "msg_003", Input: in},
		{Over: true},
	}, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// FuzzStepOf: whatever a line is, what is told of it holds only short names.
func FuzzStepOf(f *testing.F) {
	f.Add([]byte(`{"type":"assistant","parent_tool_use_id":"a b","message":{"id":"m","model":"x y","content":[{"type":"tool_use","id":"t","name":"please do this"}],"usage":{"input_tokens":-5}}}`))
	f.Add([]byte(`{"type":"user","message":{"content":[{"type":"tool_result","tool_use_id":"` + strings.Repeat("x", 200) + `"}]}}`))
	f.Add([]byte(`{"type":"user","message":{"content":"text"}}`))
	f.Add([]byte(`{"type":"assistant","message":[1]}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		s, _ := StepOf(line)
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), " ") || s.Input.All < 0 || len(s.Calls) > maxSteps || len(s.Results) > maxSteps {
			t.Errorf("told %s", b)
		}
		for _, c := range s.Calls {
			if len(c.ID) > 128 || len(c.Name) > 128 {
				t.Errorf("a long name: %s", b)
			}
		}
	})
}

// TestEnvTracing: the CLI takes part where it is asked to, and nobody's own
// telemetry is led elsewhere.
func TestEnvTracing(t *testing.T) {
	t.Parallel()
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	has := func(c EnvConfig, name, value string) bool {
		e := environ{list: Env(c)}
		return e.value(name) == value
	}
	base := EnvConfig{Endpoint: "http://127.0.0.1:3128", TraceParent: parent}
	for name, value := range map[string]string{
		"TRACEPARENT": parent, "OTEL_TRACES_EXPORTER": "otlp", "OTEL_LOGS_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none",
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:3128/v1/traces", "OTEL_LOG_USER_PROMPTS": "0",
	} {
		if !has(base, name, value) {
			t.Errorf("%s is not %s", name, value)
		}
	}
	own := map[string]EnvConfig{
		"off":     {Endpoint: base.Endpoint},
		"caller":  {Endpoint: base.Endpoint, TraceParent: parent, Caller: map[string]string{"OTEL_SERVICE_NAME": "mine"}},
		"secrets": {Endpoint: base.Endpoint, TraceParent: parent, Secrets: map[string]string{"OTEL_EXPORTER_OTLP_HEADERS": "mine"}},
		"image":   {Endpoint: base.Endpoint, TraceParent: parent, Image: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://mine"}},
	}
	for what, c := range own {
		if !has(c, "TRACEPARENT", "") || !has(c, "CLAUDE_CODE_ENABLE_TELEMETRY", "") || !has(c, "OTEL_TRACES_EXPORTER", "") {
			t.Errorf("%s: the CLI makes spans", what)
		}
	}
}
