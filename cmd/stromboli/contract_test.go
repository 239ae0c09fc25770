package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/api"
	"github.com/tomblancdev/stromboli/internal/api/apitest"
	"github.com/tomblancdev/stromboli/internal/auth"
	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/policy"
	"github.com/tomblancdev/stromboli/internal/retention"
	"github.com/tomblancdev/stromboli/internal/store"
	"github.com/tomblancdev/stromboli/internal/telemetry"
)

// contractSettings are the names that existing deployments use, each with the
// test that observes its effect, or the warning that it has none.
func contractSettings() map[string]string {
	const (
		here     = "cmd/stromboli/contract_test.go:"
		noEffect = "internal/config/file_test.go:TestNoEffect"
	)
	return map[string]string{
		"SERVER_ADDRESS":               "e2e/listen_test.go:TestServeUnix",
		"AGENT_IMAGE":                  "e2e/container_test.go:TestServerInContainer",
		"AGENT_IMAGE_TAG":              here + "TestImageTag",
		"AGENT_CREDENTIALS_FILE":       here + "TestCredentialSettings",
		"AGENT_SECRETS_FILE":           "e2e/credential_test.go:TestCredentialRotates",
		"AGENT_SESSIONS_DIR":           "e2e/container_test.go:TestServerInContainer",
		"AGENT_SESSIONS_HOST_DIR":      "e2e/container_test.go:TestServerInContainer",
		"AGENT_ALLOWED_VOLUMES":        "e2e/volumes_test.go:TestVolumes",
		"AGENT_ALLOW_ALL_VOLUMES":      "e2e/volumes_test.go:TestOperatorsLimits",
		"AGENT_ALLOWED_IMAGE_PATTERNS": "e2e/registry_test.go:TestRegistry",
		"AGENT_WORKDIR_AUTO_CREATE":    "e2e/volumes_test.go:TestOperatorsLimits",
		"AGENT_MOUNT_CLAUDE_CLI":       noEffect,
		"AGENT_CLI_IMAGE":              noEffect,
		"AGENT_CLI_IMAGE_TAG":          noEffect,
		"AGENT_AUTO_PULL_CLI":          noEffect,
		"RESOURCES_MEMORY":             here + "TestLimitSettings",
		"RESOURCES_CPUS":               here + "TestLimitSettings",
		"RESOURCES_TIMEOUT":            here + "TestLimitSettings",
		"AUTH_ENABLED":                 "e2e/auth_test.go:TestAuth",
		"API_TOKENS":                   here + "TestTokenSettings",
		"JWT_SECRET":                   here + "TestTokenSettings",
		"JWT_EXPIRY":                   here + "TestTokenSettings",
		"JWT_REFRESH_EXPIRY":           here + "TestTokenSettings",
		"RATE_LIMIT_ENABLED":           here + "TestRateSettings",
		"RATE_LIMIT_RPS":               here + "TestRateSettings",
		"RATE_LIMIT_BURST":             here + "TestRateSettings",
		"RATE_LIMIT_TRUSTED_PROXIES":   here + "TestRateSettings",
		"JOBS_CLEANUP_TTL":             here + "TestCleanupSettings",
		"JOBS_CLEANUP_INTERVAL":        here + "TestCleanupSettings",
		"TRACING_ENABLED":              "e2e/tracing_test.go:TestTrace",
		"TRACING_ENDPOINT":             "e2e/tracing_test.go:TestTrace",
		"TRACING_SERVICE_NAME":         "e2e/tracing_test.go:TestTrace",
		"TRACING_INSECURE":             "internal/tracing/http_test.go:TestParseEndpoint",
		"METRICS_ENABLED":              "e2e/telemetry_test.go:TestMetricsPortTaken",
		"METRICS_ADDRESS":              "e2e/telemetry_test.go:TestMetricsPortTaken",
		"LOG_FORMAT":                   here + "TestLogSettings",
		"LOG_LEVEL":                    "e2e/config_test.go:TestReload",
		"WEBHOOK_SIGNING_SECRET":       "e2e/webhooks_test.go:TestWebhooks",
		"WEBHOOK_ALLOW":                "e2e/webhooks_test.go:TestWebhooks",
		"COMPOSE_ALLOW_PRIVILEGED":     noEffect,
		"COMPOSE_ALLOW_HOST_NETWORK":   noEffect,
		"COMPOSE_ALLOW_HOST_VOLUMES":   noEffect,
		"COMPOSE_BUILD_TIMEOUT":        noEffect,
		"COMPOSE_HEALTH_TIMEOUT":       noEffect,
		"COMPOSE_STACK_TTL":            noEffect,
		"CONTAINER_HOST":               "e2e/doctor_test.go:TestDoctor",
		"TLS_CERT":                     "e2e/listen_test.go:TestServeTLS",
		"TLS_KEY":                      "e2e/listen_test.go:TestServeTLS",
	}
}

