package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli/client"
	"github.com/tomblancdev/stromboli/internal/modelstub"
)

// integer checks that a JSON number was written without fraction or exponent:
// generated clients read it into an integer.
var integer = regexp.MustCompile(`^(0|[1-9][0-9]*)$`)

// TestAPIAsOldClientsSpeakIt makes plain HTTP requests and reads the answers'
// bytes: names, types and statuses are what published clients depend on.
func TestAPIAsOldClientsSpeakIt(t *testing.T) {
	s := start(t, "STROMBOLI_RUNS_MAX=4")
	// What generated clients send for options that nobody set.
	padding := `,"workdir":"","webhook_url":"","metadata":{"team":"blue"},"signal":{},` +
		`"claude":{"dangerously_skip_permissions":true,"model":"","agents":{},"allowed_tools":[],"max_turns":null%s},` +
		`"podman":{"environment":{},"lifecycle":{},"secrets_env":{},"volumes":null,"cpus":""}}`
	request := func(more string, steps ...modelstub.Step) string {
		p, err := json.Marshal(promptOf(steps...))
		if err != nil {
			t.Fatal(err)
		}
		return `{"prompt":` + string(p) + fmt.Sprintf(padding, more)
	}

	var run, session string
	t.Run("sync", func(t *testing.T) {
		a := s.send(t, "POST", "//run", request("", text("hello")), "X-Request-ID: mine-1").want(t, 200)
		o := a.object(t)
		run, _ = o["id"].(string)
		session, _ = o["session_id"].(string)
		if o["status"] != "completed" || o["output"] != "hello" || !strings.HasPrefix(run, "run-") || len(session) != 36 {
			t.Errorf("the answer is %s", a.body)
		}
		for _, absent := range []string{"error", "code", "crash_info", "structured_output"} {
			if v, ok := o[absent]; ok {
				t.Errorf("%s: %v in a completed run", absent, v)
			}
		}
		if a.header.Get("X-Request-ID") != "mine-1" {
			t.Errorf("X-Request-ID is %q", a.header.Get("X-Request-ID"))
		}
		checkUsage(t, a.body)
		for _, name := range []string{"started_at", "finished_at"} {
			if at, err := time.Parse(time.RFC3339, fmt.Sprint(o[name])); err != nil || at.Location() != time.UTC {
				t.Errorf("%s is %v", name, o[name])
			}
		}
	})
	t.Run("sync, json", func(t *testing.T) {
		o := s.send(t, "POST", "/run", request(`,"output_format":"json"`, text("hello"))).want(t, 200).object(t)
		var envelope map[string]any
		if out, _ := o["output"].(string); json.Unmarshal([]byte(out), &envelope) != nil || envelope["type"] != "result" || envelope["result"] != "hello" {
			t.Errorf("the output is %v", o["output"])
		}
	})
	t.Run("sync, stream-json", func(t *testing.T) {
		o := s.send(t, "POST", "/run", request(`,"output_format":"stream-json"`, text("hello"))).want(t, 200).object(t)
		out, _ := o["output"].(string)
		lines := strings.Split(out, "\n")
		if !strings.Contains(lines[0], `"subtype":"init"`) || !strings.Contains(lines[len(lines)-1], `"type":"result"`) {
			t.Errorf("the output is %.300s … %.300s", lines[0], lines[len(lines)-1])
		}
	})
	t.Run("async and jobs", func(t *testing.T) { oldClientJobs(t, s, request("", text("in the background"))) })
	t.Run("both names", func(t *testing.T) {
		x := strings.TrimPrefix(run, "run-")
		for _, name := range []string{"run-" + x, "job-" + x} {
			if o := s.send(t, "GET", "/jobs/"+name, "").want(t, 200).object(t); o["id"] != "job-"+x || o["kind"] != "sync" {
				t.Errorf("as %s: %v", name, o)
			}
		}
	})
	t.Run("stream", func(t *testing.T) { oldClientStream(t, s, session) })
	t.Run("stream, full body", func(t *testing.T) {
		var wg sync.WaitGroup
		for format, last := range map[string]string{"text": "hello", "json": `"type":"result"`, "stream-json": `"type":"result"`} {
			wg.Go(func() {
				a := s.send(t, "POST", "/run/stream", request(`,"output_format":"`+format+`"`, text("hello")))
				all := sseBlocks(t, a.body)
				n := len(all)
				if n < 3 || all[n-1].event != "done" || !strings.Contains(all[n-2].data, last) || all[n-2].event != "" {
					t.Errorf("%s: %d, the stream ends with %+v", format, a.status, all[max(0, n-2):])
				}
				if format == "stream-json" && !strings.Contains(all[1].data, `"subtype":"init"`) {
					t.Errorf("stream-json begins with %.200s", all[1].data)
				}
			})
		}
		wg.Wait()
		a := s.send(t, "POST", "/run/stream", request(`,"include_partial_messages":true`, modelstub.Step{Text: "hello in parts", Chunk: 4}))
		var deltas string
		for _, b := range sseBlocks(t, a.body) {
			var d struct{ Text string }
			if b.event == "text" && json.Unmarshal([]byte(b.data), &d) == nil {
				deltas += d.Text
			}
		}
		if deltas != "hello in parts" {
			t.Errorf("the deltas join to %q", deltas)
		}
	})
	t.Run("system", func(t *testing.T) { oldClientSystem(t, s) })
	t.Run("unknown", func(t *testing.T) {
		missing := "/jobs/job-" + strings.Repeat("0", 26)
		for _, c := range []struct {
			method, path, code string
			status             int
		}{
			{"GET", "/nothing", "not_found", 404},
			{"GET", missing, "not_found", 404},
			{"GET", missing + "/events", "not_found", 404},
			{"GET", missing + "/stream", "not_found", 404},
			{"DELETE", missing, "not_found", 404},
			{"GET", "/jobs/nonsense", "not_found", 404},
			{"GET", "/run/stream?run=run-" + strings.Repeat("0", 26), "not_found", 404},
			{"DELETE", "/jobs/" + run, "conflict", 409},
			{"PUT", "/run", "method_not_allowed", 405},
			{"HEAD", "/run/stream?prompt=x", "", 405},
		} {
			a := s.send(t, c.method, c.path, "")
			if c.code == "" {
				a.want(t, c.status)
				continue
			}
			a.refused(t, c.status, c.code, "")
			if o := a.object(t); strings.HasPrefix(c.path, "/jobs") && o["status"] != "error" {
				t.Errorf("%s %s: status is %v", c.method, c.path, o["status"])
			}
		}
	})
}

