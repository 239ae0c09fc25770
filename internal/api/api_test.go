package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/api"
)

func TestEveryCode(t *testing.T) {
	s := start(t)
	var refuse error
	s.fake.SubmitErr = func(stromboli.Submission) error { return refuse }
	for code, status := range map[stromboli.Code]int{
		stromboli.Invalid: 400, stromboli.NotSupported: 400, stromboli.NotEnforced: 400, stromboli.ImageMissing: 400,
		stromboli.Forbidden: 403, stromboli.NotFound: 404, stromboli.Conflict: 409, stromboli.SessionBusy: 409,
		stromboli.SessionExists: 409, stromboli.KeyReused: 409, stromboli.TooLarge: 413, stromboli.NotJSON: 415,
		stromboli.UnknownHost: 421, stromboli.QueueFull: 429, stromboli.Internal: 500, stromboli.NotConfigured: 503,
		stromboli.EngineDown: 503, stromboli.Draining: 503, stromboli.StorageFull: 503, stromboli.MethodForbidden: 405, "unheard_of": 500,
	} {
		refuse = fmt.Errorf("submit: %w", stromboli.Errorf(code, "told to callers").WithCause(errors.New("secret")))
		for _, path := range []string{"/run", "/run/async", "/run/stream"} {
			got := s.ask("POST", path, `{"prompt":"p"}`, "X-Request-ID: my-id_1.2")
			if got.status != status || got.body["status"] != "error" || got.body["request_id"] != "my-id_1.2" ||
				got.header.Get("X-Request-ID") != "my-id_1.2" || got.header.Get("Content-Type") != "application/json" {
				t.Errorf("%s %s: %d %s", code, path, got.status, got.raw)
			}
			wantCode, wantText := string(code), "told to callers"
			if status == 500 {
				wantCode, wantText = "internal", "log"
			}
			if got.body["code"] != wantCode || !strings.Contains(got.body["error"].(string), wantText) || strings.Contains(got.raw, "secret") {
				t.Errorf("%s: %s", code, got.raw)
			}
			if retry := got.header.Get("Retry-After"); (retry != "") != (status == 429 || status == 503) {
				t.Errorf("%s: Retry-After %q", code, retry)
			}
		}
	}
	refuse = errors.New("dial unix /secret: refused")
	if got := s.ask("POST", "/run", `{"prompt":"p"}`); got.status != 500 || strings.Contains(got.raw, "secret") {
		t.Errorf("%d %s", got.status, got.raw)
	}
	refuse = &stromboli.Error{Code: stromboli.QueueFull, Message: "full", RetryAfter: 1500 * time.Millisecond}
	if got := s.ask("POST", "/run", `{"prompt":"p"}`); got.header.Get("Retry-After") != "2" {
		t.Errorf("%v", got.header)
	}
}

func TestRunAnswers(t *testing.T) {
	s := start(t)
	var outcome stromboli.Outcome
	s.fake.OnSubmit = func(run stromboli.Run) { go s.fake.Finish(run.ID, outcome) }
	for _, tt := range []struct {
		status      stromboli.Status
		reason      stromboli.Reason
		http        int
		word, code  string
		retry, text bool
	}{
		{"completed", "", 200, "completed", "", false, false},
		{"crashed", "oom", 200, "crashed", "", false, false},
		{"failed", "timeout", 504, "error", "timeout", false, true},
		{"failed", "not_configured", 503, "error", "not_configured", true, true},
		{"failed", "engine", 503, "error", "engine", true, true},
		{"failed", "budget", 500, "error", "budget", false, true},
		{"failed", "", 500, "error", "internal", false, true},
		{"cancelled", "request", 409, "error", "request", false, true},
		{"cancelled", "disconnect", 409, "error", "disconnect", false, true},
	} {
		outcome = stromboli.Outcome{
			Status: tt.status, Reason: tt.reason, Output: "<out>", SessionID: "s", Usage: &stromboli.Usage{InputTokens: 3},
			StructuredOutput: json.RawMessage(`{"n":1}`),
		}
		got := s.ask("POST", "/run", `{"prompt":"p"}`)
		if got.status != tt.http || got.body["status"] != tt.word || got.body["output"] != "<out>" || got.body["session_id"] != "s" ||
			(got.body["code"] != nil) != (tt.code != "") || (tt.code != "" && got.body["code"] != tt.code) ||
			(got.header.Get("Retry-After") != "") != tt.retry || (got.body["error"] != nil) != tt.text {
			t.Errorf("%+v: %d %s", tt, got.status, got.raw)
		}
		if id, _ := got.body["id"].(string); !strings.HasPrefix(id, "run-") {
			t.Errorf("id %v", got.body["id"])
		}
		if w, ok := got.body["warnings"].([]any); !ok || len(w) != 0 || !strings.Contains(got.raw, `"<out>"`) {
			t.Errorf("%s", got.raw)
		}
	}
}

