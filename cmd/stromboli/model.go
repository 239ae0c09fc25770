package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/claude"
	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/egress"
)

// egressConfig is the part of the egress supervisor that takes settings.
type egressConfig interface {
	SetConfig(ctx context.Context, cfg egress.Config) error
}

// model gives egress the credential for the model's endpoint and tells runs of
// which kind it is. Files are read again for each run, so that a token which
// was renewed is picked up.
type model struct {
	cfg     *config.Config
	environ []string
	demo    bool
	egress  egressConfig

	turn chan struct{} // one slot: held while egress is told, which may take a while
	last config.Credential
	sent bool
}

// newModel refuses settings that egress would refuse at each run.
func newModel(cfg *config.Config, environ []string, demo bool, to egressConfig) (*model, error) {
	if err := (egress.Config{Allow: cfg.Egress.Allow}).Validate(); err != nil {
		return nil, fmt.Errorf("STROMBOLI_EGRESS_ALLOW: %w", err)
	}
	if err := (egress.Config{ModelURL: config.BaseURL(environ)}).Validate(); err != nil {
		return nil, fmt.Errorf("ANTHROPIC_BASE_URL: %w", err)
	}
	return &model{cfg: cfg, environ: environ, demo: demo, egress: to, turn: make(chan struct{}, 1)}, nil
}

// load finds the credential, and what egress has to know of it.
func (m *model) load() (config.Credential, egress.Config, error) {
	cred, err := m.cfg.LoadCredential(m.environ)
	if err != nil {
		return cred, egress.Config{}, err
	}
	cfg := egress.Config{
		ModelURL:   cred.BaseURL,
		Credential: egress.Credential{Kind: egress.CredentialKind(cred.Kind), Value: string(cred.Value)},
		Allow:      m.cfg.Egress.Allow,
	}
	if err := cfg.Validate(); err != nil {
		return cred, egress.Config{}, fmt.Errorf("%s: %w", cred.Source, err)
	}
	return cred, cfg, nil
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
			if err := m.egress.SetConfig(ctx, egress.Config{Demo: true, Allow: m.cfg.Egress.Allow}); err != nil {
				return "", fmt.Errorf("configuring egress: %w", err)
			}
			m.sent = true
		}
		return claude.APIKey, nil
	}
	cred, cfg, err := m.load()
	if err != nil {
		e := stromboli.Errorf(stromboli.NotConfigured, "Claude is not configured: %v", err)
		return "", e.WithCause(err)
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

// status says for people whether there is a credential.
func (m *model) status() (configured bool, message string) {
	if m.demo {
		return true, "demo: answers come from the built-in scripted model"
	}
	cred, _, err := m.load()
	switch {
	case errors.Is(err, config.ErrNoCredential):
		return false, err.Error()
	case err != nil:
		return false, "the Claude credentials can't be read: " + err.Error()
	case !cred.Expires.IsZero() && time.Until(cred.Expires) < 0:
		return true, fmt.Sprintf("%s from %s, expired at %s: log in with the Claude CLI again", cred.Kind, cred.Source, cred.Expires.UTC().Format(time.RFC3339))
	}
	return true, fmt.Sprintf("%s from %s", cred.Kind, cred.Source)
}
