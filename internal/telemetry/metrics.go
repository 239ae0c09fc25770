package telemetry

import (
	"net/http"
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/tomblancdev/stromboli"
)

// MetricsConfig makes Metrics.
type MetricsConfig struct {
	Version, Commit string
	// Routes are the paths of the API's patterns; requests for others are
	// counted together.
	Routes []string
	// Live is asked at each scrape. It must not wait for anything.
	Live func() Live
}

// Live is what a scrape finds in memory.
type Live struct {
	RunsPending, RunsRunning, RunSlots                   int
	SandboxesStarting, SandboxesRunning, SandboxesEnding int
}

// Metrics counts what the server does. Its methods may be called from many
// goroutines, wait for nothing and cost about a microsecond.
type Metrics struct {
	registry *prometheus.Registry
	routes   oneOf
	models   models
	runs     runWatch

	requests        *prometheus.CounterVec
	requestDuration *prometheus.HistogramVec

	runsAccepted, runsEnded    *prometheus.CounterVec
	phaseDuration, startLength *prometheus.HistogramVec
	tokens, cost               *prometheus.CounterVec
	usage, usageDifference     *prometheus.CounterVec

	connections, connectionBytes, egressTokens *prometheus.CounterVec

	engineDuration *prometheus.HistogramVec
	commitDuration *prometheus.HistogramVec
	commitWrites   prometheus.Counter
	attempts       *prometheus.CounterVec

	sampled
}

// NewMetrics returns Metrics in a registry of their own.
func NewMetrics(cfg MetricsConfig) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), routes: setOf(cfg.Routes...)}
	m.runs.live = make(map[string]liveRun)
	m.register(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		liveCollector{cfg.Live},
	)
	build := m.gauges("stromboli_build_info", "Always 1; what is running is in the labels.", "version", "commit", "goversion")
	build.WithLabelValues(cfg.Version, cfg.Commit, runtime.Version()).Set(1)

	m.requests = m.counters("http_requests_total", "Requests answered, by route.", "method", "route", "status")
	m.requestDuration = m.histograms("http_request_duration_seconds", "From a request's header to the end of its answer; of a stream, its life.",
		[]float64{.001, .005, .025, .1, .5, 2.5, 10, 60, 600}, "method", "route", "status")

	m.runsAccepted = m.counters("stromboli_runs_accepted_total", "Runs that were made, by how their callers wait.", "kind")
	m.runsEnded = m.counters("stromboli_runs_total", "Runs that ended, by outcome and reason.", "outcome", "reason")
	m.phaseDuration = m.histograms("stromboli_run_phase_duration_seconds", "How long runs were in a phase.",
		[]float64{.01, .05, .1, .25, .5, 1, 2.5, 10, 30, 60, 300, 1800, 7200}, "phase")
	m.startLength = m.histograms("stromboli_run_start_duration_seconds", "From a request to the message on the agent's input, of runs that had not to wait, by kind of start.",
		[]float64{.05, .1, .2, .3, .5, .75, 1, 2, 5, 15, 60}, "start")
	m.tokens = m.counters("stromboli_tokens_total", "Tokens that ended runs used, as their agents say.", "model", "type")
	m.cost = m.counters("stromboli_cost_dollars_total", "Cost of ended runs by list prices, as their agents estimate it.", "model")
	m.usage = m.counters("stromboli_usage_compared_tokens_total", "Tokens of runs whose usage both told: the agent, and egress from the model's answers.", "source")
	m.usageDifference = m.counters("stromboli_usage_difference_tokens_total", "Sum over those runs of the tokens by which one told more than the other.", "more")

	m.connections = m.counters("stromboli_egress_connections_total", "Connections of sandboxes that ended, by kind and verdict.", "kind", "verdict")
	m.connectionBytes = m.counters("stromboli_egress_bytes_total", "Bytes that they sent and received.", "direction")
	m.egressTokens = m.counters("stromboli_egress_tokens_total", "Tokens that egress counted in the model's answers, when each was over.", "model", "type")

	m.engineDuration = m.histograms("stromboli_engine_call_duration_seconds", "Until the container engine answered a call.",
		[]float64{.005, .025, .1, .25, .5, 1, 5, 30, 120}, "operation", "outcome")
	m.commitDuration = m.histograms("stromboli_store_commit_duration_seconds", "Transactions of the database, until they were on the disk.",
		[]float64{.0005, .001, .0025, .005, .01, .025, .1, .5, 2.5, 10}, "outcome")
	m.commitWrites = prometheus.NewCounter(prometheus.CounterOpts{Name: "stromboli_store_writes_total", Help: "Writes in those transactions."})
	m.register(m.commitWrites)
	m.attempts = m.counters("stromboli_webhook_attempts_total", "Attempts to deliver a webhook, by what came of them.", "outcome")

	m.registerSampled()
	m.preset()
	return m
}

// preset makes series that alerts look at exist before anything has happened:
// a first increase from nothing is not seen.
func (m *Metrics) preset() {
	for _, outcome := range []string{"ok", "full", "locked", "corrupt", "error"} {
		m.commitDuration.WithLabelValues(outcome)
	}
	for _, outcome := range []string{"delivered", "retried", "dead"} {
		m.attempts.WithLabelValues(outcome)
	}
	for _, more := range []string{"agent", "egress"} {
		m.usage.WithLabelValues(more)
		m.usageDifference.WithLabelValues(more)
	}
}

