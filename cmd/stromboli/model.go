package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"syscall"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/api"
	"github.com/tomblancdev/stromboli/internal/claude"
	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/egress"
)

// egressConfig is the part of the egress supervisor that takes settings.
type egressConfig interface {
	SetConfig(ctx context.Context, cfg egress.Config) error
}

// watchEvery is how often the credentials' files are looked at.
const watchEvery = time.Second

// model gives egress the credential for the model's endpoint and tells runs of
// which kind it is. Its files are watched, so that a token that was renewed,
// by the user's own CLI for one, is used from the next request on, in the
// middle of a run too. A file that can't be read at a change leaves the
// credential as it was, and the fault is shown.
type model struct {
	cfg     *config.Config
	environ []string
	demo    bool
	egress  egressConfig
	log     *slog.Logger

	turn chan struct{} // one slot: held while egress is told, which may take a while
	last config.Credential
	sent bool
}

// newModel refuses settings that egress would refuse at each run.
func newModel(cfg *config.Config, environ []string, demo bool, to egressConfig, log *slog.Logger) (*model, error) {
	m := &model{cfg: cfg, environ: environ, demo: demo, egress: to, log: log, turn: make(chan struct{}, 1)}
	if err := (egress.Config{Allow: cfg.Egress.Allow}).Validate(); err != nil {
		return nil, fmt.Errorf("STROMBOLI_EGRESS_ALLOW: %w", err)
	}
	if err := (egress.Config{ModelURL: config.BaseURL(environ)}).Validate(); err != nil {
		return nil, fmt.Errorf("ANTHROPIC_BASE_URL: %w", err)
	}
	headers, err := config.CustomHeaders(environ)
	if err == nil {
		err = egress.Config{ExtraHeaders: headers}.Validate()
	}
	if err != nil {
		return nil, fmt.Errorf("ANTHROPIC_CUSTOM_HEADERS: %w", err)
	}
	if err := (egress.Config{Proxy: upstream(environ), ProxyHosts: cfg.Egress.ProxyHosts}).Validate(); err != nil {
		return nil, fmt.Errorf("HTTPS_PROXY, STROMBOLI_EGRESS_PROXY_HOSTS: %w", err)
	}
	return m, nil
}

// load finds the credential, and what egress has to know of it.
func (m *model) load() (config.Credential, egress.Config, error) {
	cred, err := m.cfg.LoadCredential(m.environ)
	if err != nil {
		return cred, egress.Config{}, err
	}
	headers, err := config.CustomHeaders(m.environ)
	if err != nil {
		return cred, egress.Config{}, fmt.Errorf("ANTHROPIC_CUSTOM_HEADERS: %w", err)
	}
	cfg := m.common()
	cfg.ModelURL, cfg.ExtraHeaders = cred.BaseURL, headers
	cfg.Credential = egress.Credential{Kind: egress.CredentialKind(cred.Kind), Value: string(cred.Value)}
	if err := cfg.Validate(); err != nil {
		return cred, egress.Config{}, fmt.Errorf("%s: %w", cred.Source, err)
	}
	return cred, cfg, nil
}

func (m *model) common() egress.Config {
	return egress.Config{Allow: m.cfg.Egress.Allow, Proxy: upstream(m.environ), ProxyHosts: m.cfg.Egress.ProxyHosts}
}

func upstream(environ []string) egress.UpstreamProxy {
	p := config.Proxy(environ)
	return egress.UpstreamProxy{URL: string(p.URL), NoProxy: p.NoProxy}
}

// Ready hands the present credential to egress if it has changed.
func (m *model) Ready(ctx context.Context) (string, error) {
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
	case <-ctx.Done():
		return "", fmt.Errorf("configuring egress: %w", ctx.Err())
	}
	if m.demo {
		if !m.sent {
			cfg := m.common()
			cfg.Demo = true
			if err := m.egress.SetConfig(ctx, cfg); err != nil {
				return "", fmt.Errorf("configuring egress: %w", err)
			}
			m.sent = true
		}
		return claude.APIKey, nil
	}
	cred, cfg, err := m.load()
	switch {
	case err == nil:
	case m.sent && !errors.Is(err, config.ErrNoCredential) && !errors.Is(err, fs.ErrNotExist): // somebody is writing the file, or has broken it
		return string(m.last.Kind), nil
	default:
		return "", stromboli.Errorf(stromboli.NotConfigured, "Claude is not configured: %v", err).WithCause(err)
	}
	if m.sent && cred == m.last {
		return string(cred.Kind), nil
	}
	if err := m.egress.SetConfig(ctx, cfg); err != nil {
		return "", fmt.Errorf("configuring egress: %w", err)
	}
	m.last, m.sent = cred, true
	return string(cred.Kind), nil
}

// watch hands changed credentials to egress until ctx ends.
func (m *model) watch(ctx context.Context) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	w := m.newWatch()
	for {
		select {
		case <-tick.C:
			w.look(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

// credentialWatch knows the files of the credentials as they were last seen.
type credentialWatch struct {
	m     *model
	marks [2]fileMark
	fault string // that the log has been told of
}

func (m *model) newWatch() *credentialWatch { return &credentialWatch{m: m, marks: m.marks()} }

func (m *model) marks() [2]fileMark {
	return [2]fileMark{markOf(m.cfg.Agent.SecretsFile), markOf(m.cfg.Agent.CredentialsFile)}
}

// look hands the credential to egress if a file has changed.
func (w *credentialWatch) look(ctx context.Context) {
	marks := w.m.marks()
	if marks == w.marks || w.m.demo {
		return
	}
	w.marks = marks
	w.m.log.InfoContext(ctx, "the files of the Claude credentials have changed")
	_, _, err := w.m.load() // Ready passes over a broken file
	if err == nil {
		_, err = w.m.Ready(ctx)
	}
	switch {
	case ctx.Err() != nil:
	case err == nil:
		w.fault = ""
	case w.fault != err.Error():
		w.fault = err.Error()
		w.m.log.WarnContext(ctx, "the Claude credentials can't be used; those before stay in use", "error", err)
	}
}

// fileMark changes when a file does, also when another is renamed over it.
type fileMark struct {
	inode, size uint64
	changed     time.Time
}

func markOf(path string) fileMark {
	info, err := os.Stat(path)
	if err != nil {
		return fileMark{}
	}
	mark := fileMark{size: uint64(info.Size()), changed: info.ModTime()} //nolint:gosec // compared
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		mark.inode = st.Ino
	}
	return mark
}

// status describes the credential for people.
func (m *model) status() api.ClaudeStatus {
	if m.demo {
		return api.ClaudeStatus{Configured: true, Message: "demo: answers come from the built-in scripted model", Source: "demo"}
	}
	cred, _, err := m.load()
	st := api.ClaudeStatus{Source: cred.Source, Kind: string(cred.Kind), ExpiresAt: cred.Expires.UTC()}
	if cred.Expires.IsZero() {
		st.ExpiresAt = time.Time{}
	}
	switch {
	case errors.Is(err, config.ErrNoCredential):
		st.Message = err.Error()
	case err != nil:
		st.Message = "the Claude credentials can't be read: " + err.Error()
	case !cred.Expires.IsZero() && time.Until(cred.Expires) < 0:
		st.Configured = true
		st.Message = fmt.Sprintf("%s from %s, expired at %s: log in with the Claude CLI again", cred.Kind, cred.Source, cred.Expires.UTC().Format(time.RFC3339))
	default:
		st.Configured, st.Message = true, fmt.Sprintf("%s from %s", cred.Kind, cred.Source)
	}
	return st
}
