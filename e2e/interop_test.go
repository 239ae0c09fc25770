package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli/internal/modelstub"
)

// shape checks that an object has fields of these types, written "name:type";
// a type with a question mark may be absent, and lists are never null.
func shape(t *testing.T, what string, o map[string]any, fields string) {
	t.Helper()
	for f := range strings.FieldsSeq(fields) {
		name, typ, _ := strings.Cut(f, ":")
		typ, optional := strings.CutSuffix(typ, "?")
		v, there := o[name]
		if !there && optional {
			continue
		}
		text, isText := v.(string)
		number, isNumber := v.(json.Number)
		var ok bool
		switch typ {
		case "string":
			ok = isText
		case "time":
			at, err := time.Parse(time.RFC3339, text)
			ok = isText && err == nil && at.Location() == time.UTC
		case "integer":
			ok = isNumber && integer.MatchString(number.String())
		case "number":
			ok = isNumber
		case "boolean":
			_, ok = v.(bool)
		case "object":
			_, ok = v.(map[string]any)
		case "list":
			_, ok = v.([]any)
		default:
			t.Fatalf("no such type: %s", typ)
		}
		if !ok {
			t.Errorf("%s: %s is %v (%T), want %s", what, name, v, v, typ)
		}
	}
}

// exact reads an answer's object with its numbers as they are written.
func (a apiAnswer) exact(t *testing.T, status int) map[string]any {
	t.Helper()
	a.want(t, status).object(t)
	var o map[string]any
	d := json.NewDecoder(strings.NewReader(string(a.body)))
	d.UseNumber()
	if err := d.Decode(&o); err != nil {
		t.Fatal(err)
	}
	return o
}

// objects gives the objects of a list.
func objects(t *testing.T, o map[string]any, list string) []map[string]any {
	t.Helper()
	all, ok := o[list].([]any)
	if !ok {
		t.Fatalf("%s is %v", list, o[list])
	}
	var out []map[string]any
	for _, e := range all {
		entry, ok := e.(map[string]any)
		if !ok {
			t.Fatalf("an entry of %s is %v", list, e)
		}
		out = append(out, entry)
	}
	return out
}

// TestInterop makes the requests of published clients to every endpoint but
// those that run something, which TestAPIAsOldClientsSpeakIt makes: plain HTTP,
// their headers, empty bodies and spellings, and every field's type.
func TestInterop(t *testing.T) { //nolint:tparallel // the parts share a server, one after the other
	t.Parallel()
	const token = "interop-" + canary + "-token-of-the-old-client"
	s := prepare(t, "STROMBOLI_AUTH_ENABLED=true", "STROMBOLI_API_TOKENS="+token, "STROMBOLI_JWT_SECRET=interop-"+canary+"-secret-of-32-bytes-at-least",
		"STROMBOLI_RATE_LIMIT_ENABLED=true", "STROMBOLI_RATE_LIMIT_RPS=1000", "STROMBOLI_RATE_LIMIT_BURST=1000")
	s.up()
	// What generated clients send with every call.
	headers := []string{"Accept: application/json, application/x-ndjson;q=0.9, */*;q=0.8", "Accept-Encoding: gzip", "User-Agent: Go-http-client/1.1", "X-API-Token: " + token}
	call := func(method, path, body string, more ...string) apiAnswer {
		t.Helper()
		return s.send(t, method, path, body, append(headers, more...)...)
	}

	t.Run("auth", func(t *testing.T) { interopAuth(t, s, token) })
	t.Run("secrets", func(t *testing.T) {
		made := call("POST", "/secrets", `{"name":"interop_1","value":"a value"}`, "Content-Type: application/json; charset=utf-8").exact(t, 201)
		shape(t, "made", made, "success:boolean name:string")
		for _, o := range objects(t, call("GET", "/secrets", "").exact(t, 200), "secrets") {
			shape(t, "listed", o, "id:string name:string created_at:time")
		}
		one := call("GET", "/secrets/interop_1", "").exact(t, 200)
		shape(t, "one", one, "id:string name:string created_at:time")
		call("POST", "/secrets", `{"name":"interop_1","value":"other"}`).refused(t, 409, "conflict", "")
		call("POST", "/secrets", `{"name":"no/name","value":"x"}`).refused(t, 400, "invalid_request", "name")
		call("POST", "/secrets", `{"name":"empty","value":null}`).refused(t, 400, "invalid_request", "value")
		gone := call("DELETE", "/secrets/interop_1", "").exact(t, 200)
		shape(t, "gone", gone, "success:boolean name:string")
		call("GET", "/secrets/interop_1", "").refused(t, 404, "not_found", "")
		call("DELETE", "/secrets/interop_1", "").refused(t, 404, "not_found", "")
	})
	t.Run("sessions", func(t *testing.T) { interopSessions(t, s, call) })
	t.Run("images", func(t *testing.T) { interopImages(t, call) })
	t.Run("system", func(t *testing.T) {
		health := s.send(t, "GET", "/health", "", "Authorization: Bearer stale").exact(t, 200) // open
		shape(t, "health", health, "name:string status:string version:string components:list")
		if health["name"] != "stromboli" || health["version"] != "0.5.0-alpha" {
			t.Errorf("%v", health)
		}
		for _, o := range objects(t, health, "components") {
			shape(t, "component", o, "name:string status:string error:string?")
		}
		shape(t, "status", call("GET", "/claude/status", "").exact(t, 200), "configured:boolean message:string")
		shape(t, "version", call("GET", "/version", "").exact(t, 200), "version:string commit:string capabilities:list claude_cli:string engine:string")
	})
	t.Run("refusals", func(t *testing.T) {
		a := call("GET", "/jobs", "")
		for _, name := range []string{"X-Ratelimit-Limit", "X-Ratelimit-Remaining", "X-Ratelimit-Reset"} {
			if !integer.MatchString(a.header.Get(name)) {
				t.Errorf("%s is %q", name, a.header.Get(name))
			}
		}
		call("GET", "/no/such/thing", "").refused(t, 404, "not_found", "")
		call("PUT", "/secrets", "{}").refused(t, 405, "method_not_allowed", "")
		call("POST", "/secrets", "name=x", "Content-Type: application/x-www-form-urlencoded").refused(t, 415, "unsupported_media", "")
		call("POST", "/secrets", `{"name":`).refused(t, 400, "invalid_request", "")
		call("POST", "/secrets", `{"name":"big","value":"`+strings.Repeat("x", 11<<20)+`"}`).refused(t, 413, "body_too_large", "")
		call("GET", "/jobs?limit=0", "").refused(t, 400, "invalid_request", "limit")
		call("GET", "//jobs//", "") // cleaned, whatever it is then
		call("GET", "/jobs", "", "X-Padding: "+strings.Repeat("x", 70<<10)).refused(t, 431, "header_too_large", "")
	})
}

