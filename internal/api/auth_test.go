package api_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/api"
	"github.com/tomblancdev/stromboli/internal/api/apitest"
	"github.com/tomblancdev/stromboli/internal/auth"
)

// grants keeps logins in memory; what it must do is tested with the store.
type grants struct {
	mu   sync.Mutex
	rows map[string]stromboli.Grant
}

func (g *grants) CreateGrant(_ context.Context, in stromboli.Grant) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rows[in.ID] = in
	return nil
}

func (g *grants) GetGrant(_ context.Context, id string) (stromboli.Grant, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	row, ok := g.rows[id]
	if !ok {
		return row, stromboli.Errorf(stromboli.NotFound, "there is none")
	}
	return row, nil
}

func (g *grants) RotateGrant(_ context.Context, id, from, to string, _ time.Time) (bool, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	row := g.rows[id]
	ok := row.Refresh == from && !row.Revoked
	if row.Refresh = to; !ok {
		row.Revoked = true
	}
	g.rows[id] = row
	return ok, nil
}

func (g *grants) RevokeGrant(_ context.Context, id string, _ time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	row := g.rows[id]
	row.Revoked = true
	g.rows[id] = row
	return nil
}

// withAuth gives an API callers: root of the default tenant, team of another,
// and one for each scope alone, whose token is the scope's name.
func withAuth(t *testing.T, enabled bool, secret string) func(*api.Config) {
	t.Helper()
	cfg := auth.Config{
		Enabled: enabled, Secret: []byte(secret), Expiry: time.Hour, RefreshExpiry: 2 * time.Hour,
		Grants: &grants{rows: map[string]stromboli.Grant{}},
	}
	add := func(name, tenant string, scopes ...string) {
		cfg.Tokens = append(cfg.Tokens, auth.Token{Name: name, Tenant: tenant, Scopes: scopes, Hash: sha256.Sum256([]byte(name))})
	}
	add("root", "")
	add("team", "team")
	for _, scope := range []string{"run", "read", "admin"} {
		add(scope, "", scope)
	}
	a, err := auth.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return func(c *api.Config) {
		c.Auth = a
		if enabled {
			c.Access = api.AccessAuth
		}
	}
}

const jwtSecret = "0123456789abcdef0123456789abcdef"

func (s *server) want(status int, code string, got answer) answer {
	s.t.Helper()
	if got.status != status || (code != "" && got.body["code"] != code) {
		s.t.Errorf("%d %.300s, want %d %s", got.status, got.raw, status, code)
	}
	return got
}

func (s *server) login(client string, headers ...string) (access, refresh string) {
	s.t.Helper()
	got := s.want(200, "", s.ask("POST", "/auth/token", `{"client_id":"`+client+`"}`, headers...))
	access, _ = got.body["access_token"].(string)
	refresh, _ = got.body["refresh_token"].(string)
	if access == "" || refresh == "" || got.body["token_type"] != "bearer" || got.body["expires_in"] != json.Number("3600") || len(got.body) != 4 {
		s.t.Errorf("%s", got.raw)
	}
	return access, refresh
}

func bearer(token string) string { return "Authorization: Bearer " + token }

