package claude

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tomblancdev/stromboli"
)

const (
	lineInit   = `{"type":"system","subtype":"init","session_id":"11111111-1111-4111-8111-111111111111","model":"m1"}`
	lineHi     = `{"type":"assistant","message":{"id":"a","model":"m1","content":[{"type":"text","text":"hi"}],"usage":{"input_tokens":5,"output_tokens":1}}}`
	lineDone   = `{"type":"result","subtype":"success","is_error":false,"result":"done","queued_turn_count":0}`
	lineTask   = `{"type":"system","subtype":"background_tasks_changed","tasks":[{"task_id":"t1","task_type":"local_bash","description":"server"}]}`
	lineTaskUp = `{"type":"system","subtype":"task_updated","task_id":"t1","patch":{"status":"completed"}}`
)

func feed(o stromboli.ClaudeOptions, lines ...string) *Turn {
	t := NewTurn(o)
	for _, l := range lines {
		t.Feed(Stdout, []byte(l))
	}
	return t
}

func failure(status string, text string) string {
	return fmt.Sprintf(`{"type":"result","subtype":"success","is_error":true,"terminal_reason":"api_error","api_error_status":%s,"result":%q}`, status, text)
}

func TestOutcome(t *testing.T) {
	type want struct {
		status stromboli.Status
		reason stromboli.Reason
		err    string // contained
	}
	clean := &Exit{}
	for _, c := range []struct {
		name  string
		lines []string
		exit  *Exit
		want  want
	}{
		{"answered", []string{lineInit, lineHi, lineDone}, clean, want{stromboli.Completed, "", ""}},
		{"answered, then killed", []string{lineInit, lineHi, lineDone}, &Exit{Code: 137, Signal: "SIGKILL"}, want{stromboli.Completed, "", ""}},
		{"answered, sandbox gone", []string{lineInit, lineHi, lineDone}, nil, want{stromboli.Completed, "", ""}},
		{"answered, cancelled later", []string{lineInit, lineHi, lineDone}, &Exit{Cause: CauseRequest}, want{stromboli.Cancelled, stromboli.ReasonRequest, "cancelled"}},
		{"answered, deadline afterwards", []string{lineInit, lineHi, lineDone}, &Exit{Code: 143, Cause: CauseDeadline}, want{stromboli.Completed, "", ""}},
		{"deadline in the answer", []string{lineInit, lineHi}, &Exit{Code: 143, Cause: CauseDeadline}, want{stromboli.Failed, stromboli.ReasonTimeout, "time limit"}},
		{"deadline before anything", nil, &Exit{Code: 143, Cause: CauseDeadline}, want{stromboli.Failed, stromboli.ReasonTimeout, "time limit"}},
		{"deadline with a background task", []string{lineInit, lineTask, lineHi, lineDone}, &Exit{Code: 137, Cause: CauseDeadline}, want{stromboli.Failed, stromboli.ReasonTimeout, "time limit"}},
		{"background task ended by the server", []string{lineInit, lineTask, lineHi, lineDone}, &Exit{Code: 143, Cause: "background"}, want{stromboli.Completed, "", ""}},
		{"follow-up ended by the server", []string{lineInit, lineTask, lineHi, lineDone, lineTaskUp, lineInit}, &Exit{Code: 143, Cause: "background"}, want{stromboli.Completed, "", ""}},
		{"follow-up crashed", []string{lineInit, lineTask, lineHi, lineDone, lineTaskUp, lineInit}, &Exit{Code: 1}, want{stromboli.Crashed, stromboli.ReasonExit, "code 1"}},
		{"orphaned", []string{lineInit, lineHi}, &Exit{Code: 143, Cause: CauseOrphaned}, want{stromboli.Failed, stromboli.ReasonOrphaned, "no server"}},
		{"disconnected", []string{lineInit}, &Exit{Code: 143, Cause: CauseDisconnect}, want{stromboli.Cancelled, stromboli.ReasonDisconnect, ""}},
		{"exit without result", []string{lineInit}, &Exit{Code: 3}, want{stromboli.Crashed, stromboli.ReasonExit, "code 3"}},
		{"exit 0 without result", nil, clean, want{stromboli.Crashed, stromboli.ReasonExit, "code 0"}},
		{"signal", []string{lineInit}, &Exit{Code: 139, Signal: "SIGSEGV"}, want{stromboli.Crashed, stromboli.ReasonSignal, "SIGSEGV"}},
		{"signal by exit code", []string{lineInit}, &Exit{Code: 129}, want{stromboli.Crashed, stromboli.ReasonSignal, "SIGHUP"}},
		{"memory", []string{lineInit}, &Exit{Code: 137, Signal: "SIGKILL", OOM: true}, want{stromboli.Crashed, stromboli.ReasonOOM, "podman.memory"}},
		{"memory of a tool, agent answered", []string{lineInit, lineHi, lineDone}, &Exit{OOM: true}, want{stromboli.Completed, "", ""}},
		{"lost", []string{lineInit, lineHi}, nil, want{stromboli.Crashed, stromboli.ReasonLost, "gone"}},
		{"401", []string{failure("401", "Invalid API key")}, &Exit{Code: 1}, want{stromboli.Failed, stromboli.ReasonAuth, "Invalid API key"}},
		{"403", []string{failure("403", "no")}, &Exit{Code: 1}, want{stromboli.Failed, stromboli.ReasonAuth, "no"}},
		{"429", []string{failure("429", "slow")}, &Exit{Code: 1}, want{stromboli.Failed, stromboli.ReasonOverloaded, "slow"}},
		{"529", []string{failure("529", "busy")}, &Exit{Code: 1}, want{stromboli.Failed, stromboli.ReasonOverloaded, "busy"}},
		{"500", []string{failure("500", "boom")}, &Exit{Code: 1}, want{stromboli.Failed, stromboli.ReasonModel, "boom"}},
		{"refused connection", []string{failure("null", "API Error: Unable to connect")}, &Exit{Code: 1}, want{stromboli.Failed, stromboli.ReasonModel, "connect"}},
		{"not logged in", []string{`{"type":"assistant","error":"authentication_failed","message":{"content":[]}}`, failure("null", "Not logged in")}, &Exit{Code: 1}, want{stromboli.Failed, stromboli.ReasonAuth, "Not logged in"}},
		{"disk", []string{failure("null", "ENOSPC: no space left on device, write")}, &Exit{Code: 1}, want{stromboli.Failed, stromboli.ReasonDisk, "ENOSPC"}},
		{"nothing said", []string{`{"type":"result"}`}, &Exit{Code: 1}, want{stromboli.Failed, stromboli.ReasonModel, "error"}},
		{"last result counts", []string{lineDone, failure("500", "boom")}, &Exit{Code: 1}, want{stromboli.Failed, stromboli.ReasonModel, "boom"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := feed(stromboli.ClaudeOptions{}, c.lines...).Outcome(c.exit)
			if out.Status != c.want.status || out.Reason != c.want.reason || !strings.Contains(out.Error, c.want.err) {
				t.Errorf("got %s %s %q, want %v", out.Status, out.Reason, out.Error, c.want)
			}
			if (out.Status == stromboli.Completed) != (out.Error == "" && out.Reason == "") {
				t.Errorf("error and reason don't fit the status: %+v", out)
			}
			if (out.Status == stromboli.Crashed) != (out.CrashInfo != nil) {
				t.Errorf("crash info doesn't fit the status: %+v", out)
			}
			if !stromboli.Running.CanBecome(out.Status) {
				t.Errorf("%s is not the end of a run", out.Status)
			}
		})
	}
}

