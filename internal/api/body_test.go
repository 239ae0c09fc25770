package api_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/api"
)

func TestBadBodies(t *testing.T) {
	s := start(t, func(c *api.Config) { c.MaxBody = 2 << 20; c.BodyTimeout = 3 * time.Second })
	s.fake.OnSubmit = func(run stromboli.Run) { s.fake.Finish(run.ID, stromboli.Outcome{Status: "completed"}) }
	for _, tt := range []struct {
		body   string
		status int
		field  string
	}{
		{`{"prompt":" \n"}`, 400, "prompt"},
		{`{}`, 400, "prompt"},
		{`{"prompt":"p","x":1}`, 400, "x"},
		{`nope`, 400, ""},
		{`{"prompt":"p","podman":{"memory":5}}`, 400, "podman.memory"},
		{`{"prompt":"` + strings.Repeat("p", 2<<20) + `"}`, 413, ""},
		{`{"prompt":"` + strings.Repeat("p", 1<<20) + `"}`, 200, ""},
	} {
		for _, path := range []string{"/run", "/run/async", "/run/stream"} {
			got := s.ask("POST", path, tt.body)
			want := tt.status
			if path == "/run/async" && want == 200 {
				want = 202
			}
			if got.status != want {
				t.Errorf("%s %.40s: %d %.300s", path, tt.body, got.status, got.raw)
			}
			if tt.field != "" {
				first := got.body["details"].([]any)[0].(map[string]any)
				if first["field"] != tt.field || first["message"] == "" || !strings.Contains(got.body["error"].(string), tt.field) {
					t.Errorf("%s", got.raw)
				}
			}
		}
	}
	if got := s.ask("POST", "/run", ""); got.status != 400 || !strings.Contains(got.raw, "empty") {
		t.Errorf("%d %s", got.status, got.raw)
	}
	if got := s.ask("GET", "/run/stream?prompt=%20", ""); got.status != 400 {
		t.Errorf("%d", got.status)
	}
	for _, q := range []string{"promt=x", "model=opus", "prompt=y", "session_id=a&session_id=b"} {
		if got := s.ask("GET", "/run/stream?prompt=x&"+q, ""); got.status != 400 {
			t.Errorf("%s: %d", q, got.status)
		}
	}
	// Of unknown length: above the limit, and empty without a type.
	for body, want := range map[string]int{strings.Repeat(" ", 3<<20): 413, "": 400} {
		req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+s.addr+"/run", io.MultiReader(strings.NewReader(body)))
		if err != nil {
			t.Fatal(err)
		}
		if body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		resp, err := s.hc.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("chunked, %d bytes: %d", len(body), resp.StatusCode)
		}
	}
	// A body that never comes.
	got := raw(t, s.addr, "POST /run HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"prompt\":")
	if !strings.HasPrefix(got, "HTTP/1.1 408 ") || !strings.Contains(got, `"code":"request_timeout"`) {
		t.Errorf("%s", got)
	}
	if n := len(s.fake.Submissions()); n != 3 {
		t.Errorf("%d runs", n)
	}
}

// TestSlowRun: the deadline for reading bodies doesn't end a caller's wait.
func TestSlowRun(t *testing.T) {
	s := start(t, func(c *api.Config) { c.BodyTimeout = 50 * time.Millisecond; c.WriteTimeout = 50 * time.Millisecond })
	s.fake.OnSubmit = func(run stromboli.Run) {
		time.AfterFunc(200*time.Millisecond, func() { s.fake.Finish(run.ID, stromboli.Outcome{Status: "completed"}) })
	}
	if got := s.ask("POST", "/run", `{"prompt":"p","on_disconnect":"cancel"}`); got.status != 200 {
		t.Errorf("%d %s", got.status, got.raw)
	}
}

// raw writes bytes to a connection and reads to its end.
func raw(t *testing.T, addr, request string) string {
	t.Helper()
	c, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { _, _ = io.WriteString(c, request) })
	got, _ := io.ReadAll(bufio.NewReader(c))
	return string(got)
}

func TestOwnAnswersAreJSON(t *testing.T) {
	s := start(t)
	for request, want := range map[string]string{
		"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + strings.Repeat("x", 5<<20) + "\r\n\r\n": "HTTP/1.1 431 ",
		"GET /health HTTP/1.1\r\n\r\n": "HTTP/1.1 400 ",
		"nonsense\r\n\r\n":             "HTTP/1.1 400 ",
		"GET /jobs HTTP/1.0\r\n\r\n":   "HTTP/1.0 421 ",
		"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n": "HTTP/1.1 404 ",
	} {
		got := raw(t, s.addr, request)
		if !strings.HasPrefix(got, want) || !strings.Contains(got, "Content-Type: application/json\r\n") || !strings.Contains(got, `"error":`) {
			t.Errorf("%.40q: %q", request, got)
		}
	}
}

// TestRefusedBodyAndClose: who sends a body that is too large, and closes the
// connection afterwards, reads the refusal and is not cut off.
func TestRefusedBodyAndClose(t *testing.T) {
	s := start(t)
	body := `{"prompt":"` + strings.Repeat("x", 11<<20) + `"}`
	transport := &http.Transport{DisableKeepAlives: true}
	for range 50 {
		resp, err := (&http.Client{Transport: transport}).Post("http://"+s.addr+"/run", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Fatal(resp.Status)
		}
	}
}