func (m *Metrics) register(all ...prometheus.Collector) { m.registry.MustRegister(all...) }

func (m *Metrics) counters(name, help string, labels ...string) *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	m.register(v)
	return v
}

func (m *Metrics) gauges(name, help string, labels ...string) *prometheus.GaugeVec {
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	m.register(v)
	return v
}

func (m *Metrics) histograms(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	m.register(v)
	return v
}

// Handler answers scrapes from memory alone.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// Request counts a request that was answered. Methods, routes and statuses
// beyond HTTP's and the API's own are counted together; status 0 is a client
// that went away, counted as 499.
func (m *Metrics) Request(method, route string, status int, took time.Duration) {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
	default:
		method = other
	}
	code := other
	switch {
	case status == 0:
		code = "499"
	case http.StatusText(status) != "":
		code = strconv.Itoa(status)
	}
	route = m.routes.of(route)
	m.requests.WithLabelValues(method, route, code).Inc()
	m.requestDuration.WithLabelValues(method, route, code).Observe(took.Seconds())
}

// Connected counts connections of sandboxes, when their records are stored.
func (m *Metrics) Connected(records []stromboli.EgressRecord) {
	for _, r := range records {
		m.connections.WithLabelValues(connectionKinds().of(r.Kind), connectionVerdicts().of(string(r.Verdict))).Inc()
		m.connectionBytes.WithLabelValues("sent").Add(amount(r.Sent))
		m.connectionBytes.WithLabelValues("received").Add(amount(r.Received))
		if r.Usage != nil {
			countTokens(m.egressTokens, m.models.of(r.Usage.Model), r.Usage)
		}
	}
}

func connectionKinds() oneOf { return setOf("connect", "binding", "request", "model") }

func connectionVerdicts() oneOf {
	return setOf(stromboli.EgressAllowed, stromboli.EgressDenied, stromboli.EgressFailed)
}

// Used compares what an agent said that its run used with what egress counted.
func (m *Metrics) Used(agent, egress stromboli.Usage) {
	told, counted := amount(agent.TotalTokens), amount(egress.TotalTokens)
	m.usage.WithLabelValues("agent").Add(told)
	m.usage.WithLabelValues("egress").Add(counted)
	m.usageDifference.WithLabelValues("agent").Add(max(told-counted, 0))
	m.usageDifference.WithLabelValues("egress").Add(max(counted-told, 0))
}

// EngineCall counts a call of the engine. Operations and outcomes come from
// fixed sets.
func (m *Metrics) EngineCall(operation, outcome string, took time.Duration) {
	m.engineDuration.WithLabelValues(operation, outcome).Observe(took.Seconds())
}

// Commit counts a transaction; outcome is of a fixed set.
func (m *Metrics) Commit(outcome string, writes int, took time.Duration) {
	m.commitDuration.WithLabelValues(outcome).Observe(took.Seconds())
	m.commitWrites.Add(float64(writes))
}

// Attempt counts an attempt to deliver a webhook.
func (m *Metrics) Attempt(then stromboli.DeliveryStatus) {
	outcome := "retried"
	switch then {
	case stromboli.DeliveryDelivered, stromboli.DeliveryDead:
		outcome = string(then)
	case stromboli.DeliveryPending, stromboli.DeliverySending:
	}
	m.attempts.WithLabelValues(outcome).Inc()
}

func countTokens(to *prometheus.CounterVec, model string, u *stromboli.Usage) {
	to.WithLabelValues(model, "input").Add(amount(u.InputTokens))
	to.WithLabelValues(model, "output").Add(amount(u.OutputTokens))
	to.WithLabelValues(model, "cache_creation").Add(amount(u.CacheCreationInputTokens))
	to.WithLabelValues(model, "cache_read").Add(amount(u.CacheReadInputTokens))
}

// amount is a number that may be added to a counter, whoever told it: what is
// negative would be a panic.
func amount[T int64 | float64](n T) float64 {
	if f := float64(n); f > 0 && f < 1e15 {
		return f
	}
	return 0
}

// liveCollector reads what is live when it is asked.
type liveCollector struct{ live func() Live }

func liveDescs() (depth, running, slots, sandboxes, containers *prometheus.Desc) {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return desc("stromboli_queue_depth", "Runs that wait for a free slot."),
		desc("stromboli_runs_running", "Slots in use."),
		desc("stromboli_run_slots", "Runs that may be active at once."),
		desc("stromboli_sandboxes", "Sandboxes by state.", "state"),
		desc("active_containers", "Containers of sandboxes that are running.")
}

// Describe implements prometheus.Collector.
func (c liveCollector) Describe(ch chan<- *prometheus.Desc) {
	depth, running, slots, sandboxes, containers := liveDescs()
	for _, d := range []*prometheus.Desc{depth, running, slots, sandboxes, containers} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c liveCollector) Collect(ch chan<- prometheus.Metric) {
	depth, running, slots, sandboxes, containers := liveDescs()
	l := c.live()
	tell := func(d *prometheus.Desc, n int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	tell(depth, l.RunsPending)
	tell(running, l.RunsRunning)
	tell(slots, l.RunSlots)
	tell(sandboxes, l.SandboxesStarting, "starting")
	tell(sandboxes, l.SandboxesRunning, "running")
	tell(sandboxes, l.SandboxesEnding, "ending")
	tell(containers, l.SandboxesRunning)
}