func TestDiskFullOnStderr(t *testing.T) {
	turn := feed(stromboli.ClaudeOptions{}, lineInit)
	turn.Feed(Stderr, []byte("Error: ENOSPC: no space left on device"))
	if out := turn.Outcome(&Exit{Code: 1}); out.Status != stromboli.Failed || out.Reason != stromboli.ReasonDisk {
		t.Errorf("got %s %s", out.Status, out.Reason)
	}
}

func TestStructuredOutputOfAnEarlierResultCounts(t *testing.T) {
	structured := `{"type":"result","subtype":"success","is_error":false,"result":"{}","structured_output":{ "n": 1 }}`
	out := feed(stromboli.ClaudeOptions{JSONSchema: "{}"}, structured, lineInit, lineDone).Outcome(&Exit{})
	if out.Status != stromboli.Completed || string(out.StructuredOutput) != `{"n":1}` {
		t.Errorf("got %s %s", out.Status, out.StructuredOutput)
	}
}

func TestSessionIDFollowsTheCLI(t *testing.T) {
	turn := NewTurn(stromboli.ClaudeOptions{})
	if got := turn.SessionID(); got != "" {
		t.Errorf("before init: %s", got)
	}
	turn.Feed(Stdout, []byte(lineInit))
	turn.Feed(Stdout, []byte(`{"type":"result","session_id":"../../etc"}`))
	if got := turn.SessionID(); got != "11111111-1111-4111-8111-111111111111" {
		t.Errorf("got %s", got)
	}
}

