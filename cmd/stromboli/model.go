package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"sync/atomic"
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

// model gives egress the credentials for the model's endpoint, the common one and
// those of tenants, and tells runs of which kind theirs is. Their files are
// watched, so that a token that was renewed, by the user's own CLI for one, is
// used from the next request on, in the middle of a run too. A file that can't
// be read at a change leaves the credentials as they were, and the fault is
// shown.
type model struct {
	cfg     *config.Config // of the start: what is said of credentials
	network atomic.Pointer[config.Egress]
	environ []string
	demo    bool
	egress  egressConfig
	log     *slog.Logger

	turn chan struct{} // one slot: held while egress is told, which may take a while
	have credentials   // what was usable when it was last read
	told egress.Config
	sent bool
}

// newModel refuses settings that egress would refuse at each run.
func newModel(cfg *config.Config, environ []string, demo bool, to egressConfig, log *slog.Logger) (*model, error) {
	m := &model{cfg: cfg, environ: environ, demo: demo, egress: to, log: log, turn: make(chan struct{}, 1)}
	m.network.Store(&cfg.Egress)
	return m, checkModel(cfg, environ)
}

// setNetwork gives egress other exemptions and hosts of the proxy. They hold for
// connections that begin after its return; after an error, as soon as egress is
// there or the next run starts.
func (m *model) setNetwork(ctx context.Context, network config.Egress) error {
	m.network.Store(&network)
	_, err := m.Ready(ctx, stromboli.DefaultTenant)
	if errors.Is(err, stromboli.NotConfigured) { // egress has been told all the same
		return nil
	}
	return err
}

// checkModel finds all settings that egress would refuse.
func checkModel(cfg *config.Config, environ []string) error {
	var errs []error
	if err := (egress.Config{Allow: cfg.Egress.Allow}).Validate(); err != nil {
		errs = append(errs, fmt.Errorf("STROMBOLI_EGRESS_ALLOW: %w", err))
	}
	if err := (egress.Config{ModelURL: config.BaseURL(environ)}).Validate(); err != nil {
		errs = append(errs, fmt.Errorf("ANTHROPIC_BASE_URL: %w", err))
	}
	headers, err := config.CustomHeaders(environ)
	if err == nil {
		err = egress.Config{ExtraHeaders: headers}.Validate()
	}
	if err != nil {
		errs = append(errs, fmt.Errorf("ANTHROPIC_CUSTOM_HEADERS: %w", err))
	}
	if err := (egress.Config{Proxy: upstream(environ), ProxyHosts: cfg.Egress.ProxyHosts}).Validate(); err != nil {
		errs = append(errs, fmt.Errorf("STROMBOLI_EGRESS_PROXY_HOSTS, HTTPS_PROXY: %w", err))
	}
	_, err = cfg.LoadTenantCredentials(environ)
	return errors.Join(append(errs, err)...)
}

func upstream(environ []string) egress.UpstreamProxy {
	p := config.Proxy(environ)
	return egress.UpstreamProxy{URL: string(p.URL), NoProxy: p.NoProxy}
}

// Ready hands the present credentials to egress if they have changed, and
// returns the kind of a tenant's.
func (m *model) Ready(ctx context.Context, tenant string) (string, error) {
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
	case <-ctx.Done():
		return "", fmt.Errorf("configuring egress: %w", ctx.Err())
	}
	if m.demo {
		cfg := m.basis()
		cfg.Demo = true
		return claude.APIKey, m.tell(ctx, cfg)
	}
	found := m.read()
	m.have = found.over(m.have)
	if m.have.tenantsErr == nil { // else tenants might be given the common credential
		if err := m.tell(ctx, m.configOf(m.have)); err != nil {
			return "", err
		}
	}
	cred, err := m.have.of(tenant)
	if err != nil {
		return "", stromboli.Errorf(stromboli.NotConfigured, "Claude is not configured: %v", err).WithCause(err)
	}
	return string(cred.Kind), nil
}

// tell configures egress, unless that is what it was last told, or there is
// nothing to tell.
func (m *model) tell(ctx context.Context, cfg egress.Config) error {
	if m.sent && reflect.DeepEqual(cfg, m.told) || !m.sent && !cfg.Demo && cfg.ModelURL == "" && len(cfg.Tenants) == 0 {
		return nil
	}
	if err := m.egress.SetConfig(ctx, cfg); err != nil {
		return fmt.Errorf("configuring egress: %w", err)
	}
	m.told, m.sent = cfg, true
	return nil
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
	marks map[string]fileMark
	fault string // that the log has been told of
}

func (m *model) newWatch() *credentialWatch {
	return &credentialWatch{m: m, marks: m.marks(m.read())}
}

// marks are those of the files that credentials were, or would be, read from.
func (m *model) marks(found credentials) map[string]fileMark {
	files := append(found.files(), m.cfg.Agent.SecretsFile, m.cfg.Agent.CredentialsFile, m.cfg.Agent.TenantCredentialsFile)
	marks := map[string]fileMark{}
	for _, f := range files {
		if f != "" {
			marks[f] = markOf(f)
		}
	}
	return marks
}

// look hands the credentials to egress if a file has changed.
func (w *credentialWatch) look(ctx context.Context) {
	changed := false
	for f, mark := range w.marks {
		changed = changed || markOf(f) != mark
	}
	if !changed || w.m.demo {
		return
	}
	w.m.log.InfoContext(ctx, "the files of the Claude credentials have changed")
	// The marks come first: what changes after them is read next time.
	w.marks = w.m.marks(w.m.read())
	err := w.m.read().fault()
	if _, rerr := w.m.Ready(ctx, stromboli.DefaultTenant); err == nil && !errors.Is(rerr, stromboli.NotConfigured) {
		err = rerr
	}
	if ctx.Err() == nil {
		w.tell(ctx, err)
	}
}

// tell writes a fault to the log, once.
func (w *credentialWatch) tell(ctx context.Context, err error) {
	switch {
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

// status describes a tenant's credential for people.
func (m *model) status(tenant string) api.ClaudeStatus {
	if m.demo {
		return api.ClaudeStatus{Configured: true, Message: "demo: answers come from the built-in scripted model", Source: "demo"}
	}
	cred, err := m.read().of(tenant)
	st := api.ClaudeStatus{Source: cred.Source, Kind: string(cred.Kind), ExpiresAt: cred.Expires.UTC()}
	if cred.Expires.IsZero() {
		st.ExpiresAt = time.Time{}
	}
	switch {
	case errors.Is(err, config.ErrNoCredential), errors.Is(err, errNoTenant):
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