// The contract's /auth/*, as an old client speaks it.
func TestAuthEndpoints(t *testing.T) {
	s := start(t, withAuth(t, true, jwtSecret))
	for _, path := range []string{"/jobs", "/version", "/claude/status", "/secrets", "/auth/validate"} {
		got := s.want(401, "unauthenticated", s.ask("GET", path, ""))
		if got.header.Get("WWW-Authenticate") != "Bearer" {
			t.Errorf("%s: %v", path, got.header)
		}
		s.want(401, "unauthenticated", s.ask("GET", path, "", bearer("nobody's")))
	}
	s.want(401, "unauthenticated", s.ask("POST", "/auth/token", `{"client_id":"x"}`))
	s.want(401, "unauthenticated", s.ask("POST", "/auth/logout", ""))
	access, refresh := s.login("laptop", bearer("root"))
	s.want(403, "forbidden", s.ask("POST", "/auth/token", `{"client_id":"x"}`, bearer(access)))
	got := s.want(400, "invalid_request", s.ask("POST", "/auth/token", `{}`, bearer("root")))
	if !strings.Contains(got.raw, "client_id") {
		t.Errorf("%s", got.raw)
	}
	s.want(400, "invalid_request", s.ask("POST", "/auth/token", `{"client_id":"x","more":1}`, bearer("root")))
	s.want(400, "invalid_request", s.ask("POST", "/auth/refresh", `{}`))

	got = s.want(200, "", s.ask("GET", "/auth/validate", "", bearer(access)))
	ends, _ := got.body["expires_at"].(json.Number)
	at, err := ends.Int64()
	if got.body["valid"] != true || got.body["subject"] != "laptop" || err != nil || time.Until(time.Unix(at, 0)) < 55*time.Minute || len(got.body) != 3 {
		t.Errorf("%s", got.raw)
	}
	got = s.want(200, "", s.ask("GET", "/auth/validate", "", "X-API-Token: root"))
	if got.raw != `{"valid":true,"subject":"root"}` {
		t.Errorf("%s", got.raw)
	}
	s.want(401, "unauthenticated", s.ask("GET", "/auth/validate", "", bearer(refresh)))

	// A client attaches its old token to every call.
	got = s.want(200, "", s.ask("POST", "/auth/refresh", `{"refresh_token":"`+refresh+`"}`, bearer("expired")))
	second, _ := got.body["access_token"].(string)
	s.want(200, "", s.ask("GET", "/jobs", "", bearer(second)))
	s.want(200, "", s.ask("GET", "/health", "", bearer("expired")))
	s.want(200, "", s.ask("GET", "/livez", ""))
	s.want(401, "unauthenticated", s.ask("POST", "/auth/refresh", `{"refresh_token":"`+second+`"}`))
	s.want(401, "unauthenticated", s.ask("POST", "/auth/refresh", `{"refresh_token":"`+refresh+`"}`)) // twice
	s.want(401, "unauthenticated", s.ask("GET", "/jobs", "", bearer(second)))

	access, refresh = s.login("laptop", "X-API-Token: root")
	got = s.want(200, "", s.ask("POST", "/auth/logout", "", bearer(access)))
	if got.body["success"] != true || got.body["message"] == "" || len(got.body) != 2 {
		t.Errorf("%s", got.raw)
	}
	s.want(401, "unauthenticated", s.ask("POST", "/auth/logout", "", bearer(access)))
	s.want(401, "unauthenticated", s.ask("POST", "/auth/refresh", `{"refresh_token":"`+refresh+`"}`))
	s.want(400, "invalid_request", s.ask("POST", "/auth/logout", "", bearer("root")))
	s.want(403, "forbidden", s.ask("POST", "/auth/token", `{"client_id":"x"}`, bearer("root"), "Origin: https://evil.example"))
}

func TestCredentialHeaders(t *testing.T) {
	s := start(t, withAuth(t, true, ""))
	for _, c := range []struct {
		status  int
		headers []string
	}{
		{200, []string{"Authorization: Bearer root"}},
		{200, []string{"Authorization: bearer   root "}},
		{200, []string{"X-API-Token: root"}},
		{200, []string{"X-API-Token: root", "Authorization: Bearer root"}},
		{200, []string{"X-API-Token: root", "Authorization: Basic dTpw"}}, // a proxy's
		{401, []string{"X-API-Token: root", "Authorization: Bearer team"}},
		{401, []string{"Authorization: Basic cm9vdDpyb290"}},
		{401, []string{"Authorization: root"}},
		{401, []string{"Authorization: Bearer"}},
		{401, []string{"X-API-Token: "}},
		{401, []string{"Cookie: token=root"}},
	} {
		if got := s.ask("GET", "/jobs", "", c.headers...); got.status != c.status {
			t.Errorf("%q: %d %s", c.headers, got.status, got.raw)
		}
	}
	s.want(401, "unauthenticated", s.ask("GET", "/jobs?token=root&access_token=root", ""))
	// No JWT secret: 503, whoever asks.
	for _, headers := range [][]string{nil, {"X-API-Token: root"}} {
		for _, call := range [][3]string{{"POST", "/auth/token", `{"client_id":"x"}`}, {"POST", "/auth/refresh", `{"refresh_token":"x"}`}, {"GET", "/auth/validate"}, {"POST", "/auth/logout"}} {
			s.want(503, "not_configured", s.ask(call[0], call[1], call[2], headers...))
		}
	}
}

