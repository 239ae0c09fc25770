package claude

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tomblancdev/stromboli"
)

// recorded is a transcript in the shapes that the CLI writes (2.1.330), with some
// that it doesn't.
const recorded = `{"type":"queue-operation","operation":"enqueue","timestamp":"2026-11-26T16:19:20.271Z","sessionId":"9f41adb4-e30d-4719-936a-a798b69192ec","content":"Look around"}
{"type":"queue-operation","operation":"dequeue","timestamp":"2026-11-26T16:19:20.275Z","sessionId":"9f41adb4-e30d-4719-936a-a798b69192ec"}
{"parentUuid":null,"isSidechain":false,"promptId":"p","type":"user","message":{"role":"user","content":"Look around"},"uuid":"u1","timestamp":"2026-11-26T16:19:20.370Z","permissionMode":"plan","cwd":"/workspace","sessionId":"9f41adb4-e30d-4719-936a-a798b69192ec","version":"2.1.330","gitBranch":"HEAD"}
{"parentUuid":"u1","attachment":{"type":"date","x":"\"type\":\"user\""},"type":"attachment","uuid":"a0"}
{"type":"a-type-of-tomorrow","user":{"type":"user"}}
not JSON

{"parentUuid":"a0","message":{"id":"msg_1","type":"message","role":"assistant","model":"claude-x","content":[{"type":"thinking","thinking":"hm","signature":"s"}],"stop_reason":null,"usage":{"input_tokens":3,"output_tokens":5,"cache_creation_input_tokens":7,"cache_read_input_tokens":11,"service_tier":"standard"}},"type":"assistant","uuid":"a1"}
{"message":{"id":"msg_1","role":"assistant","content":[{"type":"tool_use","id":"t1","name":"Bash","input":{"command":"ls"}}],"stop_reason":"tool_use"},"type":"assistant","uuid":"a2"}
{"type":"user","message":{"role":"user","content":[{"tool_use_id":"t1","type":"tool_result","content":"a\nb","is_error":false}]},"uuid":"u2","toolUseResult":{"stdout":"a\nb","stderr":"","interrupted":false,"isImage":false,"noOutputExpected":false}}
{"type":"user","message":{"role":"user","content":[{"tool_use_id":"t2","type":"tool_result","content":[{"type":"text","text":"one"},{"type":"image","source":{}},{"type":"text","text":"two"}],"is_error":true}]},"uuid":"u3","toolUseResult":"Error: no"}
{"type":"user","message":{"role":"user","content":[{"tool_use_id":"t3","type":"tool_result","content":"ok"}]},"uuid":"u4","toolUseResult":{"type":"create","filePath":"/x"}}
{"type":"assistant","uuid":17,"timestamp":"soon","message":{"content":[1,"x",{"type":"text","text":"odd"},{"no":"type"}],"usage":"much"}}
{"type":"user","message":"no object","uuid":"u5"}
{"type":"assistant","uuid":"cut","message":{"content":[{"type":"te`

