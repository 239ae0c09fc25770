package api

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tomblancdev/stromboli"
)

func TestDecodeUnset(t *testing.T) {
	for _, body := range []string{
		`{"prompt":"p"}`,
		`{"prompt":"p","claude":{},"podman":{"environment":{},"lifecycle":{}}}`,
		`{"prompt":"p","claude":null,"podman":null,"metadata":null,"workdir":null,"on_disconnect":null}`,
		`{"prompt":"p","workdir":"","on_disconnect":"","metadata":{},"claude":[],"podman":""}`,
		`{"prompt":"p","claude":{"session_id":"","resume":false,"model":null,"allowed_tools":[],"max_turns":null,"max_budget_usd":"","timeout":"","output_format":""}}`,
		`{"prompt":"p","claude":{"resume":"","allowed_tools":{},"max_turns":[]}}`,
		`{"prompt":"p","webhook_url":"","env":{},"keep":false,"bindings":[],"workspace":{"a":{"b":[],"c":""}},"network":{"mode":"","allow":[]},"claude":{"continue":false,"agents":{},"tools":[],"debug":""}}`,
		`{"prompt":"p","podman":{"secrets_env":{},"environment":{"type":"","path":"","service":""},"lifecycle":{"on_create_command":[],"hooks_timeout":""}}}`,
		`{"prompt":"p","signal":{"aborted":[1,{"x":2}]}}`,
		`{"prompt":"q","prompt":"p"}`,
		" \n{\"prompt\":\"p\"}\n ",
	} {
		var spec stromboli.RunSpec
		if err := decode([]byte(body), &spec, contract()); err != nil {
			t.Errorf("%s: %v", body, err)
			continue
		}
		if diff := cmp.Diff(stromboli.RunSpec{Prompt: "p"}, spec); diff != "" {
			t.Errorf("%s: %s", body, diff)
		}
	}
}