// With auth off /auth/* work without credentials, and elsewhere credentials
// mean nothing.
func TestAuthOff(t *testing.T) {
	s := start(t, withAuth(t, false, jwtSecret))
	access, refresh := s.login("x", bearer("nobody's"))
	s.want(200, "", s.ask("GET", "/jobs", "", bearer("nobody's")))
	got := s.want(200, "", s.ask("GET", "/auth/validate", "", bearer(access)))
	if got.body["valid"] != true || got.body["subject"] != "x" {
		t.Errorf("%s", got.raw)
	}
	for _, headers := range [][]string{nil, {bearer("nobody's")}, {bearer(refresh)}, {bearer("a"), "X-API-Token: b"}} {
		if got := s.want(200, "", s.ask("GET", "/auth/validate", "", headers...)); got.raw != `{"valid":false}` {
			t.Errorf("%s", got.raw)
		}
		if got := s.want(200, "", s.ask("POST", "/auth/logout", "", headers...)); got.body["success"] != true {
			t.Errorf("%s", got.raw)
		}
	}
	s.want(200, "", s.ask("POST", "/auth/refresh", `{"refresh_token":"`+refresh+`"}`))
	s.want(200, "", s.ask("POST", "/auth/logout", "", bearer(access)))
	if got := s.want(200, "", s.ask("GET", "/auth/validate", "", bearer(access))); got.raw != `{"valid":false}` {
		t.Errorf("%s", got.raw)
	}
	s.want(421, "unknown_host", s.ask("GET", "/auth/validate", "", "Host: evil.example"))
	plain := start(t)
	plain.want(503, "not_configured", plain.ask("POST", "/auth/token", `{"client_id":"x"}`))
}

// request is one that reaches a route's handler.
func request(pattern string) (method, path, body string) {
	method, path, _ = strings.Cut(pattern, " ")
	path = strings.NewReplacer("{id}", "job-0", "{seq}", "1", "{name}", "none", "{file}", "none.js", "{message_id}", "none").Replace(path)
	if method == "POST" || method == "PATCH" {
		body = `{}`
	}
	return method, path, body
}

// Every route needs what it says, and each says something.
func TestScopes(t *testing.T) {
	s := start(t, withAuth(t, true, jwtSecret))
	for _, rt := range s.api.Routes() {
		said := 0
		for _, yes := range []bool{rt.Open, rt.AnyScope, rt.Scope != 0} {
			if yes {
				said++
			}
		}
		if said != 1 {
			t.Errorf("%s: scope, anyScope or open: one of them", rt.Pattern)
		}
		method, path, body := request(rt.Pattern)
		if got := s.ask(method, path, body); (got.status == 401) == rt.Open && path != "/auth/refresh" {
			t.Errorf("%s without credentials: %d", rt.Pattern, got.status)
		}
		for _, name := range []string{"run", "read", "admin"} {
			scope, err := stromboli.ParseScope(name)
			if err != nil {
				t.Fatal(err)
			}
			got := s.ask(method, path, body, bearer(name))
			if may := rt.Scope == 0 || scope.Has(rt.Scope); may == (got.body["code"] == "insufficient_scope") || (got.status == 401 && !rt.Open) {
				t.Errorf("%s with the scope %s: %d %.200s", rt.Pattern, name, got.status, got.raw)
			}
		}
	}
	for pattern, want := range map[string]stromboli.Scopes{
		"POST /run": stromboli.ScopeRun, "GET /run/stream": stromboli.ScopeRun, "DELETE /jobs/{id}": stromboli.ScopeRun,
		"GET /jobs": stromboli.ScopeRead, "POST /secrets": stromboli.ScopeAdmin,
	} {
		for _, rt := range s.api.Routes() {
			if rt.Pattern == pattern && rt.Scope != want {
				t.Errorf("%s: %s", pattern, rt.Scope)
			}
		}
	}
}

