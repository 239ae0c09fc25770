package main

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/api"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/sandbox"
	"github.com/tomblancdev/stromboli/internal/store"
	"github.com/tomblancdev/stromboli/internal/telemetry"
)

const (
	// sampleOften is for what costs a query, or a question to the engine.
	sampleOften = 5 * time.Second
	// sampleDisk is the pause between two measurements of everything on the disk,
	// and sampleDiskLimit how long one may take.
	sampleDisk      = 5 * time.Minute
	sampleDiskLimit = 6 * time.Hour
)

// newMetrics makes the metrics; what they read of the parts they read once these
// are open.
func (s *server) newMetrics() *telemetry.Metrics {
	return telemetry.NewMetrics(telemetry.MetricsConfig{
		Version: version, Commit: commit, Routes: api.Routes(),
		Live: func() telemetry.Live {
			load, boxes := s.runner.Load(), s.boxes.Counts()
			return telemetry.Live{
				RunsPending: load.Pending, RunsRunning: load.Running, RunSlots: load.Slots,
				SandboxesStarting: boxes.Starting, SandboxesRunning: boxes.Running, SandboxesEnding: boxes.Ending,
			}
		},
	})
}

// committed tells of a transaction of the store's.
func (s *server) committed(took time.Duration, writes int, err error) {
	outcome := "error"
	switch {
	case err == nil:
		outcome = "ok"
	case errors.Is(err, stromboli.StorageFull):
		outcome = "full"
	case errors.Is(err, store.ErrLocked):
		outcome = "locked"
	case errors.Is(err, store.ErrCorrupt):
		outcome = "corrupt"
	}
	s.metrics.Commit(outcome, writes, took)
}

// called tells of a call of the engine's.
func (s *server) called(operation string, took time.Duration, err error) {
	outcome := "error"
	switch {
	case err == nil:
		outcome = "ok"
	case errors.Is(err, engine.ErrUnavailable):
		outcome = "unavailable"
	case errors.Is(err, engine.ErrNotFound), errors.Is(err, engine.ErrImageMissing):
		outcome = "missing"
	case errors.Is(err, engine.ErrConflict):
		outcome = "conflict"
	case errors.Is(err, engine.ErrStorageFull):
		outcome = "full"
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		outcome = "cancelled"
	}
	s.metrics.EngineCall(operation, outcome, took)
}

// metricsHandler answers GET /metrics of the API; nil: they are switched off.
func (s *server) metricsHandler() http.Handler {
	if !s.cfg.Metrics.Enabled {
		return nil
	}
	return s.metrics.Handler()
}

func (s *server) served(r api.Served) { s.metrics.Request(r.Method, r.Route, r.Status, r.Took) }

// watched is the store, of whose commits others are told beside who asked for it.
type watched struct {
	*store.Store
	also []func(runID string, events []stromboli.Event)
}

// OnCommit implements eventlog.Store.
func (w watched) OnCommit(fn func(runID string, events []stromboli.Event)) {
	w.Store.OnCommit(func(runID string, events []stromboli.Event) {
		fn(runID, events)
		for _, also := range w.also {
			also(runID, events)
		}
	})
}

// measure looks for what metrics tell and nobody tells them, until ctx ends,
// and serves them at their own address.
func (s *server) measure(ctx context.Context) error {
	if !s.cfg.Metrics.Enabled {
		return nil
	}
	if s.cfg.Metrics.Public() {
		s.log.WarnContext(ctx, "whoever reaches the metrics' address can read them (STROMBOLI_METRICS_ADDRESS)", "address", s.cfg.Metrics.Address)
	}
	served := make(chan error, 1)
	go func() { served <- s.metrics.Serve(ctx, s.cfg.Metrics.Address, s.log) }()
	err := s.metrics.Run(ctx,
		telemetry.Sample{Name: "waiting", Every: sampleOften, Limit: 2 * sampleOften, Look: s.sampleWaiting},
		telemetry.Sample{Name: "parts", Every: sampleOften, Limit: 2 * sampleOften, Look: s.sampleParts},
		telemetry.Sample{Name: "disk", Every: sampleDisk, Limit: sampleDiskLimit, Look: s.sampleDisk},
	)
	return errors.Join(err, <-served)
}

func (s *server) sampleWaiting(ctx context.Context) error {
	w, err := s.store.Waiting(ctx)
	if err != nil {
		return err
	}
	s.metrics.Waiting(w.Oldest, w.Deliveries, w.Dead)
	sizes, err := s.store.Sizes()
	if err != nil {
		return err
	}
	s.metrics.DiskUsed("database", sizes.Database+sizes.WAL)
	space, err := s.boxes.Space()
	if err != nil {
		return err
	}
	s.metrics.DiskFree(space.Free, space.Reserve)
	return nil
}

// sampleParts looks at what /health tells.
func (s *server) sampleParts(ctx context.Context) error {
	for _, p := range s.health.Ask(ctx) {
		if p.Known {
			s.metrics.Component(p.Name, p.Fault == "")
		}
	}
	for _, c := range s.remembered() {
		s.metrics.Component(c.Name, c.Error == "")
	}
	if !s.demo {
		s.metrics.CredentialExpiry(s.model.read().expiry())
	}
	return nil
}

// expiry is when the first of all tenants' credentials ends that tell; zero:
// none does.
func (c credentials) expiry() time.Time {
	first := c.common.Expires
	for _, t := range c.tenants {
		if !t.Expires.IsZero() && (first.IsZero() || t.Expires.Before(first)) {
			first = t.Expires
		}
	}
	return first
}

// sampleDisk measures the directories of what is kept, one after the other.
func (s *server) sampleDisk(ctx context.Context) error {
	archives, failed := s.store.ArchiveBytes(ctx)
	if failed == nil {
		s.metrics.DiskUsed("archives", archives)
	}
	var among int64 // the sessions, where these share their directory with others
	sessions := s.cfg.SessionsDir()
	for _, d := range []struct{ kind, path string }{
		{"blobs", filepath.Join(s.dir.path, "blobs")},
		{"sandboxes", filepath.Join(s.cfg.SharedDir(), "sb")},
		{"cache", s.cfg.CacheDir},
		{"sessions", sessions},
	} {
		n, err := sandbox.MeasureDir(ctx, d.path)
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		switch {
		case d.kind == "sessions":
			n = max(n-among, 0)
		case strings.HasPrefix(d.path, sessions+"/"):
			among += n
		}
		s.metrics.DiskUsed(d.kind, n)
	}
	return failed
}
