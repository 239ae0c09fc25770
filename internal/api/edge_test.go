package api_test

import (
	"context"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/api"
)

const chrome = "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36"

// TestPageNextDoor replays, header by header, what Chrome sends when a page of
// another site tries to start, watch or stop a run here.
func TestPageNextDoor(t *testing.T) {
	s := start(t)
	image := []string{
		chrome, `sec-ch-ua: "Chromium";v="141", "Not?A_Brand";v="8"`, "sec-ch-ua-mobile: ?0", `sec-ch-ua-platform: "Linux"`,
		"Accept: image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8", "Accept-Language: en-US,en;q=0.9",
		"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image", "Referer: http://evil.example/",
	}
	form := []string{
		chrome, "Content-Type: application/x-www-form-urlencoded", "Origin: http://evil.example", "Upgrade-Insecure-Requests: 1",
		"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-User: ?1", "Sec-Fetch-Dest: document", "Referer: http://evil.example/",
	}
	noCORS := []string{
		chrome, "Content-Type: text/plain;charset=UTF-8", "Accept: */*", "Origin: http://evil.example",
		"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: empty", "Referer: http://evil.example/",
	}
	source := []string{
		chrome, "Accept: text/event-stream", "Cache-Control: no-cache", "Origin: http://evil.example",
		"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: cors", "Sec-Fetch-Dest: empty",
	}
	// A rebound name is the page's own site: same-origin, and only Host tells.
	rebound := []string{
		chrome, "Host: rebound.evil.example:8080", "Content-Type: application/json", "Origin: http://rebound.evil.example:8080",
		"Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: cors", "Sec-Fetch-Dest: empty",
	}
	// Towards plain HTTP on other addresses than loopback Chrome leaves out the
	// Sec-Fetch headers, and Origin with images and no-cors GETs.
	lanImage := []string{chrome, "Accept: image/avif,image/webp,*/*;q=0.8", "Accept-Language: en-US,en;q=0.9"}
	lanFetch := []string{chrome, "Accept: text/event-stream"}
	preflight := []string{
		chrome, "Access-Control-Request-Method: DELETE", "Origin: http://evil.example", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: cors",
	}
	const get, body = "/run/stream?prompt=hi", `{"prompt":"hi"}`
	id := stromboli.JobID(submitted(t, s))
	tests := []struct {
		name, method, path, body string
		headers                  []string
		status                   int
		code                     string
	}{
		{"image tag", "GET", get, "", image, 403, "forbidden"},
		{"image tag, doubled slash", "GET", "//run//stream?prompt=hi", "", image, 403, "forbidden"},
		{"link prefetch", "GET", get, "", []string{chrome, "Sec-Purpose: prefetch", "Sec-Fetch-Site: cross-site"}, 403, "forbidden"},
		{"subdomain or other port", "GET", get, "", []string{chrome, "Sec-Fetch-Site: same-site"}, 403, "forbidden"},
		{"event source", "GET", get, "", source, 403, "forbidden"},
		{"resuming event source", "GET", get, "", append([]string{"Last-Event-ID: x"}, source...), 403, "forbidden"},
		{"image tag over the LAN", "GET", get, "", lanImage, 403, "forbidden"},
		{"no-cors fetch over the LAN", "GET", get, "", lanFetch, 403, "forbidden"},
		{"HEAD", "HEAD", get, "", image, 403, ""},
		{"form", "POST", "/run", "prompt=hi", form, 403, "forbidden"},
		{"form that spells JSON", "POST", "/run/async", `{"prompt":"hi","signal":"="}`, append([]string{"X: y"}, append(form[2:], "Content-Type: text/plain")...), 403, "forbidden"},
		{"no-cors fetch", "POST", "/run", body, noCORS, 403, "forbidden"},
		{"no-cors fetch to stream", "POST", "/run/stream", body, noCORS, 403, "forbidden"},
		{"sandboxed frame", "POST", "/run", body, []string{chrome, "Origin: null"}, 403, "forbidden"},
		{"old browser's form", "POST", "/run", body, []string{"Origin: http://evil.example"}, 403, "forbidden"},
		{"beacon without a type", "POST", "/run", body, []string{"Content-Type: -"}, 415, "unsupported_media"},
		{"text", "POST", "/run", body, []string{"Content-Type: text/plain"}, 415, "unsupported_media"},
		{"delete", "DELETE", "/jobs/" + id, "", []string{chrome, "Origin: http://evil.example", "Sec-Fetch-Site: cross-site"}, 403, "forbidden"},
		{"preflight", "OPTIONS", "/jobs/" + id, "", preflight, 405, "method_not_allowed"},
		{"preflight for all", "OPTIONS", "/run", "", preflight, 405, "method_not_allowed"},
		{"rebound POST", "POST", "/run", body, rebound, 421, "unknown_host"},
		{"rebound GET", "GET", get, "", rebound[:2], 421, "unknown_host"},
		{"rebound read", "GET", "/jobs", "", rebound[:2], 421, "unknown_host"},
		{"rebound delete", "DELETE", "/jobs/" + id, "", rebound[:2], 421, "unknown_host"},
	}
	for _, tt := range tests {
		got := s.ask(tt.method, tt.path, tt.body, tt.headers...)
		if got.status != tt.status || (tt.code != "" && got.body["code"] != tt.code) {
			t.Errorf("%s: %d %s", tt.name, got.status, got.raw)
		}
		if got.header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: CORS is open", tt.name)
		}
	}
	if subs := s.fake.Submissions(); len(subs) != 1 {
		t.Errorf("%d runs were started", len(subs)-1)
	}
	if c := s.fake.Cancels(); len(c) != 0 {
		t.Errorf("cancelled: %v", c)
	}
}

