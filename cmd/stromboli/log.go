package main

import (
	"slices"
	"strings"

	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/telemetry"
)

// newLogs is the log that configuration asks for, at p's stderr.
func newLogs(cfg config.Log, p process) *telemetry.Log {
	parts, _ := cfg.PartLevels() // validated
	return telemetry.NewLog(telemetry.LogConfig{
		Writer: p.stderr, JSON: cfg.Format == "json", Journal: telemetry.ToJournal(getenv(p.environ, "JOURNAL_STREAM"), p.stderr),
		Level: cfg.SlogLevel(), Parts: parts,
	})
}

// getenv is the value of a variable, as the last one of its name says it.
func getenv(environ []string, name string) string {
	for _, kv := range slices.Backward(environ) {
		if n, value, _ := strings.Cut(kv, "="); n == name {
			return value
		}
	}
	return ""
}