func TestDecodeAll(t *testing.T) {
	turns, budget, shares, wait := 0, 0.0, 1024, stromboli.Duration(0)
	want := stromboli.RunSpec{
		Prompt: "hé <b>\u2028", Workdir: "/w", OnDisconnect: "cancel", Metadata: map[string]string{"a": "", "b/c": "2"},
		Content: []stromboli.ContentBlock{
			{Type: "text", Text: "t"},
			{Type: "document", Title: "t", Context: "c", Source: &stromboli.ContentSource{Type: "text", MediaType: "text/plain", Data: "d"}},
		},
		Env: map[string]string{"A": ""}, BackgroundWait: &wait,
		Claude: stromboli.ClaudeOptions{
			SessionID: "x", Resume: true, Model: "opus", SystemPrompt: "s", AppendSystemPrompt: "t",
			AllowedTools: []string{"Bash(git:*)", ""}, DisallowedTools: []string{"Write"}, PermissionMode: "plan",
			DangerouslySkipPermissions: true, OutputFormat: "stream-json", IncludePartialMessages: true,
			JSONSchema: `{"type":"object"}`, MaxTurns: &turns, MaxBudgetUSD: &budget, Timeout: stromboli.Duration(90 * time.Second),
			FallbackModel: "a,b", Tools: []string{""}, AllowDangerouslySkipPermissions: true, InputFormat: "stream-json",
			ReplayUserMessages: true, Effort: "low", Agent: "a", Agents: json.RawMessage(`{"a":{"x":1.50,"y":[]}}`), AddDirs: []string{"/a"},
			Files: []string{"{}"}, MCPConfigs: []string{"/m"}, StrictMCPConfig: true, PluginDirs: []string{"p"}, Settings: "{}",
			SettingSources: []string{"user"}, Betas: []string{"b"}, DisableSlashCommands: true, Debug: "d", Verbose: true,
			PromptCachingTTL: "1h", BedrockServiceTier: "flex", EnablePowershellTool: true,
		},
		Podman: stromboli.PodmanOptions{
			Image: "i", Volumes: []string{"/a:/b:ro"}, Memory: "1g", CPUs: "0.5", CPUShares: &shares, Timeout: stromboli.Duration(time.Hour),
		},
	}
	body, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got stromboli.RunSpec
	if err := decode(body, &got, contract()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestDecodeFaults(t *testing.T) {
	deep := strings.Repeat("[", 70) + strings.Repeat("]", 70)
	tests := []struct {
		body, code, field, message string
	}{
		{``, "invalid_request", "", "empty"},
		{"  \n", "invalid_request", "", "empty"},
		{`{`, "invalid_request", "", "malformed JSON at byte 1"},
		{`{"prompt":"p"} x`, "invalid_request", "", "malformed JSON"},
		{`{"prompt":"p"}{}`, "invalid_request", "", "malformed JSON"},
		{`{"prompt":"p",}`, "invalid_request", "", "malformed JSON"},
		{`[]`, "invalid_request", "", "must be a JSON object"},
		{`"x"`, "invalid_request", "", "must be a JSON object"},
		{`null`, "invalid_request", "", "must be a JSON object"},
		{"{\"prompt\":\"\xff\"}", "invalid_request", "", "UTF-8"},
		{`{"signal":` + deep + `}`, "invalid_request", "", "nested"},
		{`{"promt":"p"}`, "invalid_request", "promt", "unknown field"},
		{`{"Prompt":"p"}`, "invalid_request", "Prompt", "unknown field"},
		{`{"claude":{"mdel":"p"}}`, "invalid_request", "claude.mdel", "unknown field"},
		{`{"claude":{"signal":1}}`, "invalid_request", "claude.signal", "unknown field"},
		{`{"a b":{"x":[1,2]},"prompt":"p"}`, "invalid_request", `"a b"`, "unknown field"},
		{`{"prompt":1}`, "invalid_request", "prompt", "must be a string"},
		{`{"prompt":["p"]}`, "invalid_request", "prompt", "must be a string"},
		{`{"prompt":true}`, "invalid_request", "prompt", "must be a string"},
		{`{"claude":"x"}`, "invalid_request", "claude", "must be an object"},
		{`{"claude":[1]}`, "invalid_request", "claude", "must be an object"},
		{`{"claude":{"resume":"yes"}}`, "invalid_request", "claude.resume", "must be true or false"},
		{`{"claude":{"resume":1}}`, "invalid_request", "claude.resume", "must be true or false"},
		{`{"claude":{"max_turns":1.0}}`, "invalid_request", "claude.max_turns", "must be an integer"},
		{`{"claude":{"max_turns":1e2}}`, "invalid_request", "claude.max_turns", "must be an integer"},
		{`{"claude":{"max_turns":"3"}}`, "invalid_request", "claude.max_turns", "must be an integer"},
		{`{"claude":{"max_turns":99999999999999999999}}`, "invalid_request", "claude.max_turns", "out of range"},
		{`{"claude":{"max_budget_usd":"3"}}`, "invalid_request", "claude.max_budget_usd", "must be a number"},
		{`{"claude":{"max_budget_usd":1e999}}`, "invalid_request", "claude.max_budget_usd", "out of range"},
		{`{"claude":{"timeout":30}}`, "invalid_request", "claude.timeout", "must be a duration"},
		{`{"claude":{"timeout":"30"}}`, "invalid_request", "claude.timeout", "must be a duration"},
		{`{"claude":{"allowed_tools":"Bash"}}`, "invalid_request", "claude.allowed_tools", "must be a list of strings"},
		{`{"claude":{"allowed_tools":["a",{"b":1},"c"]}}`, "invalid_request", "claude.allowed_tools[1]", "must be a string"},
		{`{"claude":{"output_format":"xml"}}`, "invalid_request", "claude.output_format", "must be one of text, json, stream-json"},
		{`{"on_disconnect":"stop"}`, "invalid_request", "on_disconnect", "must be one of continue, cancel"},
		{`{"metadata":{"a":1}}`, "invalid_request", "metadata.a", "must be a string"},
		{`{"metadata":["a"]}`, "invalid_request", "metadata", "must be an object whose values are strings"},
		{`{"podman":{"cpus":0.5}}`, "invalid_request", "podman.cpus", "must be a string"},
		{`{"webhook_url":["http://x"]}`, "invalid_request", "webhook_url", "must be a string"},
		{`{"env":{"a":1}}`, "invalid_request", "env.a", "must be a string"},
		{`{"background_wait":5}`, "invalid_request", "background_wait", "must be a duration"},
		{`{"content":{"type":"text"}}`, "invalid_request", "content", "must be a list of objects"},
		{`{"content":["x"]}`, "invalid_request", "content[0]", "must be an object"},
		{`{"content":[{"type":"text","text":"x"},null]}`, "invalid_request", "content[1]", "must be an object"},
		{`{"content":[{"type":"image","source":{"data":1}}]}`, "invalid_request", "content[0].source.data", "must be a string"},
		{`{"content":[{"kind":"x"}]}`, "invalid_request", "content[0].kind", "unknown field"},
		{`{"claude":{"agents":"x"}}`, "invalid_request", "claude.agents", "must be an object"},
		{`{"claude":{"agents":[1]}}`, "invalid_request", "claude.agents", "must be an object"},
		{`{"claude":{"input_format":"xml"}}`, "invalid_request", "claude.input_format", "must be one of text, stream-json"},
		{`{"keep":true}`, "not_supported", "keep", "not supported"},
		{`{"podman":{"lifecycle":{"post_start":"x"}}}`, "invalid_request", "podman.lifecycle.post_start", "must be a list"},
		{`{"podman":{"lifecycle":{"post_start":[1]}}}`, "invalid_request", "podman.lifecycle.post_start[0]", "must be a string"},
		{`{"podman":{"lifecycle":{"hooks_timeout":"soon"}}}`, "invalid_request", "podman.lifecycle.hooks_timeout", "duration"},
		{`{"podman":{"lifecycle":{"pre_start":["x"]}}}`, "invalid_request", "podman.lifecycle.pre_start", "unknown field"},
		{`{"podman":{"environment":{"type":"compose"}}}`, "not_supported", "podman.environment", "not supported"},
	}
	for _, tt := range tests {
		var spec stromboli.RunSpec
		err := decode([]byte(tt.body), &spec, contract())
		e, ok := errors.AsType[*stromboli.Error](err)
		if !ok {
			t.Errorf("%s: got %v", tt.body, err)
			continue
		}
		field := ""
		if len(e.Details) > 0 {
			field = e.Details[0].Field
		}
		if string(e.Code) != tt.code || field != tt.field || !strings.Contains(e.Message, tt.message) || !strings.Contains(e.Message, tt.field) {
			t.Errorf("%s: %s, field %q, %q", tt.body, e.Code, field, e.Message)
		}
	}
}

func TestDecodeManyFaults(t *testing.T) {
	var spec stromboli.RunSpec
	err := decode([]byte(`{"a":1,"claude":{"b":[{}],"resume":3},"podman":{"image":{"x":[]}},"metadata":{"m":[]},"prompt":"p"}`), &spec, contract())
	e, _ := errors.AsType[*stromboli.Error](err)
	if e == nil || len(e.Details) != 5 || spec.Prompt != "p" {
		t.Fatalf("%+v %+v", e, spec)
	}
	many := `{"claude":{"allowed_tools":[` + strings.Repeat("1,", 5000) + `1]},"prompt":3,` + strings.Repeat(`"u":1,`, 1000) + `"v":1}`
	err = decode([]byte(many), &spec, contract())
	if e, _ = errors.AsType[*stromboli.Error](err); e == nil || len(e.Details) != maxFaults {
		t.Fatalf("%v", err)
	}
}

func TestDecodeLarge(t *testing.T) {
	volumes := make([]string, 10_000)
	for i := range volumes {
		volumes[i] = "/host/" + strconv.Itoa(i) + ":/in/" + strconv.Itoa(i)
	}
	want := stromboli.RunSpec{Prompt: strings.Repeat("a\"", 1<<19), Podman: stromboli.PodmanOptions{Volumes: volumes}}
	body, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	var got stromboli.RunSpec
	if err := decode(body, &got, contract()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("took %s", took)
	}
	if !cmp.Equal(want, got) {
		t.Error("differs")
	}
}

// TestEveryFieldKnown keeps the table of later fields and the spec apart.
func TestEveryFieldKnown(t *testing.T) {
	for _, path := range []string{"prompt", "claude.model", "podman.image", "metadata", "on_disconnect"} {
		if notSupportedYet(path) {
			t.Errorf("%s is supported", path)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"prompt":"p","claude":{"max_turns":3,"tools":[""],"allowed_tools":["a"]},"metadata":{"a":"b"}}`))
	f.Add([]byte(`{"prompt":{"a":[1,2,{"b":null}]},"signal":[],"x":1,"podman":{"environment":{"a":{}}}}`))
	f.Add([]byte(`{"prompt":"\ud800","prompt":"p"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var spec stromboli.RunSpec
		err := decode(body, &spec, contract())
		if err != nil {
			if e, ok := errors.AsType[*stromboli.Error](err); !ok || e.Message == "" {
				t.Fatalf("%v", err)
			}
			return
		}
		// What was accepted means the same when it is written out again.
		first, err := specHash(spec)
		if err != nil {
			t.Fatal(err)
		}
		again, err := json.Marshal(spec)
		if err != nil {
			t.Fatal(err)
		}
		var spec2 stromboli.RunSpec
		if err := decode(again, &spec2, contract()); err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		if second, _ := specHash(spec2); first != second {
			t.Fatalf("%s and %s differ", body, again)
		}
	})
}
