package config

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// TenantCredential is a tenant's own credential for the model.
type TenantCredential struct {
	Credential
	// Headers go with each request to the model.
	Headers map[string]string
	// File is what the credential was read from beside the tenants' file; empty:
	// nothing.
	File string
	// Err says why the tenant's credential can't be used; it doesn't show it.
	Err error
}

// tenantsFileVar names the file in messages, and credentials that stand in it.
const tenantsFileVar = "STROMBOLI_AGENT_TENANT_CREDENTIALS_FILE"

// tenantEntry is a tenant in the file.
type tenantEntry struct {
	APIKey     string            `json:"api_key"`
	AuthToken  string            `json:"auth_token"`
	OAuthToken string            `json:"oauth_token"`
	File       string            `json:"file"`
	BaseURL    string            `json:"base_url"`
	Headers    map[string]string `json:"headers"`
}

// LoadTenantCredentials reads the file that TenantCredentialsFile names, anew at
// each call; nil where none is set. A tenant whose own entry is wrong has Err,
// and the others are as they are. No error shows a credential.
func (c *Config) LoadTenantCredentials(environ []string) (map[string]TenantCredential, error) {
	path := c.Agent.TenantCredentialsFile
	if path == "" {
		return nil, nil //nolint:nilnil // no tenant has its own
	}
	entries, err := readTenants(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", tenantsFileVar, path, err)
	}
	common, err := CustomHeaders(environ)
	if err != nil {
		return nil, fmt.Errorf("ANTHROPIC_CUSTOM_HEADERS: %w", err)
	}
	out := make(map[string]TenantCredential, len(entries))
	for name, e := range entries {
		t, err := e.load()
		if err != nil {
			t = TenantCredential{File: t.File, Err: fmt.Errorf("%s: tenant %s: %w", tenantsFileVar, name, err)}
		}
		// The common headers may hold what only the common endpoint should see.
		if e.BaseURL == "" && e.Headers == nil {
			t.Headers = common
		}
		if t.BaseURL == "" {
			t.BaseURL = BaseURL(environ)
		}
		out[name] = t
	}
	return out, nil
}

func readTenants(path string) (map[string]tenantEntry, error) {
	var file struct {
		Tenants map[string]tenantEntry `json:"tenants"`
	}
	if err := readPrivate(path, &file); err != nil {
		return nil, err
	}
	if file.Tenants == nil {
		return nil, errors.New(`it names no tenants: {"tenants":{"team-a":{"api_key":"…"}}}`)
	}
	for _, name := range slices.Sorted(maps.Keys(file.Tenants)) {
		if !tenantName(name) {
			return nil, fmt.Errorf("the tenant %q: a tenant's name has 1 to 64 letters, digits, '.', '_' and '-'", name)
		}
	}
	return file.Tenants, nil
}

// tenantName reports whether a tenant may have a name; internal/auth asks the
// same of API tokens.
func tenantName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("._-", rune(c)) {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

func (e tenantEntry) load() (TenantCredential, error) {
	t := TenantCredential{Headers: e.Headers, File: e.File}
	given := 0
	for _, s := range []struct {
		kind  CredentialKind
		value string
	}{{APIKey, e.APIKey}, {AuthToken, e.AuthToken}, {OAuth, e.OAuthToken}} {
		if s.value != "" {
			t.Kind, t.Value, t.Source = s.kind, Secret(strings.TrimSpace(s.value)), tenantsFileVar
			given++
		}
	}
	if e.File != "" {
		given++
	}
	if given != 1 {
		return t, errors.New("it needs exactly one of api_key, auth_token, oauth_token and file")
	}
	if e.File != "" {
		if !filepath.IsAbs(e.File) {
			return t, errors.New("file: not an absolute path")
		}
		b, err := readSmall(e.File)
		if err != nil {
			return t, fmt.Errorf("file: %w", err)
		}
		read := oneToken
		if bytes.HasPrefix(bytes.TrimSpace(b), []byte("{")) {
			read = login
		}
		if t.Credential, err = read(e.File, b); errors.Is(err, ErrNoCredential) {
			err = fmt.Errorf("%s holds no token", e.File)
		}
		if err != nil {
			return t, fmt.Errorf("file: %w", err)
		}
	}
	t.BaseURL = strings.TrimRight(e.BaseURL, "/")
	return t, nil
}
