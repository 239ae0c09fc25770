package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/config"
	"github.com/tomblancdev/stromboli/internal/egress"
)

// credentials are those of all tenants for the model: the common one, and
// those of tenants that have their own.
type credentials struct {
	common     config.TenantCredential
	tenants    map[string]config.TenantCredential
	tenantsErr error // why the tenants' file can't be used
	// exclusive: common is the default tenant's alone.
	exclusive bool
}

var (
	// errNoTenant tells that a tenant has no credential, by configuration.
	errNoTenant = errors.New("this tenant has no credential for the model: the operator names it in STROMBOLI_AGENT_TENANT_CREDENTIALS_FILE, " +
		"or sets STROMBOLI_AGENT_TENANT_CREDENTIALS_FALLBACK=true for those that it doesn't name")
	// errTenantsFile is what callers are told of a tenants' file that is wrong:
	// its own message may name other tenants.
	errTenantsFile = errors.New("the file of the tenants' credentials can't be used: the server's log and `stromboli doctor` say why")
)

// read looks for all credentials anew.
func (m *model) read() credentials { return readCredentials(m.cfg, m.environ, m.basis()) }

func readCredentials(cfg *config.Config, environ []string, basis egress.Config) credentials {
	out := credentials{exclusive: cfg.Agent.TenantCredentialsFile != "" && !cfg.Agent.TenantCredentialsFallback}
	out.common.Credential, out.common.Err = cfg.LoadCredential(environ)
	if headers, err := config.CustomHeaders(environ); err != nil {
		out.common.Err = cmp.Or(out.common.Err, fmt.Errorf("ANTHROPIC_CUSTOM_HEADERS: %w", err))
	} else {
		out.common.Headers = headers
	}
	out.common = judged(out.common, basis)
	tenants, err := cfg.LoadTenantCredentials(environ)
	out.tenantsErr, out.tenants = err, tenants
	for name, t := range tenants {
		out.tenants[name] = judged(t, basis)
	}
	return out
}

// judged is a credential with the fault that egress would find in it.
func judged(t config.TenantCredential, basis egress.Config) config.TenantCredential {
	if t.Err == nil {
		e := endpointOf(t)
		basis.ModelURL, basis.Credential, basis.ExtraHeaders = e.ModelURL, e.Credential, e.ExtraHeaders
		if err := basis.Validate(); err != nil {
			t.Err, t.Value = fmt.Errorf("%s: %w", t.Source, err), ""
		}
	}
	return t
}

// over is what is in use after it was read: where it can't be used, what was
// before. The common credential ends for new runs when it is taken away; egress
// keeps it for those that are there.
func (c credentials) over(before credentials) credentials {
	c.common = kept(c.common, before.common)
	if c.tenantsErr != nil && before.tenants != nil {
		c.tenants, c.tenantsErr = before.tenants, nil
		return c
	}
	c.tenants = maps.Clone(c.tenants)
	for name, t := range c.tenants {
		old, ok := before.tenants[name]
		if ok {
			t = kept(t, old)
		}
		c.tenants[name] = t
	}
	return c
}

// kept is a credential, or where it can't be used the one before, without its
// fault unless nothing is there any more.
func kept(now, before config.TenantCredential) config.TenantCredential {
	if now.Err == nil || before.Value == "" {
		return now
	}
	if errors.Is(now.Err, config.ErrNoCredential) || errors.Is(now.Err, fs.ErrNotExist) {
		before.Err = now.Err
	} else { // somebody is writing the file, or has broken it
		before.Err = nil
	}
	return before
}

// of is a tenant's credential, or why it has none.
func (c credentials) of(tenant string) (config.Credential, error) {
	if c.tenantsErr != nil {
		return config.Credential{}, errTenantsFile
	}
	t, own := c.tenants[tenant]
	switch {
	case own:
	case c.exclusive && tenant != stromboli.DefaultTenant:
		return config.Credential{}, errNoTenant
	default:
		t = c.common
	}
	return t.Credential, t.Err
}

// files are those that tenants' credentials were read from.
func (c credentials) files() []string {
	var files []string
	for _, t := range c.tenants {
		if t.File != "" {
			files = append(files, t.File)
		}
	}
	return files
}

// fault is the first thing that is wrong with configured credentials.
func (c credentials) fault() error {
	err := c.common.Err
	if errors.Is(err, config.ErrNoCredential) && len(c.tenants) > 0 {
		err = nil // the default tenant has none, or its own
	}
	for _, name := range slices.Sorted(maps.Keys(c.tenants)) {
		err = cmp.Or(err, c.tenants[name].Err)
	}
	return cmp.Or(c.tenantsErr, err)
}

// basis is what egress is told whatever the credentials are.
func (m *model) basis() egress.Config {
	network := m.network.Load()
	return egress.Config{
		Allow: network.Allow, Proxy: upstream(m.environ), ProxyHosts: network.ProxyHosts,
		Spans: m.cfg.Tracing.Enabled && m.cfg.Tracing.Agents,
	}
}

func (m *model) configOf(c credentials) egress.Config {
	cfg := m.basis()
	e := endpointOf(c.common)
	cfg.ModelURL, cfg.Credential, cfg.ExtraHeaders, cfg.Exclusive = e.ModelURL, e.Credential, e.ExtraHeaders, c.exclusive
	for name, t := range c.tenants {
		if cfg.Tenants == nil {
			cfg.Tenants = map[string]egress.Endpoint{}
		}
		cfg.Tenants[name] = endpointOf(t)
	}
	return cfg
}

// endpointOf is what egress is told of a credential; nothing of one that never
// could be used.
func endpointOf(t config.TenantCredential) egress.Endpoint {
	if t.Value == "" {
		return egress.Endpoint{}
	}
	return egress.Endpoint{
		ModelURL: t.BaseURL, ExtraHeaders: t.Headers,
		Credential: egress.Credential{Kind: egress.CredentialKind(t.Kind), Value: string(t.Value)},
	}
}