func TestIdempotency(t *testing.T) {
	s := start(t)
	s.fake.OnSubmit = func(run stromboli.Run) { go s.fake.Finish(run.ID, stromboli.Outcome{Status: "completed"}) }
	one := s.ask("POST", "/run", `{"prompt":"p","claude":{"model":"m"}}`, "Idempotency-Key: k")
	two := s.ask("POST", "/run", ` {"claude":{"model":"m","tools":[]},"podman":null,"prompt":"p"}`, "Idempotency-Key: k")
	if one.status != 200 || one.body["id"] != two.body["id"] {
		t.Errorf("%s %s", one.raw, two.raw)
	}
	if got := s.ask("POST", "/run", `{"prompt":"q"}`, "Idempotency-Key: k"); got.status != 409 || got.body["code"] != "idempotency_key_reuse" {
		t.Errorf("%s", got.raw)
	}
	a := s.ask("POST", "/run/async", `{"prompt":"p"}`, "Idempotency-Key: k")
	b := s.ask("POST", "/run/async", `{"prompt":"p"}`, "Idempotency-Key: k")
	if a.status != 202 || a.body["job_id"] != b.body["job_id"] || a.body["job_id"] == stromboli.JobID(one.body["id"].(string)) {
		t.Errorf("%s %s", a.raw, b.raw)
	}
	c := s.ask("POST", "/run/stream", `{"prompt":"p"}`, "Idempotency-Key: k")
	d := s.ask("POST", "/run/stream", `{"prompt":"p"}`, "Idempotency-Key: k")
	if c.raw != d.raw || c.status != 200 {
		t.Errorf("%s %s", c.raw, d.raw)
	}
	for _, key := range []string{strings.Repeat("k", 256), "a b", "é", ""} {
		if got := s.ask("POST", "/run", `{"prompt":"p"}`, "Idempotency-Key: "+key); got.status != 400 {
			t.Errorf("%q: %d", key, got.status)
		}
	}
}

func TestJobs(t *testing.T) {
	s := start(t)
	var ids []string
	for i := range 3 {
		got := s.ask("POST", "/run/async", fmt.Sprintf(`{"prompt":"p","metadata":{"n":"%d"}}`, i))
		ids = append(ids, got.body["job_id"].(string))
	}
	run0, _ := stromboli.ParseRunID(ids[0])
	s.fake.Finish(run0, stromboli.Outcome{Status: stromboli.Completed, Output: "done"})
	for path, want := range map[string]string{
		"/jobs": ids[2] + ids[1] + ids[0], "/jobs?limit=1": ids[2], "/jobs?limit=1&cursor=1": ids[1], "/jobs?status=completed": ids[0],
		"/jobs?status=running,pending": ids[2] + ids[1], "/jobs?kind=sync": "", "/jobs?kind=all": ids[2] + ids[1] + ids[0],
		"/jobs?metadata.n=1": ids[1], "/jobs?since=2100-01-01T00:00:00Z": "", "/jobs?session_id=none": "", "//jobs?limit=": ids[2] + ids[1] + ids[0],
	} {
		got := s.ask("GET", path, "")
		list, ok := got.body["jobs"].([]any)
		if got.status != 200 || !ok {
			t.Errorf("%s: %d %s", path, got.status, got.raw)
		}
		all := ""
		for _, j := range list {
			all += j.(map[string]any)["id"].(string)
		}
		if all != want {
			t.Errorf("%s: %s", path, all)
		}
	}
	if got := s.ask("GET", "/jobs?limit=1", ""); got.body["has_more"] != true || got.body["next_cursor"] != "1" {
		t.Errorf("%s", got.raw)
	}
	for _, bad := range []string{"limit=0", "limit=-1", "limit=1001", "limit=x", "limit=1e2", "status=done", "kind=turn", "since=yesterday", "cursor=x", "limit=%zz", "metadata.=x", "a=%ff"} {
		if got := s.ask("GET", "/jobs?"+bad, ""); got.status != 400 || got.body["status"] != "error" {
			t.Errorf("%s: %d %s", bad, got.status, got.raw)
		}
	}
	for _, id := range []string{ids[0], run0} {
		got := s.ask("GET", "/jobs/"+id, "")
		if got.status != 200 || got.body["id"] != ids[0] || got.body["output"] != "done" || got.body["status"] != "completed" {
			t.Errorf("%s", got.raw)
		}
	}
	unknown := stromboli.JobID(stromboli.NewRunID(time.Now()))
	for _, id := range []string{unknown, "job-x", "x", "%2e%2e%2fjobs", "job-" + strings.Repeat("z", 300)} {
		for _, p := range []string{"GET /jobs/%s", "DELETE /jobs/%s", "GET /jobs/%s/events", "GET /jobs/%s/stream", "GET /jobs/%s/events/1/data"} {
			method, path, _ := strings.Cut(fmt.Sprintf(p, id), " ")
			if got := s.ask(method, path, ""); got.status != 404 || got.body["code"] != "not_found" || got.body["status"] != "error" {
				t.Errorf("%s %s: %d %s", method, path, got.status, got.raw)
			}
		}
	}
	if got := s.ask("DELETE", "/jobs/"+ids[1], ""); got.status != 200 || got.body["job_id"] != ids[1] || got.body["cancelled"] != true {
		t.Errorf("%s", got.raw)
	}
	if got := s.ask("DELETE", "/jobs/"+ids[1], ""); got.status != 409 || got.body["code"] != "conflict" {
		t.Errorf("%s", got.raw)
	}
}

