package e2e_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/client"
	"github.com/tomblancdev/stromboli/internal/modelstub"
)

// TestReconnects: a client that knows nothing but the HTML standard opens
// GET /run/stream, and the server dies again and again. There is exactly one
// run, every event comes once, and in the end the client is told to stop.
func TestReconnects(t *testing.T) {
	t.Parallel()
	s := start(t, "STROMBOLI_SERVER_ADDRESS="+reconnectAddress(t))
	const lines = 16
	var step modelstub.Step
	var want []string
	for i := range lines {
		line := fmt.Sprintf("line %d of the answer", i)
		step.Blocks = append(step.Blocks, modelstub.Block{Text: line})
		want = append(want, line)
	}
	step.Chunk, step.PaceMS = 8, 60
	prompt := keyed("reconnect", step).Prompt

	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	source := &eventSource{url: s.url + "/run/stream?prompt=" + url.QueryEscape(prompt), hc: &http.Client{}, retry: time.Second, got: make(chan sourceEvent, 1000)}
	ended := make(chan error, 1)
	go func() { ended <- source.run(ctx) }()

	var got []sourceEvent
	for {
		var e sourceEvent
		select {
		case e = <-source.got:
		case err := <-ended:
			t.Fatalf("the client ended after %d events: %v", len(got), err)
		}
		got = append(got, e)
		if e.event != "message" {
			break
		}
		if n := len(got); n == 2 || n == 6 || n == 11 {
			s.kill()
			s.up()
		}
	}
	if err := <-ended; err != nil {
		t.Fatalf("the client was not told to stop: %v", err)
	}
	source.hc.CloseIdleConnections()
	if len(source.got) != 0 {
		t.Errorf("%d events came after the last one", len(source.got))
	}
	last := got[len(got)-1]
	if last.event != "done" || !strings.Contains(last.data, `"completed"`) {
		t.Errorf("the last event is %+v", last)
	}
	var said []string
	seen := map[string]bool{}
	for _, e := range got {
		if seen[e.id] || !strings.HasPrefix(e.id, "run-") {
			t.Errorf("event id %q: a second time, or no position", e.id)
		}
		seen[e.id] = true
		if e.event == "message" {
			said = append(said, e.data)
		}
	}
	if strings.Join(said, "\n") != strings.Join(want, "\n") {
		t.Errorf("the stream said %q, want %q", said, want)
	}
	t.Logf("%d connections, %d events", source.connections, len(got))
	if source.connections < 3 { // the first, at least one after kills, and the one that was answered 204
		t.Errorf("only %d connections", source.connections)
	}
	page, err := s.c.Jobs(ctx, client.Filter{Kind: "all"})
	if err != nil || len(page.Jobs) != 1 {
		t.Fatalf("%d runs, %v; want exactly one", len(page.Jobs), err)
	}
	s.events(page.Jobs[0].ID)
	if n := len(s.stub.Requests("reconnect")); n != 1 {
		t.Errorf("the model saw %d requests", n)
	}
}

// TestWaitingCallerSurvives: a caller that waits for POST /run asks again with
// the same key when the server comes back, and gets the one run's result.
func TestWaitingCallerSurvives(t *testing.T) {
	t.Parallel()
	s := start(t, "STROMBOLI_SERVER_ADDRESS="+reconnectAddress(t))
	type result struct {
		job client.Job
		err error
	}
	in := keyed("waiting", survPaced(2*time.Second))
	done := make(chan result, 1)
	ctx := s.ctx()
	go func() {
		job, err := s.c.Run(ctx, in)
		done <- result{job, err}
	}()
	waitFor(t, "the model's request", func() bool { return len(s.stub.Requests("waiting")) > 0 })
	s.kill()
	s.launchAgain()
	r := <-done
	if r.err != nil || r.job.Status != stromboli.Completed || !strings.HasSuffix(r.job.Output, "that was all") {
		t.Errorf("%s %q, %v", r.job.Status, r.job.Output, r.err)
	}
	page, err := s.c.Jobs(ctx, client.Filter{Kind: "all"})
	if err != nil || len(page.Jobs) != 1 || len(s.stub.Requests("waiting")) != 1 {
		t.Errorf("%d runs, %d requests to the model, %v; want one of each", len(page.Jobs), len(s.stub.Requests("waiting")), err)
	}
}

