package api_test

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/api"
	"github.com/tomblancdev/stromboli/internal/audit"
)

// watched is an audit log that a test can break.
type watched struct {
	*audit.Log
	begin, end func() error
}

func (w *watched) Begin(ctx context.Context, r stromboli.AuditRecord) (uint64, error) {
	if w.begin != nil {
		if err := w.begin(); err != nil {
			return 0, err
		}
	}
	return w.Log.Begin(ctx, r)
}

func (w *watched) End(ctx context.Context, intent uint64, r stromboli.AuditRecord) error {
	if w.end != nil {
		if err := w.end(); err != nil {
			return errors.Join(err, w.Log.End(ctx, intent, r))
		}
	}
	return w.Log.End(ctx, intent, r)
}

func withAudit(t *testing.T) (*watched, func(*api.Config)) {
	t.Helper()
	l, err := audit.Open(t.Context(), audit.Config{Path: filepath.Join(t.TempDir(), "audit.jsonl")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &watched{Log: l}
	return w, func(c *api.Config) { c.Audit = w }
}

// records are all that are in the log after a position.
func (w *watched) records(t *testing.T, after uint64) []stromboli.AuditRecord {
	t.Helper()
	var all []stromboli.AuditRecord
	for _, tenant := range []string{stromboli.DefaultTenant, "team"} {
		page, err := w.Records(t.Context(), stromboli.AuditFilter{Tenant: tenant, Server: tenant == stromboli.DefaultTenant, After: after, Limit: 1000})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, page.Records...)
	}
	return all
}

// Every route that acts says what the audit log calls it, and one that doesn't act
// only looks. So whoever adds a route must decide.
func TestEveryActingRouteIsAudited(t *testing.T) {
	s := start(t)
	names := map[string]string{}
	for _, rt := range s.api.Routes() {
		method, _, _ := strings.Cut(rt.Pattern, " ")
		switch {
		case rt.Acts && rt.Audit == "":
			t.Errorf("%s acts, and nobody has said what the audit log calls it", rt.Pattern)
		case !rt.Acts && method != http.MethodGet:
			t.Errorf("%s is said not to act", rt.Pattern)
		}
		if other, taken := names[rt.Audit]; taken && rt.Audit != "" && rt.Audit != "run.submit" {
			t.Errorf("%s and %s have one name", rt.Pattern, other)
		}
		names[rt.Audit] = rt.Pattern
	}
}

// Every acting route leaves an intent before it acts and an outcome before its
// answer, whose and from where.
func TestEachActLeavesIntentAndOutcome(t *testing.T) {
	w, audited := withAudit(t)
	s := start(t, withAuth(t, true, jwtSecret), audited)
	access, refresh := s.login("laptop", bearer("root"))
	const session = "11111111-1111-4111-8111-111111111111"
	s.fake.OnSubmit = nil
	got := s.want(202, "", s.ask("POST", "/run/async", `{"prompt":"p-canary"}`, bearer(access)))
	job, _ := got.body["job_id"].(string)
	run := strings.Replace(job, "job-", "run-", 1)
	s.fake.Box.Add(stromboli.Delivery{ID: "msg-1", Tenant: stromboli.DefaultTenant, RunID: run, Status: stromboli.DeliveryDead})
	for _, tt := range []struct {
		method, path, body string
		header             string
		status             int
		action, object     string
	}{
		{"PATCH", "/jobs/" + job + "/network", `{"mode":"none"}`, "", 200, "run.network", run},
		{"DELETE", "/jobs/" + job, "", "", 200, "run.cancel", run},
		{"POST", "/secrets", `{"name":"token","value":"v-canary"}`, "", 201, "secret.create", "token"},
		{"DELETE", "/secrets/token", "", "", 200, "secret.delete", "token"},
		{"POST", "/sessions/import?session_id=" + session, "p-canary\n", "Content-Type: application/jsonl", 201, "session.import", session},
		{"GET", "/sessions/" + session + "/transcript", "", "", 200, "session.export", session},
		{"DELETE", "/sessions/" + session, "", "", 200, "session.delete", session},
		{"POST", "/webhooks/deliveries/msg-1/redeliver", "", "", 200, "webhook.redeliver", "msg-1"},
		{"POST", "/run/async", `{"prompt":""}`, "", 400, "run.submit", ""},
		{"DELETE", "/jobs/run-none", "", "", 404, "run.cancel", "run-none"},
		{"POST", "/auth/logout", "", "", 200, "auth.logout", ""},
	} {
		before := w.Head().Seq
		headers := []string{bearer(access), "X-Request-ID: req-1"}
		if tt.header != "" {
			headers = append(headers, tt.header)
		}
		s.want(tt.status, "", s.ask(tt.method, tt.path, tt.body, headers...))
		found := w.records(t, before)
		if len(found) != 2 {
			t.Errorf("%s %s: %+v", tt.method, tt.path, found)
			continue
		}
		intent, outcome := found[0], found[1]
		want := stromboli.AuditOK
		if tt.status >= 400 {
			want = stromboli.AuditRefused
		}
		if intent.Stage != stromboli.AuditIntent || intent.Action != tt.action || intent.Outcome != "" || outcome.Stage != stromboli.AuditOutcome || outcome.Intent != intent.Seq ||
			outcome.Action != tt.action || outcome.Object != tt.object || outcome.Outcome != want || (outcome.Code == "") != (want == stromboli.AuditOK) {
			t.Errorf("%s %s: %+v\n%+v", tt.method, tt.path, intent, outcome)
		}
		for _, r := range found {
			if r.Tenant != stromboli.DefaultTenant || r.Principal != "root" || r.Client != "laptop" || r.From != "127.0.0.1" || r.RequestID != "req-1" {
				t.Errorf("%s %s: whose is %+v", tt.method, tt.path, r)
			}
		}
	}
	// An open route has no intent: strangers could fill the disk.
	before := w.Head().Seq
	s.want(401, "", s.ask("POST", "/auth/refresh", `{"refresh_token":"`+refresh+`"}`))
	if found := w.records(t, before); len(found) != 1 || found[0].Action != "auth.refresh" || found[0].Outcome != stromboli.AuditRefused {
		t.Errorf("a void refresh token: %+v", found)
	}
	for _, r := range w.records(t, 0) {
		for _, text := range []string{r.Object, r.Client, r.Detail["route"]} {
			if strings.Contains(text, "canary") || strings.Contains(text, access) || strings.Contains(text, refresh) {
				t.Errorf("a value is in the log: %+v", r)
			}
		}
	}
}

func TestRefusedCredentialsAreAudited(t *testing.T) {
	w, audited := withAudit(t)
	s := start(t, withAuth(t, true, jwtSecret), audited)
	for _, tt := range []struct {
		method, path string
		header       string
		status       int
		action       string
	}{
		{"GET", "/jobs", bearer("nobody's"), 401, "auth.failed"},
		{"POST", "/run/async", bearer("nobody's"), 401, "auth.failed"},
		{"POST", "/run/async", "X-Nothing: 1", 401, "auth.failed"},
		{"GET", "/jobs", "X-Nothing: 1", 401, ""},
		{"POST", "/run/async", bearer("read"), 403, "auth.denied"},
		{"GET", "/audit", bearer("run"), 403, "auth.denied"},
		{"GET", "/jobs", bearer("read"), 200, ""},
		{"GET", "/nothing", bearer("nobody's"), 404, ""},
	} {
		before := w.Head().Seq
		s.want(tt.status, "", s.ask(tt.method, tt.path, "", tt.header))
		found := w.records(t, before)
		switch {
		case tt.action == "" && len(found) > 0:
			t.Errorf("%s %s is recorded: %+v", tt.method, tt.path, found)
		case tt.action == "":
		case len(found) != 1 || found[0].Action != tt.action || found[0].Outcome != stromboli.AuditRefused || found[0].Detail["route"] != tt.method+" "+tt.path:
			t.Errorf("%s %s: %+v", tt.method, tt.path, found)
		}
	}
}

// What can't be recorded isn't done; what is done and can't be recorded is not
// answered as if it were.
func TestNothingIsDoneUnrecorded(t *testing.T) {
	w, audited := withAudit(t)
	s := start(t, audited)
	s.fake.OnSubmit = nil
	full := stromboli.Errorf(stromboli.StorageFull, "full")
	w.begin = func() error { return full }
	s.want(503, "storage_full", s.ask("POST", "/run/async", `{"prompt":"p"}`))
	s.want(503, "storage_full", s.ask("POST", "/secrets", `{"name":"a","value":"v"}`))
	if n := len(s.fake.Submissions()); n != 0 {
		t.Errorf("%d runs were made all the same", n)
	}
	s.want(404, "", s.ask("GET", "/secrets/a", "")) // reading goes on
	w.begin = nil
	w.end = func() error { return stromboli.Errorf(stromboli.AuditUnavailable, "broken") }
	s.want(500, "internal", s.ask("POST", "/run/async", `{"prompt":"p"}`))
	s.want(500, "internal", s.ask("POST", "/secrets", `{"name":"a","value":"v"}`))
	s.want(404, "", s.ask("DELETE", "/secrets/none", ""))
	s.want(200, "", s.ask("GET", "/secrets/a", ""))
	w.end = nil
	s.want(200, "", s.ask("DELETE", "/secrets/a", ""))
}

// Who takes a stream up again does nothing.
func TestResumedStreamsAreNotAudited(t *testing.T) {
	w, audited := withAudit(t)
	s := start(t, audited)
	s.fake.OnSubmit = func(run stromboli.Run) { s.fake.Finish(run.ID, stromboli.Outcome{Status: stromboli.Completed}) }
	got := s.ask("POST", "/run/stream", `{"prompt":"p"}`)
	blocks := parseStrict(t, got.raw)
	id, _, _ := strings.Cut(blocks[0].id, "/")
	before := w.Head().Seq
	if found := w.records(t, 0); len(found) != 2 || found[1].Object != id || found[1].Outcome != stromboli.AuditOK {
		t.Errorf("%+v", found)
	}
	s.want(200, "", s.ask("POST", "/run/stream?run="+id, ""))
	if found := w.records(t, before); len(found) > 0 {
		t.Errorf("%+v", found)
	}
}

func TestAuditPages(t *testing.T) {
	_, audited := withAudit(t)
	s := start(t, withAuth(t, true, jwtSecret), audited)
	s.want(201, "", s.ask("POST", "/secrets", `{"name":"ours","value":"v"}`, bearer("root")))
	s.want(201, "", s.ask("POST", "/secrets", `{"name":"theirs","value":"v"}`, bearer("team")))
	s.want(401, "", s.ask("GET", "/jobs", "", bearer("nobody's")))
	for token, n := range map[string]int{"root": 3, "team": 2} {
		got := s.want(200, "", s.ask("GET", "/audit?limit=100", "", bearer(token)))
		list, _ := got.body["records"].([]any)
		n++ // of this request's own
		if len(list) != n || got.body["has_more"] != false || strings.Contains(got.raw, "theirs") != (token == "team") || strings.Contains(got.raw, "auth.failed") != (token == "root") {
			t.Errorf("%s: %s", token, got.raw)
		}
	}
	if got := s.want(200, "", s.ask("GET", "/audit?limit=1&action=secret.", "", bearer("root"))); got.body["has_more"] != true {
		t.Error(got.raw)
	}
	for _, q := range []string{"limit=0", "limit=1001", "after=-1", "since=now", "until=x", "who=me"} {
		s.want(400, "invalid_request", s.ask("GET", "/audit?"+q, "", bearer("root")))
	}
	s.want(503, "not_configured", start(t).ask("GET", "/audit", ""))
}
