package api_test

import (
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

// TestDocumentation: the documents and the page are there for everybody, and the
// page loads nothing from elsewhere.
func TestDocumentation(t *testing.T) {
	s := start(t)
	for path, want := range map[string][2]string{
		"/openapi.json":     {"application/json", `"openapi": "3.1.0"`},
		"/openapi.yaml":     {"application/yaml", "openapi: 3.1.0"},
		"/swagger/doc.json": {"application/json", `"swagger": "2.0"`},
		"/docs":             {"text/html; charset=utf-8", "swagger-ui-bundle.js"},
		"/docs/docs.js":     {"text/javascript; charset=utf-8", "openapi.json"},
	} {
		got := s.ask("GET", path, "")
		if got.status != 200 || got.header.Get("Content-Type") != want[0] || !strings.Contains(got.raw, want[1]) {
			t.Errorf("%s: %d %s %.80q", path, got.status, got.header.Get("Content-Type"), got.raw)
		}
		if strings.HasSuffix(path, ".json") && !json.Valid([]byte(got.raw)) {
			t.Errorf("%s is no JSON", path)
		}
	}
	page := s.ask("GET", "/docs", "")
	if policy := page.header.Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") || !strings.Contains(policy, "script-src 'self';") {
		t.Errorf("the page's policy: %s", policy)
	}
	loaded := regexp.MustCompile(`(?:src|href)="([^"]+)"`).FindAllStringSubmatch(page.raw, -1)
	if len(loaded) < 4 {
		t.Errorf("the page loads %v", loaded)
	}
	for _, m := range loaded {
		if got := s.ask("GET", "/"+m[1], ""); got.status != 200 || len(got.raw) == 0 {
			t.Errorf("%s: %d", m[1], got.status)
		}
	}
	for _, path := range []string{"/docs/none.js", "/docs/embed.go", "/docs/..%2fdocs.html", "/docs/swagger-ui.css.gz"} {
		if got := s.ask("GET", path, ""); got.status != 404 {
			t.Errorf("%s: %d", path, got.status)
		}
	}

	// Compressed for those who can take it.
	var sizes [2]int
	for i, encoding := range []string{"identity", "gzip"} {
		resp := s.send(t.Context(), http.MethodGet, "/docs/swagger-ui.css", "", "Accept-Encoding: "+encoding)
		sizes[i] = int(resp.ContentLength)
		if got := resp.Header.Get("Content-Encoding"); (got == "gzip") != (encoding == "gzip") {
			t.Errorf("asked for %s: %q", encoding, got)
		}
		_ = resp.Body.Close()
	}
	if sizes[1] <= 0 || sizes[1] >= sizes[0] {
		t.Errorf("%d bytes, compressed %d", sizes[0], sizes[1])
	}
}
