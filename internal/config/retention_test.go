package config

import (
	"strings"
	"testing"
	"time"
)

func TestRetentionFollowsOlderSettings(t *testing.T) {
	env := []string{"STROMBOLI_JOBS_CLEANUP_TTL=48h", "STROMBOLI_WEBHOOK_CLEANUP_TTL=72h"}
	c := load(t, env...)
	if c.Retention.Runs != 48*time.Hour || c.Retention.Deliveries != 72*time.Hour {
		t.Errorf("runs %v, deliveries %v", c.Retention.Runs, c.Retention.Deliveries)
	}
	c = load(t, append(env, "STROMBOLI_RETENTION_RUNS=5h", "STROMBOLI_RETENTION_DELIVERIES=6h", "STROMBOLI_RETENTION_EVENTS=0")...)
	if c.Retention.Runs != 5*time.Hour || c.Retention.Deliveries != 6*time.Hour || c.Retention.Events != 0 {
		t.Errorf("%+v", c.Retention)
	}
}

func TestRetentionRefuses(t *testing.T) {
	for _, bad := range []string{"EVENTS=1s", "ARCHIVES=-1h", "RUNS=30s", "SESSIONS=59s", "AUDIT=1s", "DELIVERIES=1s", "IDEMPOTENCY_KEYS=0", "CLI_VERSIONS=1s", "IMAGES=1s"} {
		_, err := Load([]string{"HOME=/home/me", "STROMBOLI_RETENTION_" + bad})
		name, _, _ := strings.Cut(bad, "=")
		if err == nil || !strings.Contains(err.Error(), "STROMBOLI_RETENTION_"+name) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