func interopAuth(t *testing.T, s *server, token string) {
	for _, headers := range [][]string{nil, {"Authorization: Bearer nobody"}, {"X-API-Token: nobody"}, {"Authorization: Basic dTpw"}} {
		a := s.send(t, "GET", "/jobs", "", headers...)
		if a.refused(t, 401, "unauthenticated", ""); a.header.Get("WWW-Authenticate") != "Bearer" {
			t.Errorf("%v: WWW-Authenticate is %q", headers, a.header.Get("WWW-Authenticate"))
		}
	}
	const pair = "access_token:string refresh_token:string token_type:string expires_in:integer"
	first := s.send(t, "POST", "/auth/token", `{"client_id":"an-old-client"}`, "Authorization: Bearer "+token).exact(t, 200)
	shape(t, "token", first, pair)
	if first["token_type"] != "bearer" {
		t.Errorf("%v", first)
	}
	old := "Authorization: Bearer " + fmt.Sprint(first["access_token"])
	// The client attaches its old token to every call.
	second := s.send(t, "POST", "/auth/refresh", fmt.Sprintf(`{"refresh_token":%q}`, first["refresh_token"]), old).exact(t, 200)
	shape(t, "refreshed", second, pair)
	access := "Authorization: Bearer " + fmt.Sprint(second["access_token"])
	valid := s.send(t, "GET", "/auth/validate", "", access).exact(t, 200)
	shape(t, "valid", valid, "valid:boolean subject:string expires_at:integer")
	if valid["valid"] != true || valid["subject"] != "an-old-client" {
		t.Errorf("%v", valid)
	}
	s.send(t, "GET", "/jobs", "", "Authorization: Bearer "+fmt.Sprint(second["refresh_token"])).refused(t, 401, "unauthenticated", "")
	s.send(t, "POST", "/auth/refresh", fmt.Sprintf(`{"refresh_token":%q}`, second["access_token"])).refused(t, 401, "unauthenticated", "")
	s.send(t, "POST", "/auth/token", `{"client_id":""}`, "Authorization: Bearer "+token).refused(t, 400, "invalid_request", "client_id")
	out := s.send(t, "POST", "/auth/logout", "", access).exact(t, 200) // an empty body without a type
	shape(t, "logged out", out, "success:boolean message:string")
	s.send(t, "GET", "/jobs", "", access).refused(t, 401, "unauthenticated", "")
	s.send(t, "POST", "/auth/refresh", fmt.Sprintf(`{"refresh_token":%q}`, second["refresh_token"])).refused(t, 401, "unauthenticated", "")
}

