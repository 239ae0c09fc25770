package main

import (
	"crypto/sha256"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/api"
	"github.com/tomblancdev/stromboli/internal/api/apitest"
	"github.com/tomblancdev/stromboli/internal/auth"
	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/telemetry"
)

// A server's settings of who may call are judged before anything is started.
func TestServeRefusesAuth(t *testing.T) {
	for says, environ := range map[string][]string{
		"neither an API token nor a JWT secret": nil,
		"openssl rand":                          {"STROMBOLI_JWT_SECRET=short"},
		"STROMBOLI_API_TOKENS: number 2":        {"STROMBOLI_API_TOKENS=a,"},
		"STROMBOLI_API_TOKENS_FILE: /nowhere":   {"STROMBOLI_API_TOKENS_FILE=/nowhere"},
		`API token "token-2": it is the same`:   {"STROMBOLI_API_TOKENS=a,a"},
		"STROMBOLI_RATE_LIMIT_TRUSTED_PROXIES":  {"STROMBOLI_API_TOKENS=a", "STROMBOLI_RATE_LIMIT_TRUSTED_PROXIES=x"},
	} {
		dir, err := os.MkdirTemp("", "d") // short
		must(t, err)
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		environ = append([]string{"STROMBOLI_AUTH_ENABLED=true", "STROMBOLI_SERVER_ADDRESS=127.0.0.1:0", "STROMBOLI_DATA_DIR=" + dir}, environ...)
		code, _, errs := command(t.Context(), t, environ, "serve")
		if code != 1 || !strings.Contains(errs, says) {
			t.Errorf("%q: %d, %s, want %q", environ, code, errs, says)
		}
	}
}

func TestAccess(t *testing.T) {
	for want, environ := range map[api.Access][]string{
		api.AccessOpen:   nil,
		api.AccessAuth:   {"STROMBOLI_AUTH_ENABLED=true"},
		api.AccessClosed: {"STROMBOLI_AUTH_START_CLOSED=true", "STROMBOLI_SERVER_ADDRESS=:8080"},
	} {
		cfg, err := config.Load(append([]string{"HOME=/h"}, environ...))
		must(t, err)
		if got := (&server{cfg: cfg}).access(); got != want {
			t.Errorf("%q: %d", environ, got)
		}
	}
}

func TestURLOf(t *testing.T) {
	for addr, want := range map[string]string{
		"0.0.0.0:80": "http://127.0.0.1:80", "[::]:80": "http://127.0.0.1:80", "127.0.0.2:80": "http://127.0.0.2:80", "[::1]:80": "http://[::1]:80",
	} {
		tcp, err := net.ResolveTCPAddr("tcp", addr)
		must(t, err)
		if got := (&server{}).urlOf(tcp); got != want {
			t.Errorf("%s: %s", addr, got)
		}
		if got := (&server{certificate: &certificate{}}).urlOf(tcp); got != strings.Replace(want, "http", "https", 1) {
			t.Errorf("%s: %s", addr, got)
		}
	}
	if got := (&server{}).urlOf(&net.UnixAddr{Name: "/s", Net: "unix"}); got != "unix:///s" {
		t.Error(got)
	}
}

// `stromboli run` sends STROMBOLI_TOKEN.
func TestRunCommandWithToken(t *testing.T) {
	known, err := auth.New(auth.Config{Enabled: true, Tokens: []auth.Token{{Name: "me", Hash: sha256.Sum256([]byte("sesame"))}}})
	must(t, err)
	fake := apitest.New()
	fake.OnSubmit = func(run stromboli.Run) { fake.Finish(run.ID, stromboli.Outcome{Status: stromboli.Completed}) }
	url := serveFake(t, fake, func(c *api.Config) { c.Access, c.Auth = api.AccessAuth, known })
	if code, _, errs := command(t.Context(), t, []string{"STROMBOLI_URL=" + url, "STROMBOLI_TOKEN=sesame"}, "run", "x"); code != 0 {
		t.Errorf("%d: %s", code, errs)
	}
	for _, environ := range [][]string{{"STROMBOLI_URL=" + url}, {"STROMBOLI_URL=" + url, "STROMBOLI_TOKEN=other"}} {
		if code, _, errs := command(t.Context(), t, environ, "run", "x"); code != 1 || !strings.Contains(errs, "STROMBOLI_TOKEN") {
			t.Errorf("%q: %d: %s", environ, code, errs)
		}
	}
}

// The image listens on :8080 and starts without auth.
func TestServerImage(t *testing.T) {
	environ := imageEnv(t)
	cfg, err := config.Load(environ)
	must(t, err)
	if cfg.Server.Address != ":8080" || !cfg.Closed() || cfg.DataDir != "/var/lib/stromboli" {
		t.Errorf("%q: %+v", environ, cfg)
	}
	s := &server{cfg: cfg, environ: environ, log: slog.New(slog.DiscardHandler), logs: telemetry.NewLog(telemetry.LogConfig{Writer: io.Discard})}
	s.policies, err = newPolicies(cfg, environ, s.log)
	must(t, err)
	must(t, s.openAuth())
	if s.access() != api.AccessClosed {
		t.Error("it isn't closed")
	}
	cfg, err = config.Load(append(environ, "STROMBOLI_AUTH_ENABLED=true"))
	must(t, err)
	if cfg.Server.Address != ":8080" || cfg.Closed() {
		t.Errorf("%+v", cfg)
	}
}

// imageEnv is the environment that the server's image sets.
func imageEnv(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile("../../images/server/Containerfile")
	must(t, err)
	var environ []string
	for line := range strings.Lines(string(b)) {
		if vars, ok := strings.CutPrefix(line, "ENV "); ok {
			environ = append(environ, strings.Fields(vars)...)
		}
	}
	return environ
}
