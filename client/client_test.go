package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/client"
	"github.com/tomblancdev/stromboli/internal/api"
	"github.com/tomblancdev/stromboli/internal/api/apitest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve puts an API in front of the fake and returns its address and its end.
func serve(t *testing.T, fake *apitest.Fake, addr string, change ...func(*api.Config)) (at string, stop func()) {
	t.Helper()
	cfg := api.Config{
		Runs: fake, Events: fake, Sessions: &apitest.Shelf{}, Secrets: &apitest.Vault{}, Images: &apitest.Gallery{}, Webhooks: &fake.Box, System: fake, Log: slog.New(slog.DiscardHandler), Drain: 100 * time.Millisecond,
		Retry: 10 * time.Millisecond, Render: func(line []byte) []string { return []string{string(line)} },
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
	done := false
	stop = func() {
		if done {
			return
		}
		done = true
		cancel()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	}
	t.Cleanup(stop)
	return ln.Addr().String(), stop
}

func dial(t *testing.T, addr string) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{BaseURL: "http://" + addr + "/", Patience: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.CloseIdle)
	return c
}

// TestThroughRestarts follows one run by three calls while the server is
// restarted twice: one run each, every message once.
func TestThroughRestarts(t *testing.T) {
	fake := apitest.New()
	made := make(chan stromboli.Run, 10)
	fake.OnSubmit = func(run stromboli.Run) { made <- run }
	addr, stop := serve(t, fake, "127.0.0.1:0")
	c := dial(t, addr)

	var lines []string
	streamed := make(chan error, 1)
	go func() {
		for m, err := range c.Stream(t.Context(), stromboli.RunSpec{Prompt: "p"}) {
			if err != nil {
				streamed <- err
				return
			}
			if m.Type == "" {
				lines = append(lines, m.Data)
			} else {
				lines = append(lines, m.Type)
			}
		}
		streamed <- nil
	}()
	run := <-made
	var seqs []int64
	followed := make(chan error, 1)
	go func() {
		for ev, err := range c.Events(t.Context(), run.ID, 0) {
			if err != nil {
				followed <- err
				return
			}
			seqs = append(seqs, ev.Seq)
		}
		followed <- nil
	}()
	var job client.Job
	waited := make(chan error, 1)
	go func() {
		var err error
		job, err = c.Run(t.Context(), stromboli.RunSpec{Prompt: "q"})
		waited <- err
	}()
	sync := <-made

	want := []string{}
	for i := range 3 {
		for j := range 5 {
			line := fmt.Sprintf("%d-%d", i, j)
			fake.Output(run.ID, line)
			want = append(want, line)
		}
		if i < 2 {
			stop()
			_, stop = serve(t, fake, addr)
		}
	}
	fake.Finish(run.ID, stromboli.Outcome{Status: stromboli.Completed})
	fake.Finish(sync.ID, stromboli.Outcome{Status: stromboli.Completed, Output: "out"})
	for _, ch := range []chan error{streamed, followed, waited} {
		if err := <-ch; err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(lines, append(want, "done")) {
		t.Errorf("%q", lines)
	}
	for i, seq := range seqs {
		if seq != int64(i)+1 {
			t.Fatalf("%v", seqs)
		}
	}
	if len(seqs) != 17 || job.ID != sync.ID || job.Output != "out" || len(fake.Submissions()) != 2 {
		t.Errorf("%d events, %+v, %d runs", len(seqs), job, len(fake.Submissions()))
	}
}

func TestJobs(t *testing.T) {
	fake := apitest.New()
	addr, _ := serve(t, fake, "127.0.0.1:0")
	c := dial(t, addr)
	ctx := t.Context()
	sub, err := c.RunAsync(ctx, stromboli.RunSpec{Prompt: "p", Metadata: map[string]string{"a": "b"}}, client.WithIdempotencyKey("k"))
	if err != nil {
		t.Fatal(err)
	}
	if again, err := c.RunAsync(ctx, stromboli.RunSpec{Prompt: "p", Metadata: map[string]string{"a": "b"}}, client.WithIdempotencyKey("k")); err != nil || again != sub {
		t.Errorf("%v %v", again, err)
	}
	page, err := c.Jobs(ctx, client.Filter{Kind: "all", Status: stromboli.Running, Metadata: map[string]string{"a": "b"}, Limit: 5, Since: time.Now().Add(-time.Hour)})
	if err != nil || len(page.Jobs) != 1 || page.Jobs[0].ID != sub.JobID {
		t.Errorf("%+v %v", page, err)
	}
	if err := c.Cancel(ctx, sub.JobID); err != nil {
		t.Error(err)
	}
	job, err := c.Job(ctx, sub.JobID)
	if err != nil || job.Status != stromboli.Cancelled || stromboli.CodeOf(job.Err()) != "request" || job.CreatedAt.IsZero() {
		t.Errorf("%+v %v", job, err)
	}
	if err := c.Cancel(ctx, sub.JobID); !errors.Is(err, stromboli.Conflict) {
		t.Errorf("%v", err)
	}
	if _, err := c.Job(ctx, stromboli.NewRunID(time.Now())); !errors.Is(err, stromboli.NotFound) {
		t.Errorf("%v", err)
	}
	for _, err := range c.Events(ctx, "job-none", 0) {
		if !errors.Is(err, stromboli.NotFound) {
			t.Errorf("%v", err)
		}
	}
	for _, err := range c.Stream(ctx, stromboli.RunSpec{Prompt: " "}) {
		e, _ := errors.AsType[*stromboli.Error](err)
		if !errors.Is(err, stromboli.Invalid) || len(e.Details) != 1 || e.Details[0].Field != "prompt" {
			t.Errorf("%v", err)
		}
	}
	data, err := c.EventData(ctx, sub.JobID, 1)
	if err != nil || string(data) != "{}" {
		t.Errorf("%s %v", data, err)
	}
	h, err := c.Health(ctx)
	if err != nil || h.Status != "ok" || len(h.Components) != 1 {
		t.Errorf("%+v %v", h, err)
	}
	if v, err := c.Version(ctx); err != nil || v.ClaudeCLI != "2.0.0" {
		t.Errorf("%+v %v", v, err)
	}
	if err := c.Ready(ctx); err != nil {
		t.Error(err)
	}
	fake.Unready = []string{"the engine is down"}
	if err := c.Ready(ctx); err == nil || !strings.Contains(err.Error(), "engine") {
		t.Errorf("%v", err)
	}
}

func TestRunOutcomes(t *testing.T) {
	fake := apitest.New()
	outcome := stromboli.Outcome{}
	fake.OnSubmit = func(run stromboli.Run) { fake.Finish(run.ID, outcome) }
	addr, _ := serve(t, fake, "127.0.0.1:0")
	c := dial(t, addr)
	for _, o := range []stromboli.Outcome{
		{Status: "completed", StructuredOutput: json.RawMessage(`{"a":1}`)},
		{Status: "crashed", Reason: "oom"},
		{Status: "failed", Reason: "timeout"},
		{Status: "failed", Reason: "engine"},
		{Status: "failed", Reason: "budget"},
		{Status: "cancelled", Reason: "request"},
	} {
		outcome = o
		job, err := c.Run(t.Context(), stromboli.RunSpec{Prompt: "p"})
		if err != nil || job.Status != o.Status || job.Reason != o.Reason || (job.Err() == nil) != (o.Status == "completed") {
			t.Errorf("%+v: %+v %v", o, job, err)
		}
	}
	fake.SubmitErr = func(stromboli.Submission) error {
		return &stromboli.Error{Code: stromboli.QueueFull, Message: "full", RetryAfter: 7 * time.Second}
	}
	_, err := c.Run(t.Context(), stromboli.RunSpec{Prompt: "p"})
	e, _ := errors.AsType[*stromboli.Error](err)
	if !errors.Is(err, stromboli.QueueFull) || e.RetryAfter != 7*time.Second {
		t.Errorf("%v", err)
	}
}

func TestOtherServers(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusTeapot)
		_, _ = w.Write([]byte("<html>"))
	}))
	defer s.Close()
	c, err := client.New(client.Config{BaseURL: s.URL, Patience: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseIdle()
	if _, err := c.Run(t.Context(), stromboli.RunSpec{Prompt: "p"}); !errors.Is(err, stromboli.Internal) {
		t.Errorf("%v", err)
	}
	for _, u := range []string{"", "localhost:80", "ftp://x", "http://"} {
		if _, err := client.New(client.Config{BaseURL: u}); err == nil {
			t.Errorf("%q was taken", u)
		}
	}
	// A server that is gone: the patience ends, or the caller's context does.
	s.Close()
	impatient, err := client.New(client.Config{BaseURL: s.URL, Patience: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range impatient.Stream(t.Context(), stromboli.RunSpec{Prompt: "p"}) {
		if err == nil {
			t.Error("no error")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	for _, err := range c.Events(ctx, "x", 0) {
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	}
}