// launchAgain starts the server and leaves the client that is in use alone: it
// is another goroutine's.
func (s *server) launchAgain() {
	s.t.Helper()
	c := s.c
	s.survLaunch()
	waitFor(s.t, "the server to answer", func() bool {
		ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
		defer cancel()
		return c.Ready(ctx) == nil
	})
}

// reconnectAddress is a loopback address that is free now.
func reconnectAddress(t *testing.T) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// sourceEvent is what an EventSource hands to a page.
type sourceEvent struct{ event, data, id string }

// eventSource is a client of server-sent events as the HTML standard describes
// it: it repeats its request for as long as it is not told to stop, and knows
// nothing of what is sent.
type eventSource struct {
	url         string
	hc          *http.Client
	retry       time.Duration
	lastID      string
	connections int
	got         chan sourceEvent
}

var errNoStream = errors.New("the answer is no event stream, which ends an EventSource for good")

// run returns nil when it was told to stop, by 204.
func (s *eventSource) run(ctx context.Context) error {
	for {
		stop, err := s.connect(ctx)
		if stop || errors.Is(err, errNoStream) {
			return err
		}
		select { // any other end: reestablish the connection
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(s.retry):
		}
	}
}

func (s *eventSource) connect(ctx context.Context) (stop bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url, http.NoBody)
	if err != nil {
		return true, err
	}
	req.Header.Set("Accept", "text/event-stream")
	req.Header.Set("Cache-Control", "no-store")
	if s.lastID != "" {
		req.Header.Set("Last-Event-ID", s.lastID)
	}
	resp, err := s.hc.Do(req)
	if err != nil {
		return false, err
	}
	defer func() { _ = resp.Body.Close() }()
	s.connections++
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	switch {
	case resp.StatusCode == http.StatusNoContent:
		return true, nil
	case resp.StatusCode != http.StatusOK || kind != "text/event-stream":
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return false, fmt.Errorf("%w: %s %q: %s", errNoStream, resp.Status, kind, body)
	}
	return false, s.read(resp.Body)
}

// read interprets one stream; an event that its end cuts off is discarded.
func (s *eventSource) read(r io.Reader) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 4<<20)
	lines.Split(sourceLines)
	id, event := s.lastID, ""
	var data []string
	for lines.Scan() {
		line := lines.Text()
		if line == "" {
			s.lastID = id
			if len(data) > 0 {
				if event == "" {
					event = "message"
				}
				s.got <- sourceEvent{event: event, data: strings.Join(data, "\n"), id: s.lastID}
			}
			event, data = "", nil
			continue
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "event":
			event = value
		case "data":
			data = append(data, value)
		case "id":
			if !strings.Contains(value, "\x00") {
				id = value
			}
		case "retry":
			if ms, err := strconv.ParseUint(value, 10, 31); err == nil {
				s.retry = time.Duration(ms) * time.Millisecond
			}
		}
	}
	return lines.Err()
}

// sourceLines splits at LF, CR and CR LF; a line without an end is none.
func sourceLines(b []byte, eof bool) (advance int, line []byte, err error) {
	for i, c := range b {
		switch {
		case c == '\n':
			return i + 1, b[:i], nil
		case c == '\r' && i+1 < len(b) && b[i+1] == '\n':
			return i + 2, b[:i], nil
		case c == '\r' && (i+1 < len(b) || eof):
			return i + 1, b[:i], nil
		}
	}
	if eof {
		return len(b), nil, nil
	}
	return 0, nil, nil
}
