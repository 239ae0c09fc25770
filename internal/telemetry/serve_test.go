package telemetry_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tomblancdev/stromboli/internal/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// told is a log that can be waited for.
type told struct {
	mu      sync.Mutex
	text    strings.Builder
	changed chan struct{}
}

// Write implements io.Writer.
func (l *told) Write(p []byte) (int, error) {
	l.mu.Lock()
	l.text.Write(p)
	l.mu.Unlock()
	select {
	case l.changed <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (l *told) wait(t *testing.T, pattern string) []string {
	t.Helper()
	limit := time.After(30 * time.Second)
	for {
		l.mu.Lock()
		found := regexp.MustCompile(pattern).FindStringSubmatch(l.text.String())
		l.mu.Unlock()
		if found != nil {
			return found
		}
		select {
		case <-l.changed:
		case <-limit:
			t.Fatalf("the log never says %q", pattern)
		}
	}
}

// serve serves at an address until the test's end.
func serve(t *testing.T, m *telemetry.Metrics, address string) *told {
	t.Helper()
	log := &told{changed: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Serve(ctx, address, slog.New(slog.NewTextHandler(log, nil))) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return log
}

func get(t *testing.T, url, host string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if host != "" {
		req.Host = host
	}
	tr := &http.Transport{DisableKeepAlives: true}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestServe(t *testing.T) {
	log := serve(t, newMetrics(), "127.0.0.1:0")
	url := log.wait(t, `url=(http://\S+/metrics)`)[1]
	if status, body := get(t, url, ""); status != http.StatusOK || !strings.Contains(body, "stromboli_queue_depth 2") {
		t.Errorf("%d %s", status, body)
	}
	if status, _ := get(t, strings.TrimSuffix(url, "metrics"), ""); status != http.StatusNotFound {
		t.Errorf("another path: %d", status)
	}
	if status, _ := get(t, url, "localhost:9090"); status != http.StatusOK {
		t.Errorf("localhost: %d", status)
	}
	if status, body := get(t, url, "evil.example"); status != http.StatusMisdirectedRequest || strings.Contains(body, "queue_depth") {
		t.Errorf("a foreign name: %d %s", status, body)
	}
}

// A port that is taken is told of, and nothing else happens.
func TestServeTakenPort(t *testing.T) {
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	log := serve(t, newMetrics(), ln.Addr().String())
	log.wait(t, `STROMBOLI_METRICS_ADDRESS.*address already in use`)
}

// A sample that fails or hangs is told of, and delays no other.
func TestSamples(t *testing.T) {
	m := newMetrics()
	ctx, cancel := context.WithCancel(t.Context())
	looked := make(chan struct{})
	var once sync.Once
	done := make(chan error, 1)
	go func() {
		done <- m.Run(ctx,
			telemetry.Sample{Name: "hangs", Every: time.Millisecond, Limit: 10 * time.Millisecond, Look: func(ctx context.Context) error {
				<-ctx.Done()
				return ctx.Err()
			}},
			telemetry.Sample{Name: "fails", Every: time.Hour, Limit: time.Second, Look: func(context.Context) error { return errors.New("x") }},
			telemetry.Sample{Name: "works", Every: time.Millisecond, Limit: time.Second, Look: func() func(context.Context) error {
				n := 0
				return func(context.Context) error {
					if n++; n == 5 {
						once.Do(func() { close(looked) })
					}
					return nil
				}
			}()},
		)
	}()
	<-looked
	for limit := time.Now().Add(30 * time.Second); ; {
		text, _ := scrape(t, m)
		if regexp.MustCompile(`sample_failures_total\{sample="hangs"\} [1-9]`).MatchString(text) &&
			strings.Contains(text, `sample_failures_total{sample="fails"} 1`) && strings.Contains(text, `sample_failures_total{sample="works"} 0`) &&
			strings.Contains(text, `sample_timestamp_seconds{sample="works"}`) {
			break
		}
		if time.Now().After(limit) {
			t.Fatal(text)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
