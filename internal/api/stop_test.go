package api_test

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/api"
)

func TestDisconnect(t *testing.T) {
	s := start(t, func(c *api.Config) { c.DisconnectGrace = 100 * time.Millisecond })
	open := func(method, path, body string, headers ...string) (context.CancelFunc, *http.Response) {
		ctx, cancel := context.WithCancel(t.Context())
		return cancel, s.send(ctx, method, path, body, headers...)
	}
	// A stream whose client comes back in time goes on.
	leave, resp := open("POST", "/run/stream", `{"prompt":"p","on_disconnect":"cancel"}`)
	first := newReader(resp.Body).until(t, "\n\n")
	at := strings.TrimSpace(strings.TrimPrefix(first, "id: "))
	leave()
	resp.Body.Close()
	leave, resp = open("GET", "/run/stream", "", "Last-Event-ID: "+at)
	newReader(resp.Body).until(t, "\n\n")
	never(t, "cancel", 250*time.Millisecond, func() bool { return len(s.fake.Cancels()) != 0 })
	// One who stays away doesn't.
	leave()
	resp.Body.Close()
	eventually(t, "cancel", func() bool { return slices.Equal(s.fake.Cancels(), []stromboli.Reason{"disconnect"}) })

	// A sync run ends at once; without the wish nothing does.
	for i, body := range []string{`{"prompt":"p","on_disconnect":"cancel"}`, `{"prompt":"p"}`} {
		before := len(s.fake.Submissions())
		ctx, cancel := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, "POST", "http://"+s.addr+"/run", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			if resp, err := s.hc.Do(req); err == nil {
				resp.Body.Close()
			}
		}()
		eventually(t, "submission", func() bool { return len(s.fake.Submissions()) > before })
		cancel()
		<-gone
		if i == 0 {
			eventually(t, "cancel", func() bool { return len(s.fake.Cancels()) == 2 })
		}
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	if c := s.fake.Cancels(); len(c) != 2 {
		t.Errorf("%v", c)
	}
}

// TestStop: streams get a retry, sync callers an answer that names their run,
// and no run is cancelled for it.
func TestStop(t *testing.T) {
	s := start(t, func(c *api.Config) { c.Drain = 300 * time.Millisecond })
	streams := make(chan string, 2)
	for _, path := range []string{"/run/stream", "/run"} {
		go func() {
			streams <- s.ask("POST", path, `{"prompt":"p","on_disconnect":"cancel"}`).raw
		}()
	}
	eventually(t, "submissions", func() bool { return len(s.fake.Submissions()) == 2 })
	s.api.Drain()
	if got := s.ask("GET", "/readyz", ""); got.status != 503 || len(got.body["reasons"].([]any)) != 1 {
		t.Errorf("%d %s", got.status, got.raw)
	}
	if got := s.ask("POST", "/run/async", `{"prompt":"p"}`); got.status != 503 || got.body["code"] != "draining" || got.header.Get("Retry-After") == "" {
		t.Errorf("%d %s", got.status, got.raw)
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	a, b := <-streams, <-streams
	if strings.HasPrefix(b, "id: ") {
		a, b = b, a
	}
	blocks := parseStrict(t, a)
	if last := blocks[len(blocks)-1]; last.retry == "" || last.hasData {
		t.Errorf("stream: %q", a)
	}
	if !strings.Contains(b, `"code":"draining"`) || !strings.Contains(b, `"id":"run-`) {
		t.Errorf("sync: %q", b)
	}
	if c := s.fake.Cancels(); len(c) != 0 {
		t.Errorf("cancelled: %v", c)
	}
}
