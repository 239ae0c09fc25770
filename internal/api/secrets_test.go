package api_test

import (
	"strings"
	"testing"
)

func TestSecrets(t *testing.T) {
	s := start(t)
	if got := s.ask("GET", "/secrets", ""); got.status != 200 || strings.TrimSpace(got.raw) != `{"secrets":[]}` {
		t.Errorf("none: %d %s", got.status, got.raw)
	}
	if got := s.ask("POST", "/secrets", `{"name":"token","value":"hidden-value"}`); got.status != 201 || strings.TrimSpace(got.raw) != `{"success":true,"name":"token"}` {
		t.Errorf("made: %d %s", got.status, got.raw)
	}
	for _, path := range []string{"/secrets", "/secrets/token"} {
		got := s.ask("GET", path, "")
		if got.status != 200 || !strings.Contains(got.raw, `"id":"id-token","name":"token","created_at":"2023-11-14T22:13:20Z"`) || strings.Contains(got.raw, "hidden") {
			t.Errorf("%s: %d %s", path, got.status, got.raw)
		}
	}
	for _, c := range []struct {
		method, path, body, says string
		headers                  []string
		status                   int
	}{
		{"POST", "/secrets", `{"name":"token","value":"hidden-other"}`, "conflict", nil, 409},
		{"POST", "/secrets", `{"name":"bad","value":"hidden-other"}`, `"field":"name"`, nil, 400},
		{"POST", "/secrets", `{"name":"a","value":{"hidden-other":1}}`, `"field":"value"`, nil, 400},
		{"POST", "/secrets", `{"name":"a","value":"x","tenant":"y"}`, `"field":"tenant"`, nil, 400},
		{"POST", "/secrets", `{"name":"a","value":"hidden-other"}`, "forbidden", []string{"Sec-Fetch-Site: cross-site"}, 403},
		{"POST", "/secrets", `name=a`, "unsupported_media", []string{"Content-Type: application/x-www-form-urlencoded"}, 415},
		{"GET", "/secrets/none", "", "not_found", nil, 404},
		{"GET", "/secrets/..%2fx", "", "not_found", nil, 404},
		{"DELETE", "/secrets/none", "", "not_found", nil, 404},
		{"DELETE", "/secrets/token", "", `{"success":true,"name":"token"}`, nil, 200},
		{"DELETE", "/secrets/token", "", "not_found", nil, 404},
	} {
		got := s.ask(c.method, c.path, c.body, c.headers...)
		if got.status != c.status || !strings.Contains(got.raw, c.says) || strings.Contains(got.raw, "hidden") {
			t.Errorf("%s %s %s: %d %s", c.method, c.path, c.body, got.status, got.raw)
		}
	}
}