func TestSuperseded(t *testing.T) {
	ev := func(s string) string { return `{"type":"stream_event","parent_tool_use_id":null,"event":` + s + `}` }
	start := ev(`{"type":"message_start"}`)
	delta := ev(`{"type":"content_block_delta","delta":{"type":"text_delta","text":"abc"}}`)
	retry := `{"type":"system","subtype":"api_retry"}`
	sub := `{"type":"stream_event","parent_tool_use_id":"t","event":{"type":"message_start"}}`
	for _, c := range []struct {
		name  string
		lines []string
		want  []string
	}{
		{"finished block", []string{start, delta, lineHi, start}, []string{"text"}},
		{"new message", []string{start, delta, delta, start}, []string{"text", "text", `superseded {"bytes":6}`}},
		{"retry, then new message", []string{start, delta, retry, start, delta}, []string{"text", `superseded {"bytes":3}`, "text"}},
		{"retry without deltas", []string{start, retry}, nil},
		{"a subagent's message", []string{start, delta, sub}, []string{"text"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, partial := range []bool{true, false} {
				turn := NewTurn(stromboli.ClaudeOptions{IncludePartialMessages: partial})
				var got []string
				for _, l := range c.lines {
					for _, e := range turn.Feed(Stdout, []byte(l)) {
						switch e.Type {
						case stromboli.EventText:
							got = append(got, "text")
						case stromboli.EventSuperseded:
							got = append(got, "superseded "+string(e.Data))
						default:
						}
					}
				}
				want := c.want
				if !partial {
					want = nil
				}
				if d := cmp.Diff(want, got); d != "" {
					t.Errorf("partial=%v (-want +got)\n%s", partial, d)
				}
			}
		})
	}
}

