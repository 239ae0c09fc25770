package telemetry_test

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/telemetry"
)

func newMetrics() *telemetry.Metrics {
	return telemetry.NewMetrics(telemetry.MetricsConfig{
		Version: "v1", Commit: "abc", Routes: []string{"/jobs/{id}", "/run"},
		Live: func() telemetry.Live {
			return telemetry.Live{RunsPending: 2, RunsRunning: 3, RunSlots: 4, SandboxesStarting: 1, SandboxesRunning: 5}
		},
	})
}

// scrape asks as Prometheus does.
func scrape(t *testing.T, m *telemetry.Metrics) (string, map[string]*dto.MetricFamily) {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	if w.Code != 200 || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain") {
		t.Fatalf("%d %s", w.Code, w.Header().Get("Content-Type"))
	}
	text := w.Body.String()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return text, families
}

func event(t *testing.T, kind stromboli.EventType, data any) stromboli.Event {
	t.Helper()
	b, err := json.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	return stromboli.Event{Type: kind, Data: b}
}

// wantLines are lines of a scrape, or beginnings of them.
func wantLines(t *testing.T, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains("\n"+text, "\n"+w) {
			t.Errorf("there is no line %q", w)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

// everything happens once.
func everything(t *testing.T, m *telemetry.Metrics) {
	t.Helper()
	usage := &stromboli.Usage{Model: "claude-sonnet", InputTokens: 10, OutputTokens: 5, CacheReadInputTokens: 2, TotalTokens: 17, EstimatedCostUSD: .25}
	m.Events("run-1", []stromboli.Event{
		event(t, stromboli.EventRunCreated, map[string]string{"kind": "async"}),
		event(t, stromboli.EventPhase, stromboli.PhaseData{Phase: stromboli.PhaseQueued}),
		event(t, stromboli.EventPhase, stromboli.PhaseData{Phase: stromboli.PhaseCreating}),
		event(t, stromboli.EventRunStarted, stromboli.StartedData{Start: "cold"}),
		event(t, stromboli.EventPhase, stromboli.PhaseData{Phase: stromboli.PhaseGenerating, Timing: &stromboli.StartTiming{TotalUS: 400_000}}),
		event(t, stromboli.EventText, stromboli.TextData{Text: "hello"}),
		event(t, stromboli.EventRunFinished, stromboli.Outcome{Status: stromboli.Completed, Output: "hello", Usage: usage}),
	})
	m.Events("run-2", []stromboli.Event{event(t, stromboli.EventRunFinished, stromboli.Outcome{Status: stromboli.Crashed, Reason: stromboli.ReasonOOM})})
	m.Request("GET", "/jobs/{id}", 200, 3*time.Millisecond)
	m.Connected([]stromboli.EgressRecord{{Kind: "model", Verdict: stromboli.EgressAllowed, Sent: 100, Received: 200, Usage: usage}, {Kind: "connect", Verdict: stromboli.EgressDenied}})
	m.Used(*usage, stromboli.Usage{TotalTokens: 20})
	m.EngineCall("start_container", "ok", time.Second)
	m.Commit("ok", 3, time.Millisecond)
	m.Commit("corrupt", 1, time.Millisecond)
	m.Attempt(stromboli.DeliveryPending)
	m.Attempt(stromboli.DeliveryDead)
	m.Component("engine", true)
	m.Component("store", false)
	m.DiskUsed("blobs", 4096)
	m.DiskFree(1000, 100)
	m.Waiting(time.Now().Add(-time.Hour), 7, 1)
	m.CredentialExpiry(time.Unix(1234567890, 0))
}

func TestMetrics(t *testing.T) {
	m := newMetrics()
	everything(t, m)
	text, _ := scrape(t, m)
	wantLines(t, text,
		`stromboli_runs_accepted_total{kind="async"} 1`,
		`stromboli_runs_total{outcome="completed",reason="none"} 1`,
		`stromboli_runs_total{outcome="crashed",reason="oom"} 1`,
		`stromboli_run_phase_duration_seconds_count{phase="queued"} 1`,
		`stromboli_run_phase_duration_seconds_count{phase="creating"} 1`,
		`stromboli_run_phase_duration_seconds_count{phase="generating"} 1`,
		`stromboli_run_start_duration_seconds_sum{start="cold"} 0.4`,
		`stromboli_tokens_total{model="claude-sonnet",type="input"} 10`,
		`stromboli_cost_dollars_total{model="claude-sonnet"} 0.25`,
		`stromboli_egress_connections_total{kind="connect",verdict="denied"} 1`,
		`stromboli_egress_connections_total{kind="model",verdict="allowed"} 1`,
		`stromboli_egress_bytes_total{direction="received"} 200`,
		`stromboli_egress_tokens_total{model="claude-sonnet",type="output"} 5`,
		`stromboli_usage_difference_tokens_total{more="agent"} 0`,
		`stromboli_usage_difference_tokens_total{more="egress"} 3`,
		`http_requests_total{method="GET",route="/jobs/{id}",status="200"} 1`,
		`http_request_duration_seconds_count{method="GET",route="/jobs/{id}",status="200"} 1`,
		`stromboli_engine_call_duration_seconds_sum{operation="start_container",outcome="ok"} 1`,
		`stromboli_store_commit_duration_seconds_count{outcome="ok"} 1`,
		`stromboli_store_commit_duration_seconds_count{outcome="corrupt"} 1`,
		`stromboli_store_writes_total 4`,
		`stromboli_webhook_attempts_total{outcome="retried"} 1`,
		`stromboli_webhook_attempts_total{outcome="dead"} 1`,
		`stromboli_webhook_deliveries{state="waiting"} 7`,
		`stromboli_queue_depth 2`, `stromboli_queue_oldest_age_seconds 3600.`, `stromboli_runs_running 3`, `stromboli_run_slots 4`,
		`stromboli_sandboxes{state="running"} 5`, `stromboli_sandboxes{state="starting"} 1`, `active_containers 5`,
		`stromboli_component_up{component="store"} 0`,
		`stromboli_disk_used_bytes{kind="blobs"} 4096`, `stromboli_disk_free_bytes 1000`, `stromboli_disk_reserve_bytes 100`,
		`stromboli_model_credential_expiry_timestamp_seconds 1.23456789e+09`,
		`stromboli_build_info{commit="abc",goversion="go`, `go_goroutines `, `process_resident_memory_bytes `,
	)
}

// Names, types and units are as Prometheus asks; those without our prefix are
// what existing dashboards know.
func TestMetricsLint(t *testing.T) {
	m := newMetrics()
	everything(t, m)
	text, families := scrape(t, m)
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	for name, f := range families {
		known := strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") ||
			name == "http_requests_total" || name == "http_request_duration_seconds" || name == "active_containers"
		if !known && !strings.HasPrefix(name, "stromboli_") || f.GetHelp() == "" {
			t.Errorf("%s: %q", name, f.GetHelp())
		}
	}
}

// Whatever callers and agents send, the number of series stays what it is.
func TestMetricsAreBounded(t *testing.T) {
	m := newMetrics()
	everything(t, m)
	hostile := func(from, to int) {
		for i := from; i < to; i++ {
			s := fmt.Sprintf("hostile-%d", i)
			m.Request(s, "/jobs/"+s, 100+i%900, time.Second)
			m.Request("GET", s, 404, time.Second)
			u := &stromboli.Usage{Model: s, InputTokens: math.MinInt64, TotalTokens: -1, EstimatedCostUSD: math.NaN()}
			m.Connected([]stromboli.EgressRecord{{Kind: s, Verdict: stromboli.EgressVerdict(s), Sent: -5, Usage: u}, {Usage: &stromboli.Usage{Model: "a\nb" + s}}})
			m.Used(*u, *u)
			m.Attempt(stromboli.DeliveryStatus(s))
			id := "run-" + s
			m.Events(id, []stromboli.Event{
				event(t, stromboli.EventRunCreated, map[string]string{"kind": s}),
				event(t, stromboli.EventPhase, stromboli.PhaseData{Phase: stromboli.Phase(s)}),
				event(t, stromboli.EventRunStarted, stromboli.StartedData{Start: s}),
				event(t, stromboli.EventPhase, stromboli.PhaseData{Phase: "again", Timing: &stromboli.StartTiming{TotalUS: -1}}),
				{Type: stromboli.EventPhase, Data: json.RawMessage("not JSON")},
				event(t, stromboli.EventRunFinished, map[string]any{"status": s, "reason": s, "usage": map[string]any{"model": s, "input_tokens": -7}}),
				{Type: stromboli.EventRunFinished, Data: json.RawMessage("{")},
			})
		}
	}
	count := func() int {
		_, families := scrape(t, m)
		n := 0
		for _, f := range families {
			n += len(f.GetMetric())
		}
		return n
	}
	hostile(0, 1000)
	after := count()
	hostile(1000, 3000)
	if more := count(); more != after || more > 700 {
		t.Errorf("%d series after 1,000 hostile rounds, %d after 3,000", after, more)
	}
}

func BenchmarkRequest(b *testing.B) {
	m := newMetrics()
	b.ReportAllocs()
	for b.Loop() {
		m.Request("GET", "/jobs/{id}", 200, time.Millisecond)
	}
}

func BenchmarkTextEvent(b *testing.B) {
	m := newMetrics()
	events := []stromboli.Event{{Type: stromboli.EventText, Data: json.RawMessage(`{"text":"x"}`)}}
	b.ReportAllocs()
	for b.Loop() {
		m.Events("run-1", events)
	}
}
