package main

import (
	"context"
	"errors"
	"net/url"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/policy"
	"github.com/tomblancdev/stromboli/internal/secret"
)

// modelHosts are names of the model's: its public endpoint, and the configured
// one.
func modelHosts(environ []string) []string {
	var hosts []string
	for _, base := range []string{config.DefaultBaseURL, config.BaseURL(environ)} {
		u, err := url.Parse(base)
		if err != nil {
			continue // newModel says so
		}
		if name, _, err := policy.ParseHost(u.Hostname()); err == nil && name != "" {
			hosts = append(hosts, name)
		}
	}
	return hosts
}

// keptSecrets are the vault, whose changes live runs learn of.
type keptSecrets struct {
	*secret.Vault
	changed func(ctx context.Context, tenant, name string) error
}

// Create keeps a new secret.
func (k keptSecrets) Create(ctx context.Context, p stromboli.Principal, name string, value []byte) (stromboli.Secret, error) {
	s, err := k.Vault.Create(ctx, p, name, value)
	if err != nil {
		return s, err
	}
	return s, late(k.changed(ctx, p.Tenant, name))
}

// Delete forgets a secret.
func (k keptSecrets) Delete(ctx context.Context, p stromboli.Principal, name string) error {
	err := k.Vault.Delete(ctx, p, name)
	if err != nil && !errors.Is(err, stromboli.NotFound) {
		return err
	}
	// Also where it is gone already: who is not sure asks again.
	if told := late(k.changed(ctx, p.Tenant, name)); told != nil {
		return told
	}
	return err
}

// late says of a change that is made what is missing.
func late(err error) error {
	if err == nil {
		return nil
	}
	return (&stromboli.Error{
		Code: stromboli.EngineDown, RetryAfter: time.Second,
		Message: "the secret is changed; the bindings of live runs could not be told yet: they are as soon as egress answers; ask again to be sure",
	}).WithCause(err)
}