func interopSessions(t *testing.T, s *server, call func(method, path, body string, more ...string) apiAnswer) {
	prompt, err := json.Marshal(promptOf([]modelstub.Step{bash("echo one"), text("two")}...))
	if err != nil {
		t.Fatal(err)
	}
	run := call("POST", "/run", `{"prompt":`+string(prompt)+`,"claude":{"dangerously_skip_permissions":true},"podman":{"environment":{},"lifecycle":{}}}`).exact(t, 200)
	shape(t, "run", run, "id:string status:string output:string session_id:string usage:object")
	id := fmt.Sprint(run["session_id"])
	listed := objects(t, call("GET", "/sessions", "").exact(t, 200), "sessions")
	if len(listed) != 1 || listed[0]["id"] != id {
		t.Fatalf("%v", listed)
	}
	shape(t, "session", listed[0], "id:string title:string created_at:time updated_at:time run_count:integer cost_usd:number")
	plain := s.send(t, "GET", "/sessions", "", "User-Agent: stromboli-go/0.3.1-alpha", "X-API-Token: "+headerToken(t, s)).exact(t, 200)
	if ids, _ := plain["sessions"].([]any); len(ids) != 1 || ids[0] != id {
		t.Errorf("for the published Go client: %v", plain)
	}
	page := call("GET", "/sessions/"+id+"/messages?offset=0&limit=200", "").exact(t, 200)
	shape(t, "page", page, "messages:list total:integer offset:integer limit:integer has_more:boolean")
	var one string
	for _, m := range objects(t, page, "messages") {
		shape(t, "message", m, "uuid:string parent_uuid:string? session_id:string type:string timestamp:time cwd:string? git_branch:string? permission_mode:string? version:string? content:object tool_result:object?")
		content, _ := m["content"].(map[string]any)
		shape(t, "content", content, "role:string content:list message_id:string? model:string? stop_reason:string? usage:object?")
		for _, b := range objects(t, content, "content") {
			shape(t, "block", b, "type:string text:string? id:string? name:string? input:object? tool_use_id:string? content:string? is_error:boolean?")
		}
		if result, ok := m["tool_result"].(map[string]any); ok {
			shape(t, "tool result", result, "stdout:string stderr:string interrupted:boolean is_image:boolean")
			one = fmt.Sprint(m["uuid"])
		}
	}
	if one == "" {
		t.Fatalf("no message has a tool's result: %v", page)
	}
	message, _ := call("GET", "/sessions/"+id+"/messages/"+one, "").exact(t, 200)["message"].(map[string]any)
	shape(t, "one message", message, "uuid:string content:object tool_result:object")
	call("GET", "/sessions/"+id+"/messages?limit=201", "").refused(t, 400, "invalid_request", "limit")
	call("GET", "/sessions/"+id+"/messages/none", "").refused(t, 404, "not_found", "")
	const unknown = "/sessions/0b9e1c1e-6f0c-4e39-9d5c-2f6f3f1f8a10"
	call("GET", unknown+"/messages", "").refused(t, 404, "not_found", "")
	call("DELETE", unknown, "").refused(t, 404, "not_found", "")
	call("DELETE", "/sessions/no%20name", "").refused(t, 400, "invalid_request", "session_id")
	gone := call("DELETE", "/sessions/"+id, "").exact(t, 200)
	shape(t, "gone", gone, "success:boolean session_id:string")
	call("GET", "/sessions/"+id+"/messages", "").refused(t, 404, "not_found", "")
}

// headerToken is the API token that the server was started with.
func headerToken(t *testing.T, s *server) string {
	t.Helper()
	for _, kv := range s.env {
		if token, ok := strings.CutPrefix(kv, "STROMBOLI_API_TOKENS="); ok {
			return token
		}
	}
	t.Fatal("the server has no token")
	return ""
}

func interopImages(t *testing.T, call func(method, path, body string, more ...string) apiAnswer) {
	const image = "id:string repository:string tag:string size:integer created:time compatibility_rank:integer compatible:boolean tools:list has_claude_cli:boolean description:string"
	listed := objects(t, call("GET", "/images", "").exact(t, 200), "images")
	if len(listed) == 0 {
		t.Fatal("no image is listed")
	}
	for _, o := range listed {
		shape(t, "image", o, image)
	}
	name := fmt.Sprint(listed[0]["repository"], ":", listed[0]["tag"])
	for _, spelt := range []string{name, url.PathEscape(name), strings.ReplaceAll(name, "/", "%2f")} {
		one := call("GET", "/images/"+spelt, "").exact(t, 200)
		shape(t, spelt, one, image+" labels:object rank_description:string")
	}
	call("GET", "/images/no-such-image:none", "").refused(t, 404, "not_found", "")
	call("GET", "/images/search?q=", "").refused(t, 400, "invalid_request", "q")
	call("GET", "/images/search?q=x&limit=101", "").refused(t, 400, "invalid_request", "limit")
	call("POST", "/images/pull", `{"image":"","platform":"","quiet":false}`).refused(t, 400, "invalid_request", "image")
	call("POST", "/images/pull", `{"image":"registry.example/not/allowed:1"}`).refused(t, 400, "image_not_allowed", "image")
}