// TestOwnPage is the control: the same requests without the fault are served.
func TestOwnPage(t *testing.T) {
	s := start(t, func(c *api.Config) { c.AllowedHosts = []string{"box.example", "other.example:99"} })
	s.fake.OnSubmit = func(run stromboli.Run) { s.fake.Finish(run.ID, stromboli.Outcome{Status: stromboli.Completed}) }
	same := []string{chrome, "Origin: http://" + s.addr, "Sec-Fetch-Site: same-origin"}
	if got := s.ask("POST", "/run", `{"prompt":"x"}`, same...); got.status != 200 {
		t.Errorf("own page: %d %s", got.status, got.raw)
	}
	if got := s.ask("GET", "/run/stream?prompt=x", "", chrome, "Sec-Fetch-Site: same-origin", "Accept: text/event-stream"); got.status != 200 {
		t.Errorf("own event source: %d %s", got.status, got.raw)
	}
	if got := s.ask("GET", "/run/stream?prompt=x", "", chrome, "Sec-Fetch-Site: none"); got.status != 200 {
		t.Errorf("address bar: %d %s", got.status, got.raw)
	}
	if got := s.ask("POST", "/run", `{"prompt":"x"}`, "Content-Type: application/json; charset=utf-8"); got.status != 200 {
		t.Errorf("charset: %d %s", got.status, got.raw)
	}
	port := s.addr[strings.LastIndexByte(s.addr, ':'):]
	for host, want := range map[string]int{
		"localhost": 200, "localhost" + port: 200, "LocalHost.:1": 200, "127.0.0.1": 200, "127.9.9.9:80": 200, "[::1]": 200,
		"[::1]:8080": 200, "[::ffff:127.0.0.1]:1": 200, "box.example": 200, "BOX.example.:44": 200, "other.example:99": 200,
		"other.example": 421, "other.example:98": 421, "localhost.evil.example": 421, "127.0.0.1.evil.example": 421,
		"0.0.0.0": 421, "192.168.1.1:8080": 421, "[::]:80": 421, "evil.localhost": 421, "2130706433": 421, "127.1": 421, "::1": 421,
		"localhost:x": 421, "localhost:80:80": 421,
	} {
		if got := s.ask("GET", "/health", "", "Host: "+host); got.status != want {
			t.Errorf("Host %s: %d", host, got.status)
		}
	}
}

func TestHostIsFreeWithAuth(t *testing.T) {
	s := start(t, withAuth(t, true, ""))
	got := s.ask("GET", "/jobs", "", "Host: box.example")
	if got.status != 401 || got.header.Get("WWW-Authenticate") != "Bearer" || got.body["status"] != "error" {
		t.Errorf("%d %s", got.status, got.raw)
	}
	if got := s.ask("GET", "/jobs", "", "Host: box.example", "Authorization: Bearer root"); got.status != 200 {
		t.Errorf("%d %s", got.status, got.raw)
	}
	if got := s.ask("GET", "/health", "", "Authorization: Bearer bad"); got.status != 200 {
		t.Errorf("%d %s", got.status, got.raw)
	}
}

// submitted makes a run that goes on.
func submitted(t *testing.T, s *server) string {
	t.Helper()
	run, _, err := s.fake.Submit(context.Background(), stromboli.Principal{Tenant: stromboli.DefaultTenant},
		stromboli.Submission{Spec: stromboli.RunSpec{Prompt: "p"}, Kind: stromboli.KindAsync})
	if err != nil {
		t.Fatal(err)
	}
	return run.ID
}
