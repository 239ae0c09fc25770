package api_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tomblancdev/stromboli/internal/api"
)

// lines is a log as it was written, by requests that have ended.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) all(t *testing.T) []map[string]any {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []map[string]any
	for d := json.NewDecoder(bytes.NewReader(l.b.Bytes())); d.More(); {
		var m map[string]any
		if err := d.Decode(&m); err != nil {
			t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

// Each request is a line, and is told of once, by its route and not by what the
// client wrote.
func TestServed(t *testing.T) {
	var log lines
	var mu sync.Mutex
	var served []api.Served
	s := start(t, func(c *api.Config) {
		c.Log = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		c.Served = func(r api.Served) {
			mu.Lock()
			defer mu.Unlock()
			r.Took = 0
			served = append(served, r)
		}
		c.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("metrics 1\n")) })
	})
	s.ask("GET", "/jobs/job-hostile-"+strings.Repeat("x", 500), "")
	s.ask("GET", "/nowhere", "")
	s.ask("DELETE", "/version", "")
	s.ask("GET", "/health", "")
	if got := s.ask("GET", "/metrics", ""); got.status != http.StatusOK || got.raw != "metrics 1\n" {
		t.Errorf("/metrics: %d %q", got.status, got.raw)
	}
	if err := s.stop(); err != nil { // every request has ended
		t.Fatal(err)
	}
	want := []api.Served{
		{Method: "GET", Route: "/jobs/{id}", Status: 404},
		{Method: "GET", Status: 404},
		{Method: "DELETE", Status: 405},
		{Method: "GET", Route: "/health", Status: 200},
		{Method: "GET", Route: "/metrics", Status: 200},
	}
	if diff := cmp.Diff(want, served); diff != "" {
		t.Error(diff)
	}
	var levels []any
	for _, l := range log.all(t) {
		if l["msg"] != "request" {
			continue
		}
		levels = append(levels, l["level"])
		if path, _ := l["path"].(string); len(path) > 210 || l["remote"] == "" || l["took"] == nil || l["bytes"] == nil {
			t.Errorf("%v", l)
		}
	}
	if !slices.Equal(levels, []any{"INFO", "INFO", "INFO", "DEBUG", "DEBUG"}) {
		t.Errorf("levels %v", levels)
	}
}

func TestNoAccessLogAndNoMetrics(t *testing.T) {
	var log lines
	s := start(t, func(c *api.Config) {
		c.Log, c.NoAccessLog = slog.New(slog.NewJSONHandler(&log, nil)), true
	})
	if got := s.ask("GET", "/metrics", ""); got.status != http.StatusNotFound || !strings.Contains(got.raw, "STROMBOLI_METRICS_ENABLED") {
		t.Errorf("%d %s", got.status, got.raw)
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if got := log.all(t); len(got) > 0 {
		t.Errorf("%v", got)
	}
}
