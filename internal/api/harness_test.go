package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tomblancdev/stromboli/internal/api"
	"github.com/tomblancdev/stromboli/internal/api/apitest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is one API on a loopback port, in front of a fake.
type server struct {
	t    *testing.T
	fake *apitest.Fake
	api  *api.API
	addr string
	hc   *http.Client
	stop func() error // ends Serve; safe to call again
}

func start(t *testing.T, change ...func(*api.Config)) *server {
	t.Helper()
	return startOn(t, apitest.New(), "127.0.0.1:0", change...)
}

func startOn(t *testing.T, fake *apitest.Fake, addr string, change ...func(*api.Config)) *server {
	t.Helper()
	cfg := api.Config{
		Runs: fake, Events: fake, Sessions: &apitest.Shelf{}, Secrets: &apitest.Vault{}, Images: &apitest.Gallery{}, Webhooks: &fake.Box, System: fake, Log: slog.New(slog.DiscardHandler), Render: render,
		DisconnectGrace: 50 * time.Millisecond, Drain: 2 * time.Second,
	}
	for _, c := range change {
		c(&cfg)
	}
	a, err := api.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- a.Serve(ctx, ln) }()
	tr := &http.Transport{DisableCompression: true}
	s := &server{t: t, fake: fake, api: a, addr: ln.Addr().String(), hc: &http.Client{Transport: tr, Timeout: time.Minute}}
	var stopped bool
	s.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-served
	}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		if err := s.stop(); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s
}

// render takes lines of the form {"text":"…"}.
func render(line []byte) []string {
	var v struct {
		Text *string `json:"text"`
	}
	if json.Unmarshal(line, &v) != nil || v.Text == nil {
		return nil
	}
	return strings.Split(*v.Text, "\n")
}

type answer struct {
	status int
	header http.Header
	raw    string
	body   map[string]any
}

// ask sends a request; headers are "Name: value".
func (s *server) ask(method, path, body string, headers ...string) answer {
	s.t.Helper()
	resp := s.send(s.t.Context(), method, path, body, headers...)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatalf("%s %s: read: %v", method, path, err)
	}
	a := answer{status: resp.StatusCode, header: resp.Header, raw: string(raw)}
	if len(raw) > 0 && resp.Header.Get("Content-Type") == "application/json" {
		d := json.NewDecoder(bytes.NewReader(raw))
		d.UseNumber()
		if err := d.Decode(&a.body); err != nil {
			s.t.Fatalf("%s %s: %v in %q", method, path, err, raw)
		}
	}
	return a
}

func (s *server) send(ctx context.Context, method, path, body string, headers ...string) *http.Response {
	s.t.Helper()
	var rd io.Reader
	if body != "" {
		rd = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+s.addr+path, rd)
	if err != nil {
		s.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		switch name {
		case "Host":
			req.Host = value
		default:
			req.Header.Set(name, value)
			if value == "-" {
				req.Header.Del(name)
			}
		}
	}
	resp, err := s.hc.Do(req)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp
}

// block is one block of an event stream.
type block struct {
	id, event, data, retry string
	hasData                bool
}

// parseStrict reads a stream as the strictest client does, and fails for
// whatever the contract forbids.
func parseStrict(t testing.TB, raw string) []block {
	t.Helper()
	blocks, err := strict(raw)
	if err != nil {
		t.Fatalf("%v\nin %.2000q", err, raw)
	}
	return blocks
}

func strict(raw string) ([]block, error) {
	if strings.ContainsAny(raw, "\r") {
		return nil, fmt.Errorf("a CR")
	}
	if raw != "" && !strings.HasSuffix(raw, "\n\n") {
		return nil, fmt.Errorf("no blank line at the end")
	}
	var all []block
	for part := range strings.SplitSeq(strings.TrimSuffix(raw, "\n\n"), "\n\n") {
		if len(part)+2 > 1<<20 {
			return nil, fmt.Errorf("a block of %d bytes", len(part)+2)
		}
		var b block
		comment := false
		for line := range strings.SplitSeq(part, "\n") {
			name, value, ok := strings.Cut(line, ": ")
			if !ok {
				return nil, fmt.Errorf("a line without colon and space: %.80q", line)
			}
			switch {
			case name == "id" && b.id == "":
				b.id = value
			case name == "event" && b.event == "":
				b.event = value
			case name == "data" && !b.hasData:
				b.data, b.hasData = value, true
			case name == "retry" && b.retry == "":
				b.retry = value
			case name == "":
				comment = true
			default:
				return nil, fmt.Errorf("unexpected line %.80q", line)
			}
		}
		if b.event != "" && !b.hasData {
			return nil, fmt.Errorf("an event without data")
		}
		if !comment {
			all = append(all, b)
		}
	}
	return all, nil
}

// eventually polls until ok or the deadline.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(5 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s did not happen", what)
		}
	}
}

// never polls for a while and fails when it happens.
func never(t *testing.T, what string, while time.Duration, happened func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(while); time.Now().Before(end); <-tick.C {
		if happened() {
			t.Fatalf("%s happened", what)
		}
	}
}
