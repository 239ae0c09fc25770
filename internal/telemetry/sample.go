package telemetry

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// sampled are metrics of what must be looked for: in the background, so that a
// scrape never waits for it.
type sampled struct {
	components *prometheus.GaugeVec
	disk       *prometheus.GaugeVec
	diskFree   prometheus.Gauge
	diskKept   prometheus.Gauge
	deliveries *prometheus.GaugeVec
	failures   *prometheus.CounterVec
	sampledAt  *prometheus.GaugeVec
	oldest     instant
	expiry     instant
}

func (m *Metrics) registerSampled() {
	m.components = m.gauges("stromboli_component_up", "1 where a part of the server is well, as /health tells it, and 0 where it isn't.", "component")
	m.disk = m.gauges("stromboli_disk_used_bytes", "What is kept takes of the disk, by kind.", "kind")
	m.diskFree = prometheus.NewGauge(prometheus.GaugeOpts{Name: "stromboli_disk_free_bytes", Help: "Free space where it is scarcest for the server and its sandboxes."})
	m.diskKept = prometheus.NewGauge(prometheus.GaugeOpts{Name: "stromboli_disk_reserve_bytes", Help: "Free space there below which no run is started."})
	m.deliveries = m.gauges("stromboli_webhook_deliveries", "Deliveries of webhooks: those that wait, and those that were given up.", "state")
	m.failures = m.counters("stromboli_sample_failures_total", "Looks at something measured in the background that failed.", "sample")
	m.sampledAt = m.gauges("stromboli_sample_timestamp_seconds", "When something measured in the background was last looked at with success.", "sample")
	m.oldest.desc = prometheus.NewDesc("stromboli_queue_oldest_age_seconds", "Age of the run that waits longest for a slot; 0 where none waits.", nil, nil)
	m.oldest.value = func(at time.Time) (float64, bool) {
		if at.IsZero() {
			return 0, true
		}
		return max(time.Since(at).Seconds(), 0), true
	}
	m.expiry.desc = prometheus.NewDesc("stromboli_model_credential_expiry_timestamp_seconds", "When the credential for the model ends, of several the first; missing where that isn't known.", nil, nil)
	m.expiry.value = func(at time.Time) (float64, bool) { return float64(at.Unix()), !at.IsZero() }
	m.register(m.diskFree, m.diskKept, &m.oldest, &m.expiry)
}

// Component tells whether a part is well. Parts are a fixed set.
func (m *Metrics) Component(name string, well bool) {
	up := 0.0
	if well {
		up = 1
	}
	m.components.WithLabelValues(name).Set(up)
}

// DiskUsed tells what a kind of data takes. Kinds are a fixed set.
func (m *Metrics) DiskUsed(kind string, bytes int64) {
	m.disk.WithLabelValues(kind).Set(float64(bytes))
}

// DiskFree tells the free space, and how much of it new runs leave alone.
func (m *Metrics) DiskFree(free, reserve int64) {
	m.diskFree.Set(float64(free))
	m.diskKept.Set(float64(reserve))
}

// Waiting tells since when the oldest pending run waits (zero: none does), and
// how many deliveries wait and were given up.
func (m *Metrics) Waiting(oldest time.Time, deliveries, dead int64) {
	m.oldest.set(oldest)
	m.deliveries.WithLabelValues("waiting").Set(float64(deliveries))
	m.deliveries.WithLabelValues("dead").Set(float64(dead))
}

// CredentialExpiry tells when the model's credential ends; zero: not known.
func (m *Metrics) CredentialExpiry(at time.Time) { m.expiry.set(at) }

// Sample is something to be looked for every so often.
type Sample struct {
	Name  string
	Every time.Duration // between the end of a look and the next
	Limit time.Duration // of a look
	Look  func(context.Context) error
}

// Run takes samples until ctx ends, each in a goroutine of its own, so that one
// which is slow delays no other.
func (m *Metrics) Run(ctx context.Context, samples ...Sample) error {
	var all sync.WaitGroup
	for _, s := range samples {
		m.failures.WithLabelValues(s.Name)
		all.Go(func() { m.take(ctx, s) })
	}
	all.Wait()
	return nil
}

func (m *Metrics) take(ctx context.Context, s Sample) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if ctx.Err() != nil {
			return
		}
		look, cancel := context.WithTimeout(ctx, s.Limit)
		err := s.Look(look)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			m.failures.WithLabelValues(s.Name).Inc()
		default:
			m.sampledAt.WithLabelValues(s.Name).SetToCurrentTime()
		}
		timer.Reset(s.Every)
	}
}

// instant is a gauge of a time, whose value may depend on when it is asked for.
// It is missing until the time was told.
type instant struct {
	desc  *prometheus.Desc
	value func(time.Time) (float64, bool)

	mu   sync.Mutex
	at   time.Time
	told bool
}

func (i *instant) set(at time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.at, i.told = at, true
}

// Describe implements prometheus.Collector.
func (i *instant) Describe(ch chan<- *prometheus.Desc) { ch <- i.desc }

// Collect implements prometheus.Collector.
func (i *instant) Collect(ch chan<- prometheus.Metric) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if v, ok := i.value(i.at); ok && i.told {
		ch <- prometheus.MustNewConstMetric(i.desc, prometheus.GaugeValue, v)
	}
}
