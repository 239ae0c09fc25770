package api_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/api"
)

func textLine(text string) string {
	b, _ := json.Marshal(map[string]string{"text": text})
	return string(b)
}

// talk makes every run say three things and complete.
func talk(s *server) {
	s.fake.OnSubmit = func(run stromboli.Run) {
		f := s.fake
		f.Append(run.ID, stromboli.EventPhase, stromboli.PhaseData{Phase: stromboli.PhaseGenerating})
		f.Output(run.ID, `{"type":"system"}`)
		f.Append(run.ID, stromboli.EventText, stromboli.TextData{Text: "del\nta"})
		f.Output(run.ID, textLine("one"))
		f.Output(run.ID, textLine("two\n\nthree\rfour"))
		f.Append(run.ID, stromboli.EventOutput, stromboli.OutputData{Stream: "stderr", Line: textLine("no")})
		f.Append(run.ID, stromboli.EventWarning, stromboli.WarningData{Code: "w", Message: "careful"})
		f.Finish(run.ID, stromboli.Outcome{
			Status: stromboli.Completed, Output: `{"type":"result"}`, StructuredOutput: json.RawMessage(`{"a": "<b>"}`),
			Warnings: []stromboli.Warning{{Code: "w", Message: "careful"}},
		})
	}
}

func shape(blocks []block) []string {
	var all []string
	for _, b := range blocks {
		if b.hasData {
			_, at, _ := strings.Cut(b.id, "/")
			all = append(all, at+"|"+b.event+"|"+b.data)
		}
	}
	return all
}

func TestStreamText(t *testing.T) {
	s := start(t)
	talk(s)
	got := s.ask("GET", "/run/stream?prompt=hi&workdir=/w&session_id=11111111-1111-4111-8111-111111111111", "")
	if got.status != 200 || got.header.Get("Content-Type") != "text/event-stream" ||
		got.header.Get("Cache-Control") != "no-cache" || got.header.Get("X-Accel-Buffering") != "no" {
		t.Fatalf("%d %v", got.status, got.header)
	}
	blocks := parseStrict(t, got.raw)
	id, at, _ := strings.Cut(blocks[0].id, "/")
	if blocks[0].hasData || at != "0" {
		t.Errorf("first block: %+v", blocks[0])
	}
	lines := shape(blocks)
	want := []string{"5||one", "6.1||two", "6.2||", "6.3||three", "6.4||four"}
	if diff := cmp.Diff(want, lines[:len(lines)-1]); diff != "" {
		t.Error(diff)
	}
	last := blocks[len(blocks)-1]
	if last.event != "done" || last.id != id+"/9" {
		t.Errorf("%+v", last)
	}
	wantDone := `{"id":"` + id + `","session_id":"11111111-1111-4111-8111-111111111111","status":"completed","structured_output":{"a":"<b>"},"warnings":[{"code":"w","message":"careful"}]}`
	if last.data != wantDone {
		t.Errorf("done: %s", last.data)
	}
	sub := s.fake.Submissions()[0]
	if !sub.ResumeIfExists || sub.Kind != stromboli.KindStream || sub.Spec.Workdir != "/w" || sub.Idempotency.Key != "" {
		t.Errorf("%+v", sub)
	}
}

func TestStreamFormats(t *testing.T) {
	s := start(t, func(c *api.Config) {
		c.Visible = func(line []byte) bool { return !strings.Contains(string(line), "system") }
	})
	talk(s)
	tests := map[string][]string{
		`"output_format":"stream-json"`: {"5||" + textLine("one"), "6||" + textLine("two\n\nthree\rfour")},
		`"output_format":"json"`:        {`9.1||{"type":"result"}`},
		`"include_partial_messages":true`: {
			`4|text|{"text":"del\nta"}`, "5||one", "6.1||two", "6.2||", "6.3||three", "6.4||four",
		},
	}
	for options, want := range tests {
		got := s.ask("POST", "/run/stream", `{"prompt":"p","claude":{`+options+`}}`)
		blocks := parseStrict(t, got.raw)
		lines := shape(blocks)
		if len(lines) == 0 || !cmp.Equal(want, lines[:len(lines)-1]) || !strings.HasPrefix(lines[len(lines)-1], "9|done|") {
			t.Errorf("%s: %s", options, cmp.Diff(want, lines))
		}
		if options == `"include_partial_messages":true` {
			again := s.ask("GET", "/run/stream?run="+strings.Split(blocks[0].id, "/")[0], "")
			if strings.Contains(again.raw, "event: text") {
				t.Error("text events on GET")
			}
		}
	}
}