func checkUsage(t *testing.T, body []byte) {
	t.Helper()
	var o struct {
		Usage map[string]json.RawMessage `json:"usage"`
	}
	if err := json.Unmarshal(body, &o); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "total_tokens"} {
		if !integer.Match(o.Usage[name]) {
			t.Errorf("usage.%s is %s", name, o.Usage[name])
		}
	}
	if string(o.Usage["estimated_cost_usd"]) == "" || string(o.Usage["model"]) == `""` {
		t.Errorf("usage is %s", o.Usage)
	}
}

func oldClientJobs(t *testing.T, s *server, request string) {
	a := s.send(t, "POST", "/run/async", request).want(t, 202)
	o := a.object(t)
	id, _ := o["job_id"].(string)
	session, _ := o["session_id"].(string)
	if len(o) != 2 || !strings.HasPrefix(id, "job-") || len(session) != 36 {
		t.Fatalf("the answer is %s", a.body)
	}
	// The stream ends by itself with the run.
	stream := s.send(t, "GET", "/jobs/"+id+"/stream", "").want(t, 200)
	all := sseBlocks(t, stream.body)
	last := all[len(all)-1]
	if all[0].id != "1" || all[0].event != "run.created" || last.event != "run.finished" || last.id != fmt.Sprint(len(all)) {
		t.Errorf("the stream begins with %+v and ends with %+v after %d", all[0], last, len(all))
	}
	s.send(t, "GET", "/jobs/"+id+"/stream", "", "Last-Event-ID: "+last.id).want(t, 204)
	if rest := sseBlocks(t, s.send(t, "GET", "/jobs/"+id+"/stream?after=1", "").body); len(rest) != len(all)-1 || rest[0].id != "2" {
		t.Errorf("after=1 gives %d of %d events", len(rest), len(all))
	}

	job := s.send(t, "GET", "/jobs/"+id, "").want(t, 200)
	o = job.object(t)
	for name, want := range map[string]any{"id": id, "status": "completed", "output": "in the background", "session_id": session} {
		if o[name] != want {
			t.Errorf("%s is %v, want %v: %s", name, o[name], want, job.body)
		}
	}
	for _, name := range []string{"created_at", "updated_at"} {
		if _, err := time.Parse(time.RFC3339, fmt.Sprint(o[name])); err != nil {
			t.Errorf("%s is %v", name, o[name])
		}
	}
	checkUsage(t, job.body)

	// Events by page, without gaps.
	var seqs []int64
	for after := int64(0); ; {
		var page struct {
			Events []struct {
				Seq   int64  `json:"seq"`
				RunID string `json:"run_id"`
			} `json:"events"`
			NextAfter int64 `json:"next_after"`
			HasMore   bool  `json:"has_more"`
		}
		a := s.send(t, "GET", fmt.Sprintf("/jobs/%s/events?after=%d&limit=3", id, after), "").want(t, 200)
		if err := json.Unmarshal(a.body, &page); err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Events {
			seqs = append(seqs, e.Seq)
			if e.RunID != "run-"+strings.TrimPrefix(id, "job-") {
				t.Errorf("run_id is %q", e.RunID)
			}
		}
		if after = page.NextAfter; !page.HasMore {
			break
		}
	}
	if len(seqs) != len(all) || !slices.IsSorted(seqs) {
		t.Errorf("pages give the events %v, the stream had %d", seqs, len(all))
	}

	// Lists: of asynchronous runs unless asked for others.
	for query, want := range map[string]bool{
		"": true, "?kind=all": true, "?kind=sync": false, "?status=failed": false, "?status=completed&limit=1": true,
		"?session_id=" + session: true, "?metadata.team=blue": true, "?metadata.team=red": false,
		"?since=" + url.QueryEscape(time.Now().Add(time.Hour).UTC().Format(time.RFC3339)): false,
	} {
		a := s.send(t, "GET", "/jobs"+query, "").want(t, 200)
		if list, ok := a.object(t)["jobs"].([]any); !ok || strings.Contains(string(a.body), id) != want {
			t.Errorf("/jobs%s lists the run: %v, want %v (%d jobs)", query, !want, want, len(list))
		}
	}
	page, err := s.c.Jobs(s.ctx(), client.Filter{Kind: "all", Limit: 1})
	if err != nil || len(page.Jobs) != 1 || !page.HasMore {
		t.Fatalf("%+v, %v", page, err)
	}
	next, err := s.c.Jobs(s.ctx(), client.Filter{Kind: "all", Limit: 1, Cursor: page.NextCursor})
	if err != nil || len(next.Jobs) != 1 || next.Jobs[0].ID == page.Jobs[0].ID {
		t.Errorf("%+v, %v", next, err)
	}
}

