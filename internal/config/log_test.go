package config

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLogLevels(t *testing.T) {
	c := load(t, "STROMBOLI_LOG_LEVEL=warn", "STROMBOLI_LOG_LEVELS=runner=debug, engine=error", "STROMBOLI_LOG_ACCESS=false")
	parts, err := c.Log.PartLevels()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]slog.Level{"runner": slog.LevelDebug, "engine": slog.LevelError}, parts); diff != "" {
		t.Error(diff)
	}
	if c.Log.SlogLevel() != slog.LevelWarn || c.Log.Access {
		t.Errorf("level %v, access %v", c.Log.SlogLevel(), c.Log.Access)
	}
}

func TestLogAndMetricsAreRefused(t *testing.T) {
	for _, tt := range []struct{ set, want string }{
		{"STROMBOLI_LOG_LEVELS=runer=debug", `no part "runer"; the parts are api, archive, auth, egress`},
		{"STROMBOLI_LOG_LEVELS=debug", "part=level"},
		{"STROMBOLI_LOG_LEVELS=runner=loud", "not debug, info, warn or error"},
		{"STROMBOLI_LOG_LEVELS=runner=info,runner=warn", "two levels"},
		{"STROMBOLI_LOG_LEVEL=loud", "STROMBOLI_LOG_LEVEL"},
		{"STROMBOLI_LOG_FORMAT=xml", "STROMBOLI_LOG_FORMAT"},
		{"STROMBOLI_LOG_ACCESS=perhaps", "true or false"},
		{"STROMBOLI_METRICS_ADDRESS=localhost", "STROMBOLI_METRICS_ADDRESS"},
		{"STROMBOLI_METRICS_ADDRESS=localhost:http", "STROMBOLI_METRICS_ADDRESS"},
		{"STROMBOLI_METRICS_ENABLED=perhaps", "true or false"},
	} {
		if _, err := Load([]string{"HOME=/home/u", tt.set}); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.set, err)
		}
	}
}

func TestMetricsAddress(t *testing.T) {
	c := load(t)
	if want := (Metrics{Enabled: true, Address: "127.0.0.1:9090"}); c.Metrics != want || c.Metrics.Public() {
		t.Errorf("%+v, public %v", c.Metrics, c.Metrics.Public())
	}
	if c := load(t, "STROMBOLI_METRICS_ADDRESS=:9090"); !c.Metrics.Public() {
		t.Error("an address of all interfaces is not public")
	}
}
