package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTenantCredentials(t *testing.T) {
	key, cli := file(t, "sk-ant-oat01-b\n"), file(t, `{"claudeAiOauth":{"accessToken":"login","expiresAt":1700000000000}}`)
	c := &Config{Agent: Agent{TenantCredentialsFile: file(t, `{"tenants":{
		"a":{"api_key":"key-a"},
		"b":{"file":"`+key+`","base_url":"https://gateway.example/v/"},
		"c":{"file":"`+cli+`","headers":{"X-Team":"c"}},
		"d":{"auth_token":"key-d"},
		"e":{"oauth_token":"key-e"},
		"two":{"api_key":"hunter2","auth_token":"hunter2"},
		"none":{},
		"gone":{"file":"/nonexistent/key"},
		"relative":{"file":"key"}
	}}`)}}
	environ := []string{"ANTHROPIC_BASE_URL=https://common.example/", "ANTHROPIC_CUSTOM_HEADERS=X-Common: hunter2"}
	got, err := c.LoadTenantCredentials(environ)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"a": "api_key key-a https://common.example map[X-Common:hunter2] " + tenantsFileVar,
		"b": "oauth sk-ant-oat01-b https://gateway.example/v map[] " + key, // the common headers are for the common endpoint
		"c": "oauth login https://common.example map[X-Team:c] " + cli,
		"d": "auth_token key-d https://common.example map[X-Common:hunter2] " + tenantsFileVar,
		"e": "oauth key-e https://common.example map[X-Common:hunter2] " + tenantsFileVar,
	} {
		g := got[name]
		if s := fmt.Sprintf("%s %s %s %v %s", g.Kind, string(g.Value), g.BaseURL, g.Headers, g.Source); g.Err != nil || s != want {
			t.Errorf("%s: %v\n got %s\nwant %s", name, g.Err, s, want)
		}
	}
	if got["c"].Expires.IsZero() {
		t.Error("the login's end was not read")
	}
	for _, name := range []string{"two", "none", "gone", "relative"} {
		if g := got[name]; g.Err == nil || !strings.Contains(g.Err.Error(), "tenant "+name) || strings.Contains(g.Err.Error(), "hunter2") || g.Value != "" && name != "two" {
			t.Errorf("%s: %v", name, g.Err)
		}
	}
	if len(got) != 9 {
		t.Errorf("%d tenants", len(got))
	}
}

func TestTenantCredentialsFile(t *testing.T) {
	if got, err := (&Config{}).LoadTenantCredentials(nil); got != nil || err != nil {
		t.Errorf("without a file: %v, %v", got, err)
	}
	for _, text := range []string{
		`{"tenants":{"a":{"api_key":"hunter2"`, `{"tenants":{"a":{"api_key":["hunter2"]}}}`, `{"tenants":{"a":{"key":"hunter2"}}}`, `{}`,
		`{"tenants":{}} hunter2`, `{"tenants":{"a/b":{"api_key":"hunter2"}}}`,
	} {
		c := &Config{Agent: Agent{TenantCredentialsFile: file(t, text)}}
		got, err := c.LoadTenantCredentials(nil)
		if err == nil || got != nil || !strings.Contains(err.Error(), tenantsFileVar) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", text, err)
		}
	}
	open := file(t, `{"tenants":{}}`)
	if err := os.Chmod(open, 0o640); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{open: "chmod 600", filepath.Join(t.TempDir(), "missing"): "no such file"} {
		c := &Config{Agent: Agent{TenantCredentialsFile: path}}
		if _, err := c.LoadTenantCredentials(nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