// TestStreamResume resumes after every block of every format and gets exactly
// the rest, without a second run; after the last block there is nothing.
func TestStreamResume(t *testing.T) {
	s := start(t)
	talk(s)
	for _, format := range []string{"text", "json", "stream-json"} {
		before := len(s.fake.Submissions())
		whole := parseStrict(t, s.ask("POST", "/run/stream", `{"prompt":"p","claude":{"output_format":"`+format+`"}}`).raw)
		for i, b := range whole[:len(whole)-1] {
			got := s.ask("GET", "/run/stream?prompt=again", "", "Last-Event-ID: "+b.id)
			rest := parseStrict(t, got.raw)
			if rest[0].id != b.id || rest[0].hasData {
				t.Errorf("%s: first block %+v after %s", format, rest[0], b.id)
			}
			if diff := cmp.Diff(whole[i+1:], rest[1:], cmp.AllowUnexported(block{})); diff != "" {
				t.Errorf("%s after %s: %s", format, b.id, diff)
			}
		}
		last := whole[len(whole)-1].id
		for _, path := range []string{"/run/stream?prompt=again", "/run/stream?run=" + strings.Split(last, "/")[0]} {
			if got := s.ask("GET", path, "", "Last-Event-ID: "+last); got.status != 204 || got.raw != "" {
				t.Errorf("%s: %d %q", path, got.status, got.raw)
			}
		}
		if got := s.ask("POST", "/run/stream", "", "Last-Event-ID: "+last); got.status != 204 {
			t.Errorf("POST: %d", got.status)
		}
		if n := len(s.fake.Submissions()); n != before+1 {
			t.Errorf("%d runs", n-before)
		}
	}
}

func TestStreamForeignPositions(t *testing.T) {
	s := start(t)
	talk(s)
	whole := parseStrict(t, s.ask("GET", "/run/stream?prompt=p", "").raw)
	id, _, _ := strings.Cut(whole[0].id, "/")
	other := stromboli.NewRunID(time.Now())
	for _, tt := range []struct {
		last, query string
		status      int
	}{
		{"5", "", 400},
		{"garbage", "", 400},
		{id, "", 400},
		{id + "/-1", "", 400},
		{id + "/1.0", "", 400},
		{other + "/3", "", 404},
		{"", "run=" + other, 404},
		{"", "run=nonsense", 404},
		{other + "/1", "run=" + id, 400},
	} {
		got := s.ask("GET", "/run/stream?prompt=p&"+tt.query, "", "Last-Event-ID: "+tt.last)
		if got.status != tt.status || got.body["status"] != "error" {
			t.Errorf("%+v: %d %s", tt, got.status, got.raw)
		}
	}
	// Beyond the end: said in done, and then it is over.
	blocks := parseStrict(t, s.ask("GET", "/run/stream?prompt=p", "", "Last-Event-ID: "+id+"/999").raw)
	last := blocks[len(blocks)-1]
	if len(blocks) != 2 || last.event != "done" || !strings.Contains(last.data, `"truncated"`) || last.id != id+"/9" {
		t.Errorf("%+v", blocks)
	}
	if n := len(s.fake.Submissions()); n != 1 {
		t.Errorf("%d runs", n)
	}
}

func TestStreamEnds(t *testing.T) {
	s := start(t)
	outcome := stromboli.Outcome{}
	s.fake.OnSubmit = func(run stromboli.Run) { s.fake.Finish(run.ID, outcome) }
	for _, tt := range []struct {
		outcome     stromboli.Outcome
		event, data string
	}{
		{stromboli.Outcome{Status: stromboli.Failed, Reason: "timeout", Error: "took\r\ntoo long\n\nevent: done"}, "error", "took too long event: done"},
		{stromboli.Outcome{Status: stromboli.Failed, Reason: "auth"}, "error", "the run failed: auth"},
		{stromboli.Outcome{Status: stromboli.Cancelled, Reason: "request"}, "error", "the run was cancelled"},
		{stromboli.Outcome{Status: stromboli.Crashed, Reason: "oom", CrashInfo: &stromboli.CrashInfo{ExitCode: 137, Signal: "SIGKILL"}}, "done", `"crash_info":{"exit_code":137,"signal":"SIGKILL","task_completed":false}`},
		{stromboli.Outcome{Status: stromboli.Completed, StructuredOutput: json.RawMessage(`"` + strings.Repeat("x", 1<<20) + `"`)}, "done", `"cut":true,"href":"/jobs/job-`},
	} {
		outcome = tt.outcome
		blocks := parseStrict(t, s.ask("GET", "/run/stream?prompt=p", "").raw)
		last := blocks[len(blocks)-1]
		if last.event != tt.event || !strings.Contains(last.data, tt.data) {
			t.Errorf("%+v: %.300s", tt.outcome.Status, last.data)
		}
	}
}