// A server that strangers reach and that knows nobody answers nothing but
// health, and says why.
func TestClosed(t *testing.T) {
	s := start(t, withAuth(t, false, jwtSecret), func(c *api.Config) { c.Access = api.AccessClosed })
	for _, rt := range s.api.Routes() {
		method, path, body := request(rt.Pattern)
		got := s.ask(method, path, body, bearer("root"))
		if path == "/health" || path == "/livez" || path == "/readyz" {
			s.want(200, "", got)
			continue
		}
		s.want(403, "auth_required", got)
		if !strings.Contains(got.raw, "STROMBOLI_AUTH_ENABLED") || !strings.Contains(got.raw, "STROMBOLI_AUTH_ALLOW_PUBLIC") {
			t.Errorf("%s", got.raw)
		}
	}
	if len(s.fake.Submissions()) > 0 {
		t.Error("a run was started")
	}
	s.want(421, "unknown_host", s.ask("GET", "/health", "", "Host: evil.example"))
	s.want(403, "auth_required", s.ask("POST", "/run", `{"prompt":"p"}`, "Host: stromboli:8080")) // as another container calls it
	s.want(403, "auth_required", s.ask("GET", "/nothing", ""))
}

// No route shows a tenant another's objects, and none is forgotten here.
func TestTenants(t *testing.T) {
	s := start(t, withAuth(t, true, jwtSecret))
	s.fake.OnSubmit = nil
	const session = "11111111-1111-4111-8111-111111111111"
	got := s.want(202, "", s.ask("POST", "/run/async", `{"prompt":"p","claude":{"session_id":"`+session+`"}}`, bearer("root")))
	job, _ := got.body["job_id"].(string)
	s.want(201, "", s.ask("POST", "/secrets", `{"name":"theirs","value":"v"}`, bearer("root")))
	s.want(201, "", s.ask("POST", "/sessions/import?session_id="+session, "hello\n", bearer("root"), "Content-Type: application/jsonl"))
	objects := apitest.Objects{Run: strings.Replace(job, "job-", "run-", 1), Session: session, Message: "id-hello", Secret: "theirs", Delivery: "msg-theirs"}
	s.fake.Box.Add(stromboli.Delivery{ID: objects.Delivery, Tenant: stromboli.DefaultTenant, RunID: objects.Run, Status: stromboli.DeliveryDead})
	table := apitest.ForeignRequests(objects)
	left := map[string]bool{}
	for _, rt := range s.api.Routes() {
		left[rt.Pattern] = true
	}
	for _, f := range table {
		delete(left, f.Pattern)
	}
	for pattern := range left {
		t.Errorf("%s has no line in apitest.ForeignRequests", pattern)
	}
	access, _ := s.login("x", bearer("team"))
	for _, f := range table {
		if f.Path == "" {
			if strings.Contains(f.Pattern, "{") && f.Pattern != "GET /docs/{file}" {
				t.Errorf("%s names an object and isn't asked for one", f.Pattern)
			}
			continue
		}
		if f.Behind {
			continue
		}
		for _, who := range []string{"team", access} {
			got := s.ask(f.Method(), f.Path, f.Body, bearer(who))
			if got.status != f.Status || (got.status == 200 && (strings.Contains(got.raw, job) || strings.Contains(got.raw, session) || strings.Contains(got.raw, "theirs"))) {
				t.Errorf("%s %s: %d %.300s", f.Method(), f.Path, got.status, got.raw)
			}
		}
		// The control: it is there for its own tenant.
		if got := s.ask("GET", "/jobs/"+job, "", bearer("root")); got.status != 200 || got.body["status"] != "running" {
			t.Fatalf("after %s %s: %s", f.Method(), f.Path, got.raw)
		}
		s.want(200, "", s.ask("GET", "/secrets/theirs", "", bearer("root")))
		s.want(200, "", s.ask("GET", "/sessions/"+session+"/messages/id-hello", "", bearer("root")))
	}
}