func TestJobEvents(t *testing.T) {
	s := start(t)
	talk(s)
	id := s.ask("POST", "/run/async", `{"prompt":"p"}`).body["job_id"].(string)
	var after json.Number = "0"
	var seqs []string
	for more := true; more; {
		got := s.ask("GET", "/jobs/"+id+"/events?limit=2&after="+after.String(), "")
		for _, e := range got.body["events"].([]any) {
			seqs = append(seqs, e.(map[string]any)["seq"].(json.Number).String())
		}
		after, more = got.body["next_after"].(json.Number), got.body["has_more"].(bool)
	}
	if got := strings.Join(seqs, " "); got != "1 2 3 4 5 6 7 8 9" {
		t.Errorf("%s", got)
	}
	if got := s.ask("GET", "/jobs/"+id+"/events?after=9", ""); got.raw != `{"events":[],"next_after":9,"has_more":false}` {
		t.Errorf("%s", got.raw)
	}
	if got := s.ask("GET", "/jobs/"+id+"/events?after=999", ""); got.raw != `{"events":[],"next_after":9,"has_more":false}` {
		t.Errorf("beyond the newest event: %s", got.raw)
	}
	blocks := parseStrict(t, s.ask("GET", "/jobs/"+id+"/stream?after=3", "").raw)
	if len(blocks) != 6 || blocks[0].id != "4" || blocks[0].event != "text" || blocks[5].event != "run.finished" || blocks[5].id != "9" {
		t.Errorf("%+v", blocks)
	}
	var ev stromboli.Event
	if err := json.Unmarshal([]byte(blocks[0].data), &ev); err != nil || ev.Seq != 4 || ev.Type != "text" {
		t.Errorf("%v %+v", err, ev)
	}
	if got := s.ask("GET", "/jobs/"+id+"/stream?after=3", "", "Last-Event-ID: 9"); got.status != 204 {
		t.Errorf("%d", got.status)
	}
	blocks = parseStrict(t, s.ask("GET", "/jobs/"+id+"/stream", "", "Last-Event-ID: 50").raw)
	if len(blocks) != 1 || blocks[0].event != "truncated" || blocks[0].id != "9" {
		t.Errorf("%+v", blocks)
	}
	for _, bad := range []string{"events?after=-1", "events?limit=0", "events?limit=1001", "events?after=x", "stream?after=-1", "stream?after=99999999999999999999"} {
		if got := s.ask("GET", "/jobs/"+id+"/"+bad, ""); got.status != 400 {
			t.Errorf("%s: %d", bad, got.status)
		}
	}
	if got := s.ask("GET", "/jobs/"+id+"/stream", "", "Last-Event-ID: run-x/1"); got.status != 400 {
		t.Errorf("%d", got.status)
	}
	for seq, want := range map[string]int{"5": 200, "0": 404, "10": 404, "x": 404, "05": 404} {
		if got := s.ask("GET", "/jobs/"+id+"/events/"+seq+"/data", ""); got.status != want {
			t.Errorf("data %s: %d", seq, got.status)
		}
	}
}