func TestTranscriptMessages(t *testing.T) {
	t.Parallel()
	const id = "9f41adb4-e30d-4719-936a-a798b69192ec"
	at := func(ms int) time.Time { return time.Date(2026, 11, 26, 16, 19, 20, ms*1e6, time.UTC) }
	blocks := func(b ...stromboli.MessageBlock) []stromboli.MessageBlock {
		return append([]stromboli.MessageBlock{}, b...)
	}
	content := func(role string, b ...stromboli.MessageBlock) stromboli.MessageContent {
		return stromboli.MessageContent{Role: role, Content: blocks(b...)}
	}
	ask := stromboli.MessageBlock{Type: "text", Text: "Look around"}
	want := []stromboli.Message{
		{UUID: placeID(1), SessionID: id, Type: "queue-operation", Timestamp: at(271), Content: content("user", ask)},
		{UUID: placeID(2), SessionID: id, Type: "queue-operation", Timestamp: at(275), Content: content("user")},
		{
			UUID: "u1", SessionID: id, Type: "user", Timestamp: at(370), CWD: "/workspace", GitBranch: "HEAD", PermissionMode: "plan", Version: "2.1.330",
			Content: content("user", ask),
		},
		{UUID: "a1", ParentUUID: "a0", Type: "assistant", Content: stromboli.MessageContent{
			Role: "assistant", MessageID: "msg_1", Model: "claude-x", Content: blocks(stromboli.MessageBlock{Type: "thinking", Text: "hm"}),
			Usage: &stromboli.MessageUsage{InputTokens: 3, OutputTokens: 5, CacheCreationInputTokens: 7, CacheReadInputTokens: 11},
		}},
		{UUID: "a2", Type: "assistant", Content: stromboli.MessageContent{
			Role: "assistant", MessageID: "msg_1", StopReason: "tool_use",
			Content: blocks(stromboli.MessageBlock{Type: "tool_use", ID: "t1", Name: "Bash", Input: []byte(`{"command":"ls"}`)}),
		}},
		{
			UUID: "u2", Type: "user", Content: content("user", stromboli.MessageBlock{Type: "tool_result", ToolUseID: "t1", Content: "a\nb"}),
			ToolResult: &stromboli.ToolResult{Stdout: "a\nb"},
		},
		{UUID: "u3", Type: "user", Content: content("user", stromboli.MessageBlock{Type: "tool_result", ToolUseID: "t2", Content: "one\n[image]\ntwo", IsError: true})},
		{UUID: "u4", Type: "user", Content: content("user", stromboli.MessageBlock{Type: "tool_result", ToolUseID: "t3", Content: "ok"})},
		{UUID: placeID(13), Type: "assistant", Content: content("", stromboli.MessageBlock{Type: "text", Text: "odd"})},
		{UUID: "u5", Type: "user", Content: content("")},
	}
	page, err := Messages(strings.NewReader(recorded), 0, 100)
	if err != nil || page.Total != len(want) {
		t.Fatalf("%d messages, %v", page.Total, err)
	}
	if diff := cmp.Diff(want, page.Messages); diff != "" {
		t.Error(diff)
	}
	for i, m := range want {
		got, err := Messages(strings.NewReader(recorded), i, 1)
		if err != nil || got.Total != len(want) || len(got.Messages) != 1 || got.Messages[0].UUID != m.UUID {
			t.Errorf("the page at %d: %+v, %v", i, got, err)
		}
		one, ok, err := FindMessage(strings.NewReader(recorded), m.UUID)
		if err != nil || !ok || cmp.Diff(m, one) != "" {
			t.Errorf("message %s: %+v, %v, %v", m.UUID, one, ok, err)
		}
	}
	if page, err := Messages(strings.NewReader(recorded), 10, 5); err != nil || page.Messages == nil || len(page.Messages) != 0 {
		t.Errorf("beyond the end: %+v, %v", page, err)
	}
	for _, id := range []string{"a0", "cut", "nobody", placeID(3)} {
		if m, ok, err := FindMessage(strings.NewReader(recorded), id); ok || err != nil {
			t.Errorf("%s is no message: %+v, %v", id, m, err)
		}
	}
}

// manyLines is a transcript of a size, made while it is read.
func manyLines(size int, line string) io.Reader {
	r, w := io.Pipe()
	go func() {
		for n := 0; n < size; n += len(line) {
			if _, err := io.WriteString(w, line); err != nil {
				return
			}
		}
		_ = w.Close()
	}()
	return r
}