// TestContractSettings: each of the contract's settings is taken, and the test
// that is named for it is there.
func TestContractSettings(t *testing.T) {
	for name, place := range contractSettings() {
		variable := "STROMBOLI_" + name
		if name == "CONTAINER_HOST" {
			variable = name
		}
		_, err := config.Load([]string{"HOME=/h", variable + "="})
		if err != nil {
			t.Errorf("%s: %v", variable, err)
		}
		file, test, _ := strings.Cut(place, ":")
		b, err := os.ReadFile(filepath.Join("../..", file))
		if err != nil || !strings.Contains(string(b), "\nfunc "+test+"(t *testing.T) {") {
			t.Errorf("%s: there is no test %s (%v)", variable, place, err)
		}
		if !strings.Contains(string(b), name) {
			t.Errorf("%s: %s doesn't mention it", variable, file)
		}
	}
}

func TestImageTag(t *testing.T) {
	cfg, err := config.Load([]string{"HOME=/h", "STROMBOLI_AGENT_IMAGE=python", "STROMBOLI_AGENT_IMAGE_TAG=3.12"})
	must(t, err)
	p, err := newPolicies(cfg, nil, slog.New(slog.DiscardHandler))
	must(t, err)
	plan, err := policy.Check(stromboli.RunSpec{Prompt: "x"}, p.limits)
	if err != nil || plan.Image != "python:3.12" || p.image != plan.Image {
		t.Errorf("%s, %v", plan.Image, err)
	}
}

func TestCredentialSettings(t *testing.T) {
	path := filepath.Join(t.TempDir(), "credentials.json")
	must(t, os.WriteFile(path, []byte(`{"claudeAiOauth":{"accessToken":"sk-ant-oat01-x"}}`), 0o600))
	environ := []string{"HOME=/h", "STROMBOLI_AGENT_CREDENTIALS_FILE=" + path}
	cfg, err := config.Load(environ)
	must(t, err)
	to := &told{}
	m, err := newModel(cfg, environ, false, to, slog.New(slog.DiscardHandler))
	must(t, err)
	if _, err := m.Ready(t.Context(), stromboli.DefaultTenant); err != nil || to.configs[0].Credential.Value != "sk-ant-oat01-x" {
		t.Errorf("%v", err)
	}
}

// A run that asks for nothing gets what configuration says.
func TestLimitSettings(t *testing.T) {
	cfg, err := config.Load([]string{"HOME=/h", "STROMBOLI_RESOURCES_MEMORY=768m", "STROMBOLI_RESOURCES_CPUS=1.5", "STROMBOLI_RESOURCES_TIMEOUT=7m"})
	must(t, err)
	limits, err := policyConfig(cfg, "i")
	must(t, err)
	plan, err := policy.Check(stromboli.RunSpec{Prompt: "x"}, limits)
	if err != nil || plan.MemoryBytes != 768<<20 || plan.NanoCPUs != 1.5e9 || plan.SandboxTimeout != 7*time.Minute {
		t.Errorf("%+v, %v", plan, err)
	}
}

func newStore(t *testing.T, now func() time.Time) *store.Store {
	t.Helper()
	st, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "db"), Now: now})
	must(t, err)
	t.Cleanup(func() { must(t, st.Close()) })
	return st
}

