package api_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
)

func TestNetwork(t *testing.T) {
	s := start(t)
	var id string
	s.fake.OnSubmit = func(run stromboli.Run) { id = run.ID }
	s.ask("POST", "/run/async", `{"prompt":"p","network":{"mode":"model"}}`)
	path := "/jobs/" + stromboli.JobID(id) + "/network"
	if got := s.ask("PATCH", path, `{"allow":["a.example"],"deny":[]}`); got.status != 200 || strings.TrimSpace(got.raw) != `{"allow":["a.example"]}` {
		t.Errorf("%d %s", got.status, got.raw)
	}
	for _, c := range []struct {
		path, body, field string
		headers           []string
		status            int
	}{
		{path, `{"mode":"wide"}`, `"mode"`, nil, 400}, // named as in the body
		{path, `{"modes":"none"}`, `"modes"`, nil, 400},
		{path, `{"mode":1}`, `"mode"`, nil, 400},
		{path, ``, "empty", nil, 400},
		{path, `[]`, "object", nil, 400},
		{path, `{"mode":"none"}`, "origin", []string{"Origin: http://evil.example"}, 403},
		{path, `{"mode":"none"}`, "JSON", []string{"Content-Type: text/plain"}, 415},
		{"/jobs/job-nothing/network", `{"mode":"none"}`, "no job", nil, 404},
	} {
		if got := s.ask("PATCH", c.path, c.body, c.headers...); got.status != c.status || !strings.Contains(strings.ToLower(got.raw), strings.ToLower(c.field)) {
			t.Errorf("%s: %d %s", c.body, got.status, got.raw)
		}
	}
	s.fake.Finish(id, stromboli.Outcome{Status: stromboli.Completed})
	if got := s.ask("PATCH", path, `{"mode":"none"}`); got.status != 409 {
		t.Errorf("finished: %d %s", got.status, got.raw)
	}
}

func TestEgressRecords(t *testing.T) {
	s := start(t)
	var id string
	s.fake.OnSubmit = func(run stromboli.Run) { id = run.ID }
	s.ask("POST", "/run/async", `{"prompt":"p"}`)
	path := "/jobs/" + stromboli.JobID(id) + "/egress"
	for _, c := range []struct {
		query string
		seqs  int
		next  string
		more  bool
	}{
		{"", 3, "3", false},
		{"?limit=2", 2, "2", true},
		{"?after=1&limit=2", 2, "3", false},
		{"?after=7", 0, "7", false},
	} {
		got := s.ask("GET", path+c.query, "")
		records, ok := got.body["records"].([]any)
		if got.status != 200 || !ok || len(records) != c.seqs || fmt.Sprint(got.body["next_after"]) != c.next || got.body["has_more"] != c.more {
			t.Errorf("%s: %d %s", c.query, got.status, got.raw)
		}
	}
	for _, bad := range []string{"?limit=0", "?limit=1001", "?after=-1", "?page=1", "?after=1&after=2"} {
		if got := s.ask("GET", path+bad, ""); got.status != 400 {
			t.Errorf("%s: %d %s", bad, got.status, got.raw)
		}
	}
	if got := s.ask("GET", "/jobs/job-nothing/egress", ""); got.status != 404 {
		t.Errorf("unknown: %d", got.status)
	}
}

func TestAttestation(t *testing.T) {
	s := start(t)
	var id string
	s.fake.OnSubmit = func(run stromboli.Run) { id = run.ID }
	s.ask("POST", "/run/async", `{"prompt":"p"}`)
	path := "/jobs/" + stromboli.JobID(id) + "/attestation"
	if got := s.ask("GET", path, ""); got.status != 404 || !strings.Contains(got.raw, "not been started") {
		t.Errorf("before: %d %s", got.status, got.raw)
	}
	s.fake.Finish(id, stromboli.Outcome{Status: stromboli.Completed})
	if got := s.ask("GET", path, ""); got.status != 200 || got.body["sandbox"] != "sb" {
		t.Errorf("%d %s", got.status, got.raw)
	}
}
