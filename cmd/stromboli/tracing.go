package main

import (
	"fmt"
	"log/slog"

	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/eventlog"
	"github.com/tomblancdev/stromboli/internal/tracing"
)

// newTracing returns what makes traces: nil where there are none.
func newTracing(cfg *config.Config, events *eventlog.Log, log *slog.Logger) (*tracing.Tracer, error) {
	if !cfg.Tracing.Enabled {
		return nil, nil //nolint:nilnil // that is the meaning
	}
	endpoint, err := traceEndpoint(cfg)
	if err != nil {
		return nil, err
	}
	t, err := tracing.New(tracing.Config{
		Endpoint: endpoint, ServiceName: cfg.Tracing.ServiceName, Version: version, SampleRatio: cfg.Tracing.SampleRatio,
		Agents: cfg.Tracing.Agents, Events: events, Log: log,
	})
	if err != nil {
		return nil, err
	}
	events.OnEnd(t.Ended)
	return t, nil
}

// traceEndpoint is where traces go, where there are any.
func traceEndpoint(cfg *config.Config) (tracing.Endpoint, error) {
	if !cfg.Tracing.Enabled {
		return tracing.Endpoint{}, nil
	}
	endpoint, err := tracing.ParseEndpoint(cfg.Tracing.Endpoint, cfg.Tracing.Protocol, cfg.Tracing.Insecure)
	if err != nil {
		return endpoint, fmt.Errorf("STROMBOLI_TRACING_ENDPOINT: %w", err)
	}
	return endpoint, nil
}