func TestTokenSettings(t *testing.T) {
	environ := []string{
		"HOME=/h", "STROMBOLI_AUTH_ENABLED=true", "STROMBOLI_API_TOKENS=one-token-that-is-long, two-token-that-is-long",
		"STROMBOLI_JWT_SECRET=" + strings.Repeat("x", auth.MinSecret), "STROMBOLI_JWT_EXPIRY=3m", "STROMBOLI_JWT_REFRESH_EXPIRY=5h",
	}
	cfg, err := config.Load(environ)
	must(t, err)
	s := &server{cfg: cfg, environ: environ, log: slog.New(slog.DiscardHandler), logs: telemetry.NewLog(telemetry.LogConfig{Writer: io.Discard}), store: newStore(t, nil)}
	s.policies, err = newPolicies(cfg, environ, s.log)
	must(t, err)
	must(t, s.openAuth())
	who, err := s.auth.Identify(t.Context(), "two-token-that-is-long")
	if err != nil || who.Name != "token-2" {
		t.Fatalf("%+v, %v", who, err)
	}
	pair, err := s.auth.Issue(t.Context(), who, "c")
	must(t, err)
	by, err := s.auth.Identify(t.Context(), pair.Access)
	if left := time.Until(by.Expires); err != nil || left > 3*time.Minute || left < 2*time.Minute {
		t.Errorf("an access token lives %s, %v", left, err)
	}
	var claims struct{ Exp int64 }
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(pair.Refresh, ".")[1])
	must(t, err)
	must(t, json.Unmarshal(payload, &claims))
	if left := time.Until(time.Unix(claims.Exp, 0)); left > 5*time.Hour || left < 4*time.Hour {
		t.Errorf("a refresh token lives %s", left)
	}
	// A token that is gone from configuration is nobody's, and so is what it made.
	must(t, s.auth.SetTokens(s.policies.tokens[:1]))
	for _, credential := range []string{"two-token-that-is-long", pair.Access} {
		if _, err := s.auth.Identify(t.Context(), credential); !errors.Is(err, stromboli.Unauthenticated) {
			t.Errorf("a credential that was taken away: %v", err)
		}
	}
	// After an error nothing has changed.
	if err := s.auth.SetTokens(slices.Concat(s.policies.tokens, s.policies.tokens)); err == nil {
		t.Error("two tokens of one name were taken")
	}
	if _, err := s.auth.Identify(t.Context(), "one-token-that-is-long"); err != nil {
		t.Error(err)
	}
}

func TestRateSettings(t *testing.T) {
	environ := []string{"HOME=/h", "STROMBOLI_RATE_LIMIT_RPS=0.01", "STROMBOLI_RATE_LIMIT_BURST=2", "STROMBOLI_RATE_LIMIT_TRUSTED_PROXIES=127.0.0.0/8"}
	for _, enabled := range []bool{false, true} {
		if enabled {
			environ = append(environ, "STROMBOLI_RATE_LIMIT_ENABLED=true")
		}
		cfg, err := config.Load(environ)
		must(t, err)
		rate, err := rateLimit(cfg)
		must(t, err)
		url := serveFake(t, apitest.New(), func(c *api.Config) { c.RateLimit = rate })
		ask := func(from string) *http.Response {
			t.Helper()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/version", nil)
			must(t, err)
			req.Header.Set("X-Forwarded-For", from)
			resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
			must(t, err)
			must(t, resp.Body.Close())
			return resp
		}
		if !enabled {
			for range 3 {
				if resp := ask("192.0.2.1"); resp.StatusCode != http.StatusOK || resp.Header.Get("X-Ratelimit-Limit") != "" {
					t.Errorf("without limits: %d", resp.StatusCode)
				}
			}
			continue
		}
		for i, want := range []int{200, 200, 429} {
			resp := ask("192.0.2.1")
			if resp.StatusCode != want || resp.Header.Get("X-Ratelimit-Limit") != "2" {
				t.Errorf("request %d: %d, %v", i+1, resp.StatusCode, resp.Header)
			}
			if after := resp.Header.Get("Retry-After"); want == 429 && len(after) < 2 { // a token every 100 s
				t.Errorf("again after %s", after)
			}
		}
		if resp := ask("192.0.2.2"); resp.StatusCode != http.StatusOK {
			t.Errorf("another behind the same proxy: %d", resp.StatusCode)
		}
	}
}