func TestStreamLargeLines(t *testing.T) {
	s := start(t)
	fits, large := strings.Repeat("a", 1<<20-100), strings.Repeat("é", 1<<20)
	s.fake.OnSubmit = func(run stromboli.Run) {
		s.fake.Output(run.ID, textLine(fits))
		s.fake.Output(run.ID, textLine("before\n"+large))
		s.fake.Finish(run.ID, stromboli.Outcome{Status: stromboli.Completed, Output: large})
	}
	blocks := parseStrict(t, s.ask("GET", "/run/stream?prompt=p", "").raw)
	if len(blocks) != 5 || blocks[1].data != fits || blocks[2].data != "before" {
		t.Fatalf("%d blocks", len(blocks))
	}
	var cut stromboli.CutData
	if err := json.Unmarshal([]byte(blocks[3].data), &cut); err != nil || !cut.Cut || cut.Bytes != int64(len(large)) {
		t.Fatalf("%v %s", err, blocks[3].data)
	}
	data := s.ask("GET", cut.Href, "")
	if data.status != 200 || data.body["line"] != textLine("before\n"+large) {
		t.Errorf("%d", data.status)
	}
	id, _, _ := strings.Cut(blocks[0].id, "/")
	events := parseStrict(t, s.ask("GET", "/jobs/"+id+"/stream", "").raw)
	if len(events) != 4 || !strings.Contains(events[2].data, `"cut":true`) || !strings.Contains(events[3].data, `"cut":true`) {
		t.Errorf("%d events", len(events))
	}
}

// TestLiveStream: the first block comes before anything happens, then each
// line as it is said, with comments between.
func TestLiveStream(t *testing.T) {
	s := start(t, func(c *api.Config) { c.Heartbeat = 5 * time.Millisecond })
	resp := s.send(t.Context(), "GET", "/run/stream?prompt=p", "")
	defer resp.Body.Close()
	rd := newReader(resp.Body)
	first := rd.until(t, "\n\n")
	id := strings.TrimSuffix(strings.TrimPrefix(first, "id: "), "/0\n\n")
	rd.until(t, ": still here\n\n")
	s.fake.Output(id, textLine("now"))
	rd.until(t, "data: now\n\n")
	rd.until(t, ": still here\n\n")
	s.fake.Finish(id, stromboli.Outcome{Status: stromboli.Completed})
	if rest, err := io.ReadAll(rd); err != nil || !strings.Contains(string(rest), "event: done\n") {
		t.Errorf("%v %q", err, rest)
	}
	if !resp.Close {
		t.Error("the connection stays open")
	}
}

type reader struct{ io.Reader }

func newReader(r io.Reader) reader { return reader{r} }

// until reads byte by byte up to and including end.
func (r reader) until(t *testing.T, end string) string {
	t.Helper()
	var got strings.Builder
	one := make([]byte, 1)
	for !strings.HasSuffix(got.String(), end) {
		if _, err := r.Read(one); err != nil {
			t.Fatalf("%v after %q", err, got.String())
		}
		got.Write(one)
	}
	return got.String()
}

// TestEventSource follows a run through a restart of the server as a browser
// does: same URL, last id, until 204.
func TestEventSource(t *testing.T) {
	s := start(t)
	var lines []string
	lastID, status := "", 200
	connect := func() *http.Response {
		var headers []string
		if lastID != "" {
			headers = append(headers, "Last-Event-ID: "+lastID)
		}
		resp := s.send(t.Context(), "GET", "/run/stream?prompt=p", "", headers...)
		status = resp.StatusCode
		return resp
	}
	read := func(resp *http.Response) {
		raw, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range parseStrict(t, string(raw)) {
			if b.id != "" {
				lastID = b.id
			}
			if b.hasData && b.event == "" {
				lines = append(lines, b.data)
			}
		}
	}
	resp := connect()
	eventually(t, "submission", func() bool { return len(s.fake.Submissions()) == 1 })
	page, _ := s.ask("GET", "/jobs?kind=all", "").body["jobs"].([]any)
	run, _ := stromboli.ParseRunID(page[0].(map[string]any)["id"].(string))
	s.fake.Output(run, textLine("a\nb"))
	fake, addr := s.fake, s.addr
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	read(resp)
	fake.Output(run, textLine("c"))
	s = startOn(t, fake, addr)
	resp = connect()
	fake.Output(run, textLine("d"))
	fake.Finish(run, stromboli.Outcome{Status: stromboli.Completed})
	read(resp)
	connect().Body.Close()
	if status != 204 || !slices.Equal(lines, []string{"a", "b", "c", "d"}) || len(fake.Submissions()) != 1 {
		t.Errorf("%d %v", status, lines)
	}
}

func TestLongURL(t *testing.T) {
	s := start(t)
	talk(s)
	prompt := strings.Repeat("x", 3<<20)
	if got := s.ask("GET", "/run/stream?prompt="+url.QueryEscape(prompt), ""); got.status != 200 {
		t.Fatalf("%d %s", got.status, got.raw)
	}
	if len(s.fake.Submissions()[0].Spec.Prompt) != 3<<20 {
		t.Error("the prompt was cut")
	}
	for _, path := range []string{"/run/stream?prompt=" + strings.Repeat("x", 4<<20), "/jobs?cursor=" + strings.Repeat("x", 100<<10)} {
		if got := s.ask("GET", path, ""); got.status != 431 || got.body["code"] != "header_too_large" {
			t.Errorf("%d %s", got.status, got.raw)
		}
	}
}
