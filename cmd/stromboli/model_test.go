package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/claude"
	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/egress"
)

// told counts what egress is told.
type told struct {
	configs []egress.Config
	err     error
}

func (e *told) SetConfig(_ context.Context, cfg egress.Config) error {
	e.configs = append(e.configs, cfg)
	return e.err
}

func TestModelTellsEgressWhatChanged(t *testing.T) {
	to := &told{err: errors.New("away")}
	key := filepath.Join(t.TempDir(), "key")
	must(t, os.WriteFile(key, []byte("sk-ant-oat01-one"), 0o600))
	m, err := newModel(&config.Config{Agent: config.Agent{SecretsFile: key}}, nil, false, to, slog.New(slog.DiscardHandler))
	must(t, err)
	if _, err := m.Ready(t.Context(), stromboli.DefaultTenant); err == nil {
		t.Error("ready without egress")
	}
	to.err = nil
	for range 3 {
		if kind, err := m.Ready(t.Context(), stromboli.DefaultTenant); kind != claude.OAuth || err != nil {
			t.Errorf("%s, %v", kind, err)
		}
	}
	must(t, os.WriteFile(key, []byte("sk-ant-api03-two"), 0o600)) // renewed
	if kind, err := m.Ready(t.Context(), stromboli.DefaultTenant); kind != claude.APIKey || err != nil {
		t.Errorf("%s, %v", kind, err)
	}
	if len(to.configs) != 3 || to.configs[2].Credential.Value != "sk-ant-api03-two" {
		t.Errorf("told %d times", len(to.configs))
	}
	must(t, os.Remove(key))
	if _, err := m.Ready(t.Context(), stromboli.DefaultTenant); !errors.Is(err, stromboli.NotConfigured) {
		t.Errorf("without a key: %v", err)
	}
	m.turn <- struct{}{} // somebody waits for egress
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := m.Ready(ctx, stromboli.DefaultTenant); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("behind somebody who waits: %v", err)
	}
}

// What egress can't take is told at the start, or to who asks for a run.
func TestModelRefusesWhatEgressWould(t *testing.T) {
	for _, c := range []struct {
		name    string
		allow   []string
		environ []string
	}{
		{"STROMBOLI_EGRESS_ALLOW", []string{"host"}, nil},
		{"STROMBOLI_EGRESS_ALLOW", []string{"host:99999"}, nil},
		{"ANTHROPIC_BASE_URL", nil, []string{"ANTHROPIC_BASE_URL=ftp://host"}},
	} {
		_, err := newModel(&config.Config{Egress: config.Egress{Allow: c.allow}}, c.environ, false, &told{}, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), c.name) {
			t.Errorf("%v %v: %v", c.allow, c.environ, err)
		}
	}
	m, err := newModel(&config.Config{}, []string{"ANTHROPIC_API_KEY=a\nb"}, false, &told{}, slog.New(slog.DiscardHandler))
	must(t, err)
	if _, err := m.Ready(t.Context(), stromboli.DefaultTenant); !errors.Is(err, stromboli.NotConfigured) || !strings.Contains(err.Error(), "ANTHROPIC_API_KEY") {
		t.Errorf("a key that no header may hold: %v", err)
	}
	if st := m.status(stromboli.DefaultTenant); st.Configured {
		t.Errorf("configured: %+v", st)
	}
}

func TestEgressGetsNoSecrets(t *testing.T) {
	got := egressEnv([]string{"PATH=/bin", "ANTHROPIC_API_KEY=k", "HOME=/h", "CLAUDE_CODE_OAUTH_TOKEN=t", "STROMBOLI_X=y", "HTTPS_PROXY=http://u:p@h"})
	if strings.Join(got, " ") != "PATH=/bin HOME=/h" {
		t.Errorf("%v", got)
	}
}

// TestModelWatch: a renewed token reaches egress without anybody asking; a file
// that is broken meanwhile changes nothing.
func TestModelWatch(t *testing.T) {
	file := filepath.Join(t.TempDir(), "credentials.json")
	write := func(text string) {
		must(t, os.WriteFile(file+".new", []byte(text), 0o600))
		must(t, os.Rename(file+".new", file))
	}
	write(`{"claudeAiOauth":{"accessToken":"sk-ant-oat01-one","expiresAt":4102444800000}}`)
	to := &told{}
	var log bytes.Buffer
	m, err := newModel(&config.Config{Agent: config.Agent{CredentialsFile: file}}, nil, false, to, slog.New(slog.NewTextHandler(&log, nil)))
	must(t, err)
	_, err = m.Ready(t.Context(), stromboli.DefaultTenant)
	must(t, err)
	if st := m.status(stromboli.DefaultTenant); !st.Configured || st.Kind != claude.OAuth || st.Source != file || st.ExpiresAt.Year() != 2100 || strings.Contains(st.Message, "oat01") {
		t.Errorf("%+v", st)
	}
	w := m.newWatch()
	w.look(t.Context()) // nothing has changed
	write(`{"claudeAiOauth":{"accessTo`)
	for range 2 {
		w.look(t.Context())
	}
	if st := m.status(stromboli.DefaultTenant); st.Configured || strings.Count(log.String(), "can't be used") != 1 {
		t.Errorf("a broken file: %+v, the log says %s", st, &log)
	}
	if kind, err := m.Ready(t.Context(), stromboli.DefaultTenant); kind != claude.OAuth || err != nil || len(to.configs) != 1 {
		t.Errorf("with a broken file: %s, %v, told %d times", kind, err, len(to.configs))
	}
	write(`{"claudeAiOauth":{"accessToken":"sk-ant-oat01-two"}}`)
	w.look(t.Context())
	if len(to.configs) != 2 || to.configs[1].Credential.Value != "sk-ant-oat01-two" {
		t.Errorf("told %d times", len(to.configs))
	}
	if strings.Contains(log.String(), "oat01") {
		t.Errorf("the log has a token: %s", &log)
	}
}

// Other exemptions reach egress at once; where it is away, with the next run.
func TestModelTellsEgressAnotherNetwork(t *testing.T) {
	to := &told{}
	m, err := newModel(&config.Config{}, []string{"ANTHROPIC_API_KEY=k"}, false, to, slog.New(slog.DiscardHandler))
	must(t, err)
	must(t, m.setNetwork(t.Context(), config.Egress{Allow: []string{"a.lan:1"}}))
	to.err = errors.New("away")
	if err := m.setNetwork(t.Context(), config.Egress{Allow: []string{"b.lan:1"}}); err == nil {
		t.Error("told though it is away")
	}
	to.err = nil
	for range 2 {
		_, err = m.Ready(t.Context(), stromboli.DefaultTenant)
		must(t, err)
	}
	if n := len(to.configs); n != 3 || to.configs[0].Allow[0] != "a.lan:1" || to.configs[2].Allow[0] != "b.lan:1" {
		t.Errorf("told %d times: %v", n, to.configs)
	}
	nobody, err := newModel(&config.Config{}, nil, false, to, slog.New(slog.DiscardHandler))
	must(t, err)
	must(t, nobody.setNetwork(t.Context(), config.Egress{Allow: []string{"a.lan:1"}}))
}