func oldClientStream(t *testing.T, s *server, session string) {
	before := len(s.stub.Requests(""))
	q := url.Values{"prompt": {promptOf(text("one\ntwo\n\nthree"))}, "session_id": {session}}
	a := s.send(t, "GET", "/run/stream?"+q.Encode(), "").want(t, 200)
	for name, want := range map[string]string{"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"} {
		if a.header.Get(name) != want {
			t.Errorf("%s is %q", name, a.header.Get(name))
		}
	}
	all := sseBlocks(t, a.body)
	if all[0].event != "" || all[0].data != "" || !strings.HasPrefix(all[0].id, "run-") {
		t.Errorf("the first block is %+v, not an id alone", all[0])
	}
	var lines []string
	for _, b := range all[1 : len(all)-1] {
		if b.event != "" {
			t.Errorf("an event %s", b.event)
		}
		lines = append(lines, b.data)
	}
	if got := strings.Join(lines, "\n"); got != "one\ntwo\n\nthree" {
		t.Errorf("the lines are %q", got)
	}
	var done map[string]any
	last := all[len(all)-1]
	if err := json.Unmarshal([]byte(last.data), &done); err != nil || last.event != "done" || done["status"] != "completed" || done["session_id"] != session {
		t.Errorf("the last event is %+v", last)
	}
	// A repeated request with a position resumes, and creates nothing.
	asked := len(s.stub.Requests(""))
	path := "/run/stream?" + q.Encode()
	s.send(t, "GET", path, "", "Last-Event-ID: "+last.id).want(t, http.StatusNoContent)
	rest := sseBlocks(t, s.send(t, "GET", path, "", "Last-Event-ID: "+all[2].id).want(t, 200).body)
	if len(rest) != len(all)-2 || rest[1].data != all[3].data {
		t.Errorf("resumed after %s: %+v", all[2].id, rest)
	}
	again := sseBlocks(t, s.send(t, "GET", "/run/stream?run="+fmt.Sprint(done["id"]), "").want(t, 200).body)
	if len(again) != len(all) {
		t.Errorf("watched again: %d blocks, not %d", len(again), len(all))
	}
	if n := len(s.stub.Requests("")); n != asked || asked <= before {
		t.Errorf("the model was asked %d times, then %d", asked-before, n-before)
	}
	// A run that fails ends with error.
	q = url.Values{"prompt": {promptOf(modelstub.Step{Status: 400})}}
	all = sseBlocks(t, s.send(t, "GET", "/run/stream?"+q.Encode(), "").want(t, 200).body)
	if last := all[len(all)-1]; last.event != "error" || !strings.Contains(last.data, "400") {
		t.Errorf("the last event is %+v", last)
	}
}

