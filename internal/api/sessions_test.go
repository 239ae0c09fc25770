package api_test

import (
	"io"
	"strings"
	"testing"
)

func TestSessions(t *testing.T) {
	s := start(t)
	const lines = "Content-Type: application/jsonl"
	if got := s.ask("GET", "/sessions", ""); got.status != 200 || strings.TrimSpace(got.raw) != `{"sessions":[],"has_more":false}` {
		t.Errorf("none: %d %s", got.status, got.raw)
	}
	for _, name := range []string{"a", "busy", "broken"} {
		got := s.ask("POST", "/sessions/import?session_id="+name, "one\ntwo\nthree\n", lines)
		if got.status != 201 || got.body["id"] != name || got.body["title"] != "Title of "+name {
			t.Fatalf("imported: %d %s", got.status, got.raw)
		}
	}
	const whole = `{"id":"a","title":"Title of a","created_at":"2023-11-14T22:13:20Z","updated_at":"2023-11-14T22:13:20Z","run_count":2,"cost_usd":0.5}`
	for _, c := range []struct {
		method, path, body, says string
		headers                  []string
		status                   int
	}{
		{"GET", "/sessions?limit=1", "", `{"sessions":[` + whole + `],"next_cursor":"a","has_more":true}`, nil, 200},
		{"GET", "/sessions?limit=1&cursor=a", "", `"id":"broken"`, nil, 200},
		{"GET", "/sessions?active=true", "", `"active_job":"job-1"}],"has_more":false}`, nil, 200},
		{"GET", "/sessions", "", `{"sessions":["a","broken","busy"],"has_more":false}`, []string{"User-Agent: stromboli-go/0.3.0-alpha"}, 200},
		{"GET", "/sessions", "", `{"sessions":[{"id":"a"`, []string{"User-Agent: stromboli-go/0.4.0"}, 200},
		{"GET", "/sessions?active=1", "", `"field":"active"`, nil, 400},
		{"GET", "/sessions?limit=1001", "", `"field":"limit"`, nil, 400},
		{"GET", "/sessions?since=today", "", `"field":"since"`, nil, 400},
		{"GET", "/sessions?cursor=bad", "", `"field":"cursor"`, nil, 400},
		{"GET", "/sessions/a", "", whole, nil, 200},
		{"GET", "/sessions/none", "", "not_found", nil, 404},
		{"GET", "/sessions/a%2Fb", "", "invalid_request", nil, 400},
		{"GET", "/sessions/a/messages?offset=1&limit=1", "", `{"messages":[{"uuid":"id-two","session_id":"","type":"user","content":{"role":"user","content":[{"type":"text","text":"two"}]}}],"total":3,"offset":1,"limit":1,"has_more":true}`, nil, 200},
		{"GET", "/sessions/a/messages", "", `"total":3,"offset":0,"limit":50,"has_more":false}`, nil, 200},
		{"GET", "/sessions/a/messages?offset=3", "", `{"messages":[],"total":3,"offset":3,"limit":50,"has_more":false}`, nil, 200},
		{"GET", "/sessions/a/messages?limit=201", "", `"field":"limit"`, nil, 400},
		{"GET", "/sessions/a/messages?offset=-1", "", `"field":"offset"`, nil, 400},
		{"GET", "/sessions/none/messages", "", "not_found", nil, 404},
		{"GET", "/sessions/a/messages/id-three", "", `{"message":{"uuid":"id-three"`, nil, 200},
		{"GET", "/sessions/a/messages/id-four", "", "not_found", nil, 404},
		{"GET", "/sessions/none/transcript", "", "not_found", nil, 404},
		{"POST", "/sessions/import?session_id=b", "one", "unsupported_media", nil, 415},
		{"POST", "/sessions/import?session_id=b&title=x", "one", `"field":"title"`, []string{lines}, 400},
		{"POST", "/sessions/import?session_id=b", "one", "forbidden", []string{lines, "Origin: http://evil.example"}, 403},
		{"POST", "/sessions/import?session_id=b", "", `"field":"transcript"`, nil, 400},
		{"DELETE", "/sessions/busy", "", "session_busy", nil, 409},
		{"DELETE", "/sessions/a%20b", "", "invalid_request", nil, 400},
		{"DELETE", "/sessions/a", "", `{"success":true,"session_id":"a"}`, nil, 200},
		{"DELETE", "/sessions/a", "", "not_found", nil, 404},
	} {
		got := s.ask(c.method, c.path, c.body, c.headers...)
		if got.status != c.status || !strings.Contains(got.raw, c.says) {
			t.Errorf("%s %s: %d %s, want %d and %s", c.method, c.path, got.status, got.raw, c.status, c.says)
		}
	}

	got := s.ask("GET", "/sessions/busy/transcript", "")
	if got.status != 200 || got.raw != "one\ntwo\nthree\n" || got.header.Get("Content-Type") != "application/jsonl" {
		t.Errorf("the transcript: %d %q %v", got.status, got.raw, got.header)
	}
	if resp, err := s.hc.Get("http://" + s.addr + "/sessions/broken/transcript"); err == nil {
		raw, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err == nil {
			t.Errorf("a transcript that can't be read to its end came as a whole: %q", raw)
		}
	}
	// A body may be larger than others.
	large := strings.Repeat("x", 11<<20)
	if got := s.ask("POST", "/sessions/import?session_id=large", large, lines); got.status != 201 {
		t.Errorf("11 MiB: %d %s", got.status, got.raw)
	}
}
