package webhook

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/policy"
	"github.com/tomblancdev/stromboli/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// hit is one request that a receiver got.
type hit struct {
	id     string
	header http.Header
	body   []byte
}

// receiver is somebody's webhook.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	hits   []hit
	answer func(n int, w http.ResponseWriter, r *http.Request) // to the nth request, from 1
}

func newReceiver(t *testing.T, answer func(n int, w http.ResponseWriter, r *http.Request)) *receiver {
	t.Helper()
	rc := &receiver{answer: answer}
	rc.Server = httptest.NewServer(rc)
	t.Cleanup(rc.Close)
	return rc
}

// ServeHTTP records a request and answers it.
func (rc *receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	rc.mu.Lock()
	rc.hits = append(rc.hits, hit{r.Header.Get("webhook-id"), r.Header.Clone(), body})
	n := len(rc.hits)
	rc.mu.Unlock()
	if rc.answer != nil {
		rc.answer(n, w, r)
	}
}

func (rc *receiver) got() []hit {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	return append([]hit(nil), rc.hits...)
}

func status(code int) func(int, http.ResponseWriter, *http.Request) {
	return func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// world is an outbox in a real database, and the log of what sends from it.
type world struct {
	*testing.T
	store *store.Store
	log   *syncBuffer
	n     int
}

func newWorld(t *testing.T) *world {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &world{T: t, store: s, log: &syncBuffer{}}
}

// config is what sends at once and tries again soon.
func (w *world) config(change ...func(*Config)) Config {
	w.Helper()
	hosts, _, err := policy.ParseHosts([]string{"127.0.0.1"})
	if err != nil {
		w.Fatal(err)
	}
	c := Config{
		Outbox: w.store, Allow: hosts, Timeout: 5 * time.Second, Schedule: []time.Duration{time.Millisecond, time.Millisecond},
		Log: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

// start sends until stop is called, or the test ends.
func (w *world) start(change ...func(*Config)) (s *Sender, stop func()) {
	w.Helper()
	s, err := New(w.config(change...))
	if err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.Error(err)
		}
	})
	w.Cleanup(stop)
	return s, stop
}

// owe ends a run whose end is to be told at a URL, and returns the run's id.
func (w *world) owe(url string) string {
	w.Helper()
	w.n++
	id := stromboli.NewRunID(time.Now())
	run, _, err := w.store.CreateRun(w.Context(), stromboli.NewRun{
		Run: stromboli.Run{
			ID: id, Tenant: "default", Kind: stromboli.KindAsync, SessionID: "session-" + strconv.Itoa(w.n) + id, Status: stromboli.Running, Owner: "me",
			Spec: stromboli.RunSpec{Prompt: "p", WebhookURL: url},
		},
		CreateSession: &stromboli.Session{},
	})
	if err != nil {
		w.Fatal(err)
	}
	if _, err := w.store.FinishRun(w.Context(), id, run.Epoch, stromboli.RunFinish{Outcome: stromboli.Outcome{Status: stromboli.Completed, Output: "done <&>"}}); err != nil {
		w.Fatal(err)
	}
	return id
}

func (w *world) delivery(run string) stromboli.Delivery {
	w.Helper()
	list, _, err := w.store.ListDeliveries(w.Context(), stromboli.DeliveryFilter{Tenant: "default", RunID: run})
	if err != nil || len(list) != 1 {
		w.Fatalf("the delivery of %s: %+v, %v", run, list, err)
	}
	return list[0]
}

// until waits until a run's delivery has a status.
func (w *world) until(run string, want stromboli.DeliveryStatus) stromboli.Delivery {
	w.Helper()
	var d stromboli.Delivery
	w.wait("the delivery to be "+string(want), func() bool {
		d = w.delivery(run)
		return d.Status == want
	})
	return d
}

func (w *world) wait(what string, ok func() bool) {
	w.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); !ok(); <-tick.C {
		if time.Now().After(end) {
			w.Fatalf("waited in vain for %s; the log: %s", what, w.log.String())
		}
	}
}

// syncBuffer is a log that may be read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// String is what was written.
func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
