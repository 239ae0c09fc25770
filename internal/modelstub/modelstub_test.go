package modelstub_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli/internal/modelstub"
)

// say is a message of a request.
func say(role string, content any) map[string]any {
	return map[string]any{"role": role, "content": content}
}

func toolResult(text string) []any {
	return []any{map[string]any{"type": "tool_result", "tool_use_id": "t", "content": []any{map[string]any{"type": "text", "text": text}}}}
}

func post(t *testing.T, srv *httptest.Server, fields map[string]any, messages ...any) *http.Response {
	t.Helper()
	body := map[string]any{"model": "m", "max_tokens": 10, "stream": true, "messages": messages}
	for k, v := range fields {
		body[k] = v
	}
	data, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, srv.URL+"/v1/messages?beta=true", strings.NewReader(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// answer is what a client makes of a stream.
type answer struct {
	text, thinking, input, tool, stop string
	kinds                             []string
	whole                             bool
}

func read(t *testing.T, r io.Reader) answer {
	t.Helper()
	data, _ := io.ReadAll(r)
	var a answer
	for _, line := range strings.Split(string(data), "\n") {
		payload, ok := strings.CutPrefix(line, "data: ")
		if !ok {
			continue
		}
		var e struct {
			Type  string
			Delta struct {
				Text, Thinking string
				Partial        string `json:"partial_json"`
				Stop           string `json:"stop_reason"`
			}
			Block struct{ Name string } `json:"content_block"`
		}
		if err := json.Unmarshal([]byte(payload), &e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		a.kinds = append(a.kinds, e.Type)
		a.text += e.Delta.Text
		a.thinking += e.Delta.Thinking
		a.input += e.Delta.Partial
		a.tool += e.Block.Name
		a.stop += e.Delta.Stop
		a.whole = e.Type == "message_stop"
	}
	return a
}

func newServer(t *testing.T, s *modelstub.Server) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	return srv
}

func TestStepsFollowTheConversation(t *testing.T) {
	t.Parallel()
	stub := modelstub.New()
	srv := newServer(t, stub)
	prompt := say("user", `Please. stub: {"key":"k1","steps":[
		{"thinking":"hmm","text":"I look.","tool_use":{"name":"Bash","input":{"command":"ls"}}},
		{"blocks":[{"text":"one "},{"text":"two"}],"stop_reason":"max_tokens"}]} thanks`)
	a := read(t, post(t, srv, nil, prompt).Body)
	if a.thinking != "hmm" || a.text != "I look." || a.tool != "Bash" || a.input != `{"command":"ls"}` || a.stop != "tool_use" || !a.whole {
		t.Errorf("step 0: %+v", a)
	}
	turn := say("assistant", "I look.")
	a = read(t, post(t, srv, nil, prompt, say("system", "env"), turn, say("user", toolResult(`stub: {"steps":[{"text":"wrong"}]}`))).Body)
	if a.text != "one two" || a.stop != "max_tokens" {
		t.Errorf("step 1: %+v", a)
	}
	a = read(t, post(t, srv, nil, prompt, turn, say("user", toolResult("x")), turn, say("user", "and now?")).Body)
	if !strings.Contains(a.text, "and now?") || a.stop != "end_turn" {
		t.Errorf("beyond the script: %+v", a)
	}
	if got := stub.Requests("k1"); len(got) != 3 || got[1].Step != 1 || !strings.Contains(got[0].Body, "Please") {
		t.Errorf("record: %d requests", len(got))
	}
	if got := stub.Requests("other"); len(got) != 0 {
		t.Errorf("another key: %d requests", len(got))
	}
}

func TestFaults(t *testing.T) {
	t.Parallel()
	srv := newServer(t, modelstub.New())
	script := func(step string) any { return say("user", `stub: {"steps":[`+step+`]}`) }
	t.Run("status", func(t *testing.T) {
		t.Parallel()
		resp := post(t, srv, nil, script(`{"status":429,"headers":{"retry-after":"7"}}`))
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != 429 || resp.Header.Get("Retry-After") != "7" || !strings.Contains(string(body), "rate_limit_error") {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	})
	t.Run("times", func(t *testing.T) {
		t.Parallel()
		for i, want := range []int{529, 529, 200, 200} {
			if got := post(t, srv, nil, script(`{"status":529,"times":2,"text":"ok"}`)).StatusCode; got != want {
				t.Errorf("request %d: %d, want %d", i, got, want)
			}
		}
	})
	t.Run("cut", func(t *testing.T) {
		t.Parallel()
		a := read(t, post(t, srv, nil, script(`{"blocks":[{"text":"whole"},{"text":"abcdef"}],"chunk":2,"cut":{"blocks":1,"deltas":2}}`)).Body)
		if a.whole || a.text != "wholeabcd" {
			t.Errorf("%+v", a)
		}
		a = read(t, post(t, srv, nil, script(`{"text":"x","cut":{}}`)).Body)
		if a.whole || a.text != "" || len(a.kinds) != 2 {
			t.Errorf("cut at once: %+v", a)
		}
	})
	t.Run("hang", func(t *testing.T) {
		t.Parallel()
		for _, where := range []string{"before", "after"} {
			data := fmt.Sprintf(`{"stream":true,"messages":[{"role":"user","content":"stub: {\"steps\":[{\"text\":\"x\",\"hang\":\"%s\"}]}"}]}`, where)
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			req, _ := http.NewRequestWithContext(ctx, http.MethodPost, srv.URL+"/v1/messages", strings.NewReader(data))
			resp, err := srv.Client().Do(req)
			if err == nil {
				if a := read(t, resp.Body); a.whole || where == "before" {
					t.Errorf("%s: %+v", where, a)
				}
				_ = resp.Body.Close()
			} else if where == "after" {
				t.Error(err)
			}
			cancel()
		}
	})
	t.Run("bytes", func(t *testing.T) {
		t.Parallel()
		if a := read(t, post(t, srv, nil, script(`{"bytes":300000}`)).Body); len(a.text) != 300000 || !a.whole {
			t.Errorf("%d bytes", len(a.text))
		}
	})
	t.Run("faulty directive", func(t *testing.T) {
		t.Parallel()
		for _, step := range []string{`{"txt":"x"}`, `{"hang":"maybe"}`, `{"status":99}`, `{"bytes":-1}`, `{"tool_use":{}}`, `{`} {
			if got := post(t, srv, nil, script(step)).StatusCode; got != 400 {
				t.Errorf("%s: %d", step, got)
			}
		}
	})
}

func TestWholeAnswersAndErrands(t *testing.T) {
	t.Parallel()
	srv := newServer(t, modelstub.New())
	resp := post(t, srv, map[string]any{"stream": false}, say("user", `stub: {"steps":[{"text":"hi","tool_use":{"name":"Read","input":{"a":1}}}]}`))
	var m struct {
		Content []struct{ Type, Text, Name string }
		Stop    string `json:"stop_reason"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&m); err != nil || len(m.Content) != 2 || m.Content[0].Text != "hi" || m.Content[1].Name != "Read" || m.Stop != "tool_use" {
		t.Errorf("%+v, %v", m, err)
	}
	a := read(t, post(t, srv, map[string]any{"system": "Generate a title for this session."}, say("user", `stub: {"steps":[{"status":500}]}`)).Body)
	if !a.whole || a.text == "" {
		t.Errorf("a title: %+v", a)
	}
	counted, err := srv.Client().Post(srv.URL+"/v1/messages/count_tokens", "application/json", strings.NewReader(`{"messages":[{"role":"user","content":"x"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = counted.Body.Close() }()
	if data, _ := io.ReadAll(counted.Body); !strings.Contains(string(data), "input_tokens") {
		t.Errorf("count_tokens: %s", data)
	}
}

func TestDemo(t *testing.T) {
	t.Parallel()
	srv := newServer(t, modelstub.NewServer(modelstub.Config{Demo: true}))
	fields := map[string]any{"tools": []any{map[string]any{"name": "Bash"}, map[string]any{"name": "Write"}}}
	messages := []any{say("user", "<system-reminder>x</system-reminder>"), say("user", "hello"), say("system", " - Primary working directory: /w/x\n - more")}
	a := read(t, post(t, srv, fields, messages...).Body)
	if a.tool != "Bash" {
		t.Fatalf("%+v", a)
	}
	messages = append(messages, say("assistant", "x"), say("user", toolResult("Linux box")))
	a = read(t, post(t, srv, fields, messages...).Body)
	if a.tool != "Write" || !strings.Contains(a.input, "/w/x/hello-from-stromboli.md") || !strings.Contains(a.input, "Linux box") {
		t.Fatalf("%+v", a)
	}
	messages = append(messages, say("assistant", "x"), say("user", toolResult("File created")))
	a = read(t, post(t, srv, fields, messages...).Body)
	if a.tool != "" || !strings.Contains(a.text, "File created") || !strings.Contains(a.text, "hello") {
		t.Fatalf("%+v", a)
	}
	if a := read(t, post(t, srv, nil, say("user", "hi")).Body); a.tool != "" || !a.whole {
		t.Errorf("without tools: %+v", a)
	}
}

func TestRecordIsBounded(t *testing.T) {
	t.Parallel()
	stub := modelstub.NewServer(modelstub.Config{MaxRequests: 3, MaxBody: 100, MaxTotal: 250})
	srv := newServer(t, stub)
	for range 5 {
		_ = read(t, post(t, srv, nil, say("user", strings.Repeat("x", 500))).Body)
	}
	got := stub.Requests("")
	if len(got) != 2 || len(got[0].Body) != 100 || got[0].Size < 500 {
		t.Errorf("%d requests", len(got))
	}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+"/_stub/reset", nil)
	if resp, err := srv.Client().Do(req); err != nil || resp.StatusCode != 204 {
		t.Fatalf("%v, %v", resp, err)
	} else {
		_ = resp.Body.Close()
	}
	if got := stub.Requests(""); len(got) != 0 {
		t.Errorf("%d requests after a reset", len(got))
	}
}