func oldClientSystem(t *testing.T, s *server) {
	waitFor(t, "a server that is ready", func() bool { return s.c.Ready(s.ctx()) == nil })
	o := s.send(t, "GET", "/health", "").want(t, 200).object(t)
	if o["name"] != "stromboli" || o["status"] != "ok" || o["version"] != "0.5.0-alpha" {
		t.Errorf("health is %v", o)
	}
	parts, _ := o["components"].([]any)
	for _, p := range parts {
		if c, _ := p.(map[string]any); c["status"] != "ok" || c["name"] == "" {
			t.Errorf("component %v", c)
		}
	}
	if len(parts) < 3 {
		t.Errorf("only %d components", len(parts))
	}
	for _, path := range []string{"/livez", "/readyz"} {
		o := s.send(t, "GET", path, "").want(t, 200).object(t)
		if reasons, ok := o["reasons"].([]any); o["status"] != "ok" || !ok || len(reasons) != 0 {
			t.Errorf("%s is %v", path, o)
		}
	}
	o = s.send(t, "GET", "/version", "").want(t, 200).object(t)
	if caps, ok := o["capabilities"].([]any); !ok || len(caps) == 0 || o["version"] == "" || o["commit"] == "" ||
		!strings.Contains(fmt.Sprint(o["engine"]), "podman") || o["claude_cli"] == "" {
		t.Errorf("version is %v", o)
	}
	o = s.send(t, "GET", "/claude/status", "").want(t, 200).object(t)
	if message, _ := o["message"].(string); o["configured"] != true || message == "" || strings.Contains(message, modelKey) {
		t.Errorf("claude/status is %v", o)
	}
}