// Finished runs are deleted at their age, every so often.
func TestCleanupSettings(t *testing.T) {
	began := time.Now().Add(-2 * time.Hour)
	st := newStore(t, func() time.Time { return began })
	finish := func() string {
		t.Helper()
		id := stromboli.NewRunID(began)
		run, _, err := st.CreateRun(t.Context(), stromboli.NewRun{
			Run: stromboli.Run{
				ID: id, Tenant: stromboli.DefaultTenant, Kind: stromboli.KindAsync, Spec: stromboli.RunSpec{Prompt: "x"}, Status: stromboli.Running, Owner: "one",
				SessionID: "session-" + id, CreatedAt: began, UpdatedAt: began,
			},
			Events:        []stromboli.Event{{Type: stromboli.EventRunCreated, Data: []byte(`{}`)}},
			CreateSession: &stromboli.Session{}, MaxQueued: 10,
		})
		must(t, err)
		_, err = st.FinishRun(t.Context(), run.ID, run.Epoch, stromboli.RunFinish{Outcome: stromboli.Outcome{Status: stromboli.Completed}})
		must(t, err)
		return run.ID
	}
	there := func(id string) bool {
		_, err := st.GetRun(t.Context(), stromboli.DefaultTenant, id)
		return err == nil
	}
	forget := func(ttl string, until func() bool) {
		t.Helper()
		cfg, err := config.Load([]string{"HOME=" + t.TempDir(), "STROMBOLI_JOBS_CLEANUP_TTL=" + ttl, "STROMBOLI_JOBS_CLEANUP_INTERVAL=1s"})
		must(t, err)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		log := slog.New(slog.DiscardHandler)
		arch, _, err := openArchive(cfg, nil, st, nil, log)
		must(t, err)
		s := &server{cfg: cfg, store: st, log: log}
		runs := &sweeps{cfg: cfg, store: st, archive: arch}
		s.sweeper = retention.New(slices.DeleteFunc(runs.kinds(), func(k retention.Kind) bool { return k.Name != "runs" }), log)
		go func() { done <- s.sweepEvery(ctx) }()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for end := time.Now().Add(time.Minute); !until() && time.Now().Before(end); {
			<-tick.C
		}
		stop()
		must(t, <-done)
	}
	first := finish()
	looks := 0
	forget("3h", func() bool { looks++; return looks > 20 })
	if !there(first) {
		t.Error("a run that is not that old is gone")
	}
	second := ""
	forget("1h", func() bool {
		if second == "" && !there(first) { // the first sweep is over
			second = finish()
		}
		return second != "" && !there(second)
	})
	if there(first) || second == "" || there(second) {
		t.Error("a run that is old enough is still there")
	}
}

func TestLogSettings(t *testing.T) {
	for _, c := range []struct{ format, level, line string }{{"text", "warn", "level=WARN msg=b"}, {"json", "error", ""}, {"json", "info", `"level":"WARN","msg":"b"`}} {
		cfg, err := config.Load([]string{"HOME=/h", "STROMBOLI_LOG_FORMAT=" + c.format, "STROMBOLI_LOG_LEVEL=" + c.level})
		must(t, err)
		var out bytes.Buffer
		log := newLogs(cfg.Log, process{stderr: &out}).Part("server")
		log.Info("a")
		log.Warn("b")
		if got := out.String(); !strings.Contains(got, c.line) || (c.line == "") != (got == "") || strings.Contains(got, "a\n") || c.level != "info" && strings.Count(got, "\n") > 1 {
			t.Errorf("%+v: %q", c, got)
		}
	}
}