// TestTranscriptPagesAreBounded: a large transcript is read line by line, a page has no
// more text than it may, and lines above the limit are passed over.
func TestTranscriptPagesAreBounded(t *testing.T) {
	t.Parallel()
	text := strings.Repeat("ä", 1<<19)
	line := fmt.Sprintf(`{"type":"user","uuid":"u","message":{"role":"user","content":%q},"toolUseResult":{"stdout":%q}}`+"\n", text, text)
	page, err := Messages(manyLines(14*len(line), line), 3, 10)
	if err != nil || page.Total != 14 || len(page.Messages) != 10 {
		t.Fatalf("%d of %d, %v", len(page.Messages), page.Total, err)
	}
	size := 0
	for _, m := range page.Messages {
		size += len(m.Content.Content[0].Text) + len(m.ToolResult.Stdout)
	}
	first, last := page.Messages[0], page.Messages[9]
	if size > pageBytes+10*2*cutBytes || first.Truncated || first.Content.Content[0].Text != text {
		t.Errorf("%d bytes on a page; the first is cut: %v", size, first.Truncated)
	}
	if !last.Truncated || last.Content.Content[0].Text != text[:cutBytes] || last.ToolResult.Stdout != text[:cutBytes] {
		t.Errorf("the last has %d bytes", len(last.Content.Content[0].Text))
	}
	long := `{"type":"user","message":{"content":"` + strings.Repeat("x", maxTranscriptLine) + `"}}` + "\n"
	if page, err := Messages(strings.NewReader(line+long+line), 0, 3); err != nil || page.Total != 2 {
		t.Errorf("with a line that is too long: %d, %v", page.Total, err)
	}
}

func TestCheckTranscript(t *testing.T) {
	t.Parallel()
	const id = "9F41ADB4-e30d-4719-936a-a798b69192ec"
	user := `{"type":"user","sessionId":"` + id + `","message":{"content":" What\n is  this? "}}`
	for _, c := range []struct {
		text, fault string
		want        TranscriptInfo
	}{
		{text: user + "\n", want: TranscriptInfo{SessionID: strings.ToLower(id), Title: "What is this?", Messages: 1}},
		{text: `{"type":"x"}` + "\n\n" + user + "\r\n" + `{"type":"assistant"}`, want: TranscriptInfo{SessionID: strings.ToLower(id), Title: "What is this?", Messages: 2}},
		{text: user + "\n" + `{"type":"assi`, want: TranscriptInfo{SessionID: strings.ToLower(id), Title: "What is this?", Messages: 1}},
		{text: `{"type":"assistant","sessionId":"../x"}`, want: TranscriptInfo{Messages: 1}},
		{text: "", fault: "no message"},
		{text: `{"type":"attachment"}`, fault: "no message"},
		{text: user + "\n" + `{"type":"assi` + "\n" + user, fault: "line 2 is not a JSON object"},
		{text: user + "\n[1]\n" + user, fault: "line 2 is not"},
		{text: user + "\n" + `{"a":b}` + "\n", fault: "line 2 is not"},
		{text: `{"type":"user","x":"` + strings.Repeat("x", maxTranscriptLine) + `"}`, fault: "line 1 is longer"},
	} {
		got, err := CheckTranscript(strings.NewReader(c.text))
		if c.fault != "" {
			if !errors.Is(err, stromboli.Invalid) || !strings.Contains(err.Error(), c.fault) {
				t.Errorf("%.60s: %v, want %q", c.text, err, c.fault)
			}
			continue
		}
		if err != nil || got != c.want {
			t.Errorf("%.60s: %+v, %v", c.text, got, err)
		}
	}
}

func TestSessionTitle(t *testing.T) {
	t.Parallel()
	for prompt, want := range map[string]string{
		"Fix\tthe\n\nbug": "Fix the bug", strings.Repeat("ö", 101): strings.Repeat("ö", 99) + "…", strings.Repeat("ö", 100): strings.Repeat("ö", 100),
	} {
		if got := SessionTitle(stromboli.RunSpec{Prompt: prompt}); got != want {
			t.Errorf("%q: %q", prompt, got)
		}
	}
	in := stromboli.RunSpec{Prompt: `{"type":"user","message":{"role":"user","content":[{"type":"text","text":"Hi"}]}}`}
	in.Claude.InputFormat = stromboli.InputStreamJSON
	if got := SessionTitle(in); got != "Hi" {
		t.Errorf("%q", got)
	}
}

func FuzzMessages(f *testing.F) {
	for line := range strings.Lines(recorded) {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		page, err := Messages(strings.NewReader(string(data)), 0, 10)
		if err != nil || len(page.Messages) > page.Total {
			t.Fatalf("%+v, %v", page, err)
		}
		for _, m := range page.Messages {
			if m.UUID == "" || m.Content.Content == nil {
				t.Fatalf("%+v", m)
			}
		}
		_, _ = CheckTranscript(strings.NewReader(string(data)))
	})
}