func TestUsage(t *testing.T) {
	since := `{"type":"result","subtype":"success","result":"x","modelUsage":{"m1":{"inputTokens":100,"outputTokens":50,"costUSD":9}},` +
		`"model_usage_since_last_result":{"m1":{"inputTokens":1,"outputTokens":2,"cacheReadInputTokens":3,"cacheCreationInputTokens":4,"costUSD":0.5},"m2":{"inputTokens":10,"costUSD":0.25}}}`
	cumulative := `{"type":"result","subtype":"success","result":"x","modelUsage":{"m1":{"inputTokens":103,"outputTokens":57,"costUSD":9.5}}}`
	hostile := `{"type":"result","subtype":"success","model_usage_since_last_result":{"m1":{"inputTokens":9223372036854775807,"outputTokens":-5,"costUSD":-1}}}`
	for _, c := range []struct {
		name  string
		lines []string
		want  *stromboli.Usage
	}{
		{"nothing", nil, nil},
		{"since the last result", []string{lineInit, since}, &stromboli.Usage{Model: "m1", InputTokens: 11, OutputTokens: 2, CacheReadInputTokens: 3, CacheCreationInputTokens: 4, TotalTokens: 20, EstimatedCostUSD: 0.75}},
		{"costliest model without init", []string{since}, &stromboli.Usage{Model: "m1", InputTokens: 11, OutputTokens: 2, CacheReadInputTokens: 3, CacheCreationInputTokens: 4, TotalTokens: 20, EstimatedCostUSD: 0.75}},
		{"differences", []string{since, cumulative}, &stromboli.Usage{Model: "m1", InputTokens: 14, OutputTokens: 9, CacheReadInputTokens: 3, CacheCreationInputTokens: 4, TotalTokens: 30, EstimatedCostUSD: 1.25}},
		{"no result", []string{lineInit, lineHi, lineHi}, &stromboli.Usage{Model: "m1", InputTokens: 5, OutputTokens: 1, TotalTokens: 6}},
		{"hostile", []string{hostile, hostile, hostile}, &stromboli.Usage{Model: "m1", InputTokens: 1<<60 - 1, TotalTokens: 1<<60 - 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := feed(stromboli.ClaudeOptions{}, c.lines...).Outcome(&Exit{}).Usage
			if c.name == "hostile" {
				got.Model = "m1" // no cost, no model
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

func TestTasksWithoutTheWholeList(t *testing.T) {
	turn := feed(stromboli.ClaudeOptions{}, lineInit,
		`{"type":"system","subtype":"task_started","task_id":"a","is_backgrounded":true,"task_type":"local_bash","description":"d"}`,
		`{"type":"system","subtype":"task_started","task_id":"b","is_backgrounded":false}`, lineDone)
	want := []stromboli.BackgroundTask{{ID: "a", Type: "local_bash", Description: "d"}}
	if d := cmp.Diff(want, turn.BackgroundTasks()); d != "" || turn.Over() || !turn.Answered() {
		t.Errorf("over %v, answered %v\n%s", turn.Over(), turn.Answered(), d)
	}
	turn.Feed(Stdout, []byte(`{"type":"system","subtype":"task_notification","task_id":"a","status":"stopped"}`))
	if !turn.Over() {
		t.Error("a stopped task has no follow-up, yet the run is not over")
	}
}

func TestEveryLineIsKept(t *testing.T) {
	for _, l := range []string{
		"", "plain text", "{", "[]", "null", `{"type":5}`, `{"type":"result","result":7,"errors":"x","usage":[]}`,
		`{"type":"assistant","message":"no"}`, `{"type":"user","message":{"content":"text"}}`, `{"type":"system","subtype":"background_tasks_changed","tasks":"x"}`,
		"\xff\xfe broken", "nul \x00 <&>", strings.Repeat("[", 20000), strings.Repeat(`{"a":`, 20000),
	} {
		for _, stream := range []string{Stdout, Stderr} {
			turn := NewTurn(stromboli.ClaudeOptions{OutputFormat: stromboli.OutputStreamJSON, IncludePartialMessages: true})
			events := turn.Feed(stream, []byte(l))
			var d stromboli.OutputData
			if err := json.Unmarshal(events[0].Data, &d); err != nil || events[0].Type != stromboli.EventOutput {
				t.Fatalf("%.40q: %v %v", l, events[0].Type, err)
			}
			if d.Stream != stream || d.Line != strings.ToValidUTF8(l, "\uFFFD") {
				t.Errorf("%.40q became %.40q", l, d.Line)
			}
			turn.Outcome(&Exit{})
		}
	}
}

func TestCutResultEndsTheTurn(t *testing.T) {
	text := strings.Repeat(`"quoted" \ é 😀 `, 2000)
	whole := `{"stop_reason":"end_turn","model_usage_since_last_result":{"m":{"inputTokens":3}},"terminal_reason":"completed","is_error":false,"subtype":"success","result":` +
		strings.TrimSpace(string(encode(text))) + `,"type":"result"}`
	for cut := len(whole) - 40; cut > len(whole)-100; cut-- {
		turn := NewTurn(stromboli.ClaudeOptions{})
		turn.Feed(Stdout, []byte(whole[:cut]))
		out := turn.Outcome(&Exit{})
		if out.Status != stromboli.Completed || len(out.Output) < len(text)-100 || !strings.HasPrefix(text, strings.TrimRight(out.Output, "\uFFFD")) {
			t.Fatalf("cut at %d: %s, %d bytes of output", cut, out.Status, len(out.Output))
		}
		if len(out.Warnings) != 1 || out.Warnings[0].Code != WarnOutputCut {
			t.Fatalf("warnings: %v", out.Warnings)
		}
	}
}

func TestLongOutputIsBounded(t *testing.T) {
	long := `{"type":"assistant","message":{"content":[{"type":"text","text":"` + strings.Repeat("x", 3<<20) + `"}]}}`
	turn := NewTurn(stromboli.ClaudeOptions{OutputFormat: stromboli.OutputStreamJSON})
	for range 5 {
		turn.Feed(Stdout, []byte(long))
	}
	turn.Feed(Stdout, []byte(lineDone))
	out := turn.Outcome(&Exit{})
	if len(out.Output) > maxOutput+1024 {
		t.Errorf("%d bytes", len(out.Output))
	}
	if !strings.HasSuffix(out.Output, lineDone) || !strings.Contains(out.Output, `"subtype":"output_cut","dropped_lines":4`) {
		t.Errorf("ends with %q", lastBytes(out.Output, 300))
	}
	if len(out.Warnings) != 1 || out.Warnings[0].Code != WarnOutputCut {
		t.Errorf("warnings: %v", out.Warnings)
	}

	text := feed(stromboli.ClaudeOptions{}, long, long, long, long)
	if n := len(text.Outcome(nil).CrashInfo.PartialOutput); n > maxPartial {
		t.Errorf("partial output of %d bytes", n)
	}
	if text.answer.size > maxOutput {
		t.Errorf("%d bytes of text kept", text.answer.size)
	}
}

func TestAssistantText(t *testing.T) {
	for _, c := range []struct {
		line string
		want []string
	}{
		{`{"type":"assistant","message":{"content":[{"type":"text","text":"a\nb\r\n\nc\n"},{"type":"tool_use"},{"type":"text","text":"d"}]}}`, []string{"a", "b", "", "c", "d"}},
		{`{"type":"assistant","parent_tool_use_id":"x","message":{"content":[{"type":"text","text":"sub"}]}}`, nil},
		{`{"type":"user","message":{"content":[{"type":"text","text":"a"}]}}`, nil},
		{`{"type":"result","result":"a"}`, nil},
		{`not json`, nil},
	} {
		if d := cmp.Diff(c.want, AssistantText([]byte(c.line))); d != "" {
			t.Errorf("%s (-want +got)\n%s", c.line, d)
		}
	}
}

func FuzzLine(f *testing.F) {
	for _, l := range []string{lineInit, lineHi, lineDone, lineTask, lineTaskUp, `{"type":"result","subtype":"success","terminal_reason":"x","is_error":false,"result":"abc`, "\xff{"} {
		f.Add([]byte(l), true)
	}
	f.Fuzz(func(t *testing.T, line []byte, partial bool) {
		for _, format := range []stromboli.OutputFormat{stromboli.OutputText, stromboli.OutputJSON, stromboli.OutputStreamJSON} {
			o := stromboli.ClaudeOptions{OutputFormat: format, IncludePartialMessages: partial}
			turn, again := NewTurn(o), NewTurn(o)
			var events []stromboli.Event
			for _, stream := range []string{Stdout, Stderr, Stdout} {
				events = append(events, turn.Feed(stream, line)...)
			}
			for _, e := range events {
				if !json.Valid(e.Data) {
					t.Fatalf("%s: invalid data %q", e.Type, e.Data)
				}
				again.Replay(e)
			}
			out := turn.Outcome(&Exit{Code: 1})
			if !out.Status.Terminal() {
				t.Fatalf("status %q", out.Status)
			}
			if d := cmp.Diff(out, again.Outcome(&Exit{Code: 1})); d != "" {
				t.Fatalf("replay differs\n%s", d)
			}
			if _, err := json.Marshal(out); err != nil {
				t.Fatal(err)
			}
		}
		AssistantText(line)
		Visible(line)
	})
}

// TestDeadlineInBackground: the CLI stops its tasks when it is told to end, and
// then nothing is left to wait for; the time limit has ended the run all the same.
func TestDeadlineInBackground(t *testing.T) {
	for cause, want := range map[string]stromboli.Reason{CauseDeadline: stromboli.ReasonTimeout, CauseOrphaned: stromboli.ReasonOrphaned, "background": ""} {
		turn := NewTurn(stromboli.ClaudeOptions{})
		for _, line := range []string{
			`{"type":"system","subtype":"init","session_id":"s"}`,
			`{"type":"system","subtype":"background_tasks_changed","tasks":[{"task_id":"b","task_type":"local_bash"}]}`,
			`{"type":"result","subtype":"success","is_error":false,"result":"answered"}`,
			`{"type":"system","subtype":"task_notification","task_id":"b","status":"stopped"}`,
			`{"type":"system","subtype":"background_tasks_changed","tasks":[]}`,
		} {
			turn.Feed(Stdout, []byte(line))
		}
		if out := turn.Outcome(&Exit{Code: 143, Cause: cause}); out.Reason != want || out.Output != "answered" {
			t.Errorf("ended by %s: %s %s, output %q", cause, out.Status, out.Reason, out.Output)
		}
	}
}
