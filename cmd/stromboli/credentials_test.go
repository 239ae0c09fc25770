package main

import (
	"bytes"
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
	"github.com/tomblancdev/stromboli/internal/setup"
)

// tenantModel is a model whose tenants' file write replaces.
func tenantModel(t *testing.T, fallback bool, environ ...string) (m *model, to *told, log *bytes.Buffer, write func(text string)) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "tenants.json")
	write = func(text string) {
		t.Helper()
		must(t, os.WriteFile(file+".new", []byte(text), 0o600))
		must(t, os.Rename(file+".new", file))
	}
	write(`{"tenants":{"a":{"api_key":"sk-a"},"b":{"oauth_token":"oat-b"}}}`)
	to, log = &told{}, &bytes.Buffer{}
	cfg := &config.Config{Agent: config.Agent{TenantCredentialsFile: file, TenantCredentialsFallback: fallback}}
	m, err := newModel(cfg, environ, false, to, slog.New(slog.NewTextHandler(log, nil)))
	must(t, err)
	return m, to, log, write
}

func (m *model) wantKind(t *testing.T, tenant, kind string) {
	t.Helper()
	got, err := m.Ready(t.Context(), tenant)
	if kind == "" {
		if !errors.Is(err, stromboli.NotConfigured) {
			t.Errorf("tenant %s: %s, %v", tenant, got, err)
		}
		return
	}
	if got != kind || err != nil {
		t.Errorf("tenant %s: %s, %v", tenant, got, err)
	}
}

func TestModelOfTenants(t *testing.T) {
	m, to, _, _ := tenantModel(t, false, "ANTHROPIC_AUTH_TOKEN=common")
	m.wantKind(t, "a", claude.APIKey)
	m.wantKind(t, "b", claude.OAuth)
	m.wantKind(t, "default", claude.AuthToken)
	m.wantKind(t, "c", "")
	if len(to.configs) != 1 || !to.configs[0].Exclusive || to.configs[0].Tenants["a"].Credential.Value != "sk-a" || to.configs[0].Credential.Value != "common" {
		t.Errorf("told %v", to.configs)
	}
	if st := m.status("b"); !st.Configured || st.Kind != claude.OAuth || strings.Contains(st.Message, "oat-b") {
		t.Errorf("the status of b: %+v", st)
	}
	if st := m.status("c"); st.Configured || st.Source != "" || !strings.Contains(st.Message, "TENANT_CREDENTIALS_FALLBACK") {
		t.Errorf("the status of c: %+v", st)
	}

	m, to, _, _ = tenantModel(t, true, "ANTHROPIC_AUTH_TOKEN=common")
	m.wantKind(t, "c", claude.AuthToken)
	m.wantKind(t, "a", claude.APIKey)
	if to.configs[0].Exclusive {
		t.Error("exclusive in spite of the fallback")
	}
	m, _, _, _ = tenantModel(t, true) // without a common one
	m.wantKind(t, "c", "")
	m.wantKind(t, "a", claude.APIKey)
}

// TestModelTenantsWatch: a rotation reaches egress by itself, a broken file
// changes nothing and is shown, and who is taken out of it has no key any more.
func TestModelTenantsWatch(t *testing.T) {
	m, to, log, write := tenantModel(t, false, "ANTHROPIC_API_KEY=common")
	m.wantKind(t, "a", claude.APIKey)
	w := m.newWatch()
	key := func() string { return to.configs[len(to.configs)-1].Tenants["a"].Credential.Value }

	write(`{"tenants":{"a":{"api_key":"sk-hidden`)
	w.look(t.Context())
	m.wantKind(t, "a", claude.APIKey)
	m.wantKind(t, "c", "")
	if len(to.configs) != 1 || strings.Count(log.String(), "can't be used") != 1 {
		t.Errorf("a broken file: told %d times, the log says %s", len(to.configs), log)
	}
	if st := m.status("a"); st.Configured || !strings.Contains(st.Message, "tenants' credentials can't be used") {
		t.Errorf("the status: %+v", st)
	}

	file := filepath.Join(t.TempDir(), "key")
	must(t, os.WriteFile(file, []byte("sk-two"), 0o600))
	write(`{"tenants":{"a":{"file":"` + file + `"},"b":{"api_key":"sk-b","oauth_token":"x"}}}`)
	w.look(t.Context())
	if key() != "sk-two" {
		t.Errorf("the key is %s", key())
	}
	m.wantKind(t, "b", claude.OAuth) // its own entry is broken
	if st := m.status("b"); st.Configured || !strings.Contains(st.Message, "exactly one of") || strings.Contains(st.Message, "sk-b") {
		t.Errorf("the status: %+v", st)
	}
	must(t, os.WriteFile(file, []byte("sk-three"), 0o600))
	w.look(t.Context())
	if key() != "sk-three" {
		t.Errorf("the key's own file has changed, and the key is %s", key())
	}
	write(`{"tenants":{}}`)
	w.look(t.Context())
	m.wantKind(t, "a", "")
	if len(to.configs[len(to.configs)-1].Tenants) != 0 {
		t.Error("egress has keys of tenants that were taken out")
	}
	for _, s := range []string{"sk-", "oat-", "common"} {
		if strings.Contains(log.String(), s) {
			t.Errorf("the log has a key: %s", log)
		}
	}
}

func TestModelRefusesTenantsFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tenants.json")
	must(t, os.WriteFile(file, []byte(`{"tenants":{"a":{"api_key":"sk-a"}}}`), 0o644))
	cfg := &config.Config{Agent: config.Agent{TenantCredentialsFile: file}}
	if _, err := newModel(cfg, nil, false, &told{}, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("%v", err)
	}
}

func TestDescribeTenants(t *testing.T) {
	m, _, _, write := tenantModel(t, false)
	write(`{"tenants":{"a":{"api_key":"sk-a"},"b":{}}}`)
	common, tenants, terr := describeCredentials(m.cfg, m.environ, false)
	found := setup.CheckCredentials(common, tenants, terr, time.Now())
	var lines []string
	for _, f := range found {
		lines = append(lines, string(f.Status)+" "+f.Check+": "+f.Found)
	}
	all := strings.Join(lines, "\n")
	for _, want := range []string{"warning credentials: no Claude credentials", "ok key of a: api_key from STROMBOLI_AGENT_TENANT", "failed key of b: "} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is missing in\n%s", want, all)
		}
	}
	s := &server{cfg: m.cfg, model: m, recent: &recent{now: time.Now}}
	fault := func() string {
		if err := s.credentialFault(t.Context()); err != nil {
			return err.Error()
		}
		return ""
	}
	if why := fault(); why != "" {
		t.Errorf("a has a key: %s", why)
	}
	write(`{"tenants":{"b":{}}}`)
	if why := fault(); why == "" || strings.Contains(why, "tenant b") {
		t.Errorf("nobody has a key: %q", why)
	}
	write(`{`)
	if why := fault(); why != errTenantsFile.Error() {
		t.Errorf("a broken file: %q", why)
	}
}