func TestSystem(t *testing.T) {
	s := start(t)
	for path, want := range map[string]string{
		"/health":        `{"name":"stromboli","status":"ok","version":"0.5.0-alpha","components":[{"name":"podman","status":"ok"}]}`,
		"/livez":         `{"status":"ok","reasons":[]}`,
		"/readyz":        `{"status":"ok","reasons":[]}`,
		"/version":       `{"version":"test","commit":"none","capabilities":[],"unsupported":[],"claude_cli":"2.0.0","engine":"fake"}`,
		"/claude/status": `{"configured":true,"message":"an API key is configured"}`,
	} {
		if got := s.ask("GET", path, ""); got.status != 200 || got.raw != want {
			t.Errorf("%s: %d %s", path, got.status, got.raw)
		}
		if got := s.ask("HEAD", path, ""); got.status != 200 || got.raw != "" {
			t.Errorf("HEAD %s: %d %q", path, got.status, got.raw)
		}
	}
	s.fake.Sick = []api.Component{{Name: "egress", Error: "gone"}}
	s.fake.Unready = []string{"the engine is down"}
	if got := s.ask("GET", "/health", ""); got.status != 200 || got.body["status"] != "degraded" {
		t.Errorf("%s", got.raw)
	}
	if got := s.ask("GET", "/readyz", ""); got.status != 503 || got.raw != `{"status":"unavailable","reasons":["the engine is down"]}` {
		t.Errorf("%d %s", got.status, got.raw)
	}
}

func TestRouter(t *testing.T) {
	s := start(t)
	for _, tt := range []struct {
		method, path   string
		status         int
		allow, status2 string
	}{
		{"GET", "/", 404, "", ""},
		{"GET", "/nope", 404, "", ""},
		{"POST", "/jobs/", 404, "", "error"},
		{"GET", "/run/other", 404, "", "error"},
		{"GET", "/run", 405, "POST", "error"},
		{"PUT", "/jobs", 405, "GET, HEAD", "error"},
		{"PATCH", "/jobs/x", 405, "DELETE, GET, HEAD", "error"},
		{"POST", "/health", 405, "GET, HEAD", ""},
		{"HEAD", "/run/stream?prompt=x", 405, "GET, POST", ""},
		{"GET", "//health", 200, "", "ok"},
		{"GET", "///livez", 200, "", "ok"},
		{"GET", "/x/../livez", 200, "", "ok"},
		{"GET", "/./livez", 200, "", "ok"},
		{"GET", "/livez/", 404, "", ""},
		{"GET", "/%2flivez", 404, "", ""},
	} {
		got := s.ask(tt.method, tt.path, "")
		word, _ := got.body["status"].(string)
		if got.status != tt.status || got.header.Get("Allow") != tt.allow || word != tt.status2 {
			t.Errorf("%s %s: %d %q %s", tt.method, tt.path, got.status, got.header.Get("Allow"), got.raw)
		}
		if tt.method != "HEAD" && got.header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %v", tt.path, got.header)
		}
	}
	for _, id := range []string{"", "a b", strings.Repeat("x", 129), "a/b", "é"} {
		got := s.ask("GET", "/nope", "", "X-Request-ID: "+id)
		if out := got.header.Get("X-Request-ID"); out == id || out == "" || got.body["request_id"] != out {
			t.Errorf("%q: %q %s", id, out, got.raw)
		}
	}
}

func TestPanic(t *testing.T) {
	s := start(t)
	s.fake.SubmitErr = func(stromboli.Submission) error { panic("boom") }
	got := s.ask("POST", "/run", `{"prompt":"p"}`)
	if got.status != 500 || got.body["code"] != "internal" || strings.Contains(got.raw, "boom") {
		t.Errorf("%d %s", got.status, got.raw)
	}
	if got := s.ask("GET", "/livez", ""); got.status != 200 {
		t.Errorf("%d", got.status)
	}
}

// TestConcurrent has many watchers of one run under the race detector.
func TestConcurrent(t *testing.T) {
	s := start(t)
	run := submitted(t, s)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			blocks := parseStrict(t, s.ask("GET", "/run/stream?run="+run, "").raw)
			if len(blocks) != 102 {
				t.Errorf("%d blocks", len(blocks))
			}
		})
	}
	for i := range 100 {
		s.fake.Output(run, textLine(fmt.Sprint("line ", i)))
	}
	s.fake.Finish(run, stromboli.Outcome{Status: stromboli.Completed})
	wg.Wait()
}

func TestServeFails(t *testing.T) {
	s := start(t)
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	if err := s.api.Serve(context.Background(), ln); err == nil {
		t.Error("served on a closed listener")
	}
	if _, err := api.New(api.Config{}); err == nil {
		t.Error("an empty config was taken")
	}
	if _, err := api.New(api.Config{Runs: s.fake, Events: s.fake, System: s.fake, Log: nil}); err == nil {
		t.Error("a config without a log was taken")
	}
}
