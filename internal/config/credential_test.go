package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// The sources count in their order: taking the first away leaves the second.
func TestCredentialOrder(t *testing.T) {
	environ := []string{"ANTHROPIC_API_KEY= key1 ", "ANTHROPIC_AUTH_TOKEN=key2", "CLAUDE_CODE_OAUTH_TOKEN=key3"}
	c := &Config{Agent: Agent{
		SecretsFile:     file(t, "sk-ant-oat01-key4\n"),
		CredentialsFile: file(t, `{"claudeAiOauth":{"accessToken":"key5","expiresAt":1700000000000}}`),
	}}
	for i, want := range []Credential{
		{Kind: APIKey, Value: "key1", Source: "ANTHROPIC_API_KEY"},
		{Kind: AuthToken, Value: "key2", Source: "ANTHROPIC_AUTH_TOKEN"},
		{Kind: OAuth, Value: "key3", Source: "CLAUDE_CODE_OAUTH_TOKEN"},
		{Kind: OAuth, Value: "sk-ant-oat01-key4", Source: c.Agent.SecretsFile},
		{Kind: OAuth, Value: "key5", Source: c.Agent.CredentialsFile, Expires: time.UnixMilli(1700000000000)},
	} {
		want.BaseURL = DefaultBaseURL
		got, err := c.LoadCredential(environ)
		if err != nil || got != want {
			t.Errorf("%d: kind %s from %s, %v; want %s", i, got.Kind, got.Source, err, want.Source)
		}
		switch {
		case len(environ) > 1:
			environ = environ[1:]
		case len(environ) == 1:
			environ = nil
		default:
			c.Agent.SecretsFile = ""
		}
	}
	c.Agent.CredentialsFile = ""
	if _, err := c.LoadCredential([]string{"ANTHROPIC_API_KEY="}); !errors.Is(err, ErrNoCredential) {
		t.Errorf("without any: %v", err)
	}
}

func TestCredentialFiles(t *testing.T) {
	for text, kind := range map[string]CredentialKind{
		"sk-ant-api03-x": APIKey, "\n sk-ant-oat01-x \n": OAuth, "": "", "two tokens": "", "a\nb": "",
		strings.Repeat("x", maxSecretFile+1): "",
	} {
		c := &Config{Agent: Agent{SecretsFile: file(t, text)}}
		got, err := c.LoadCredential(nil)
		if got.Kind != kind || (err == nil) != (kind != "") {
			t.Errorf("%.20q: %s, %v", text, got.Kind, err)
		}
		if err != nil && (!strings.Contains(err.Error(), "STROMBOLI_AGENT_SECRETS_FILE") || strings.Contains(err.Error(), "tokens")) {
			t.Errorf("%.20q: error %v", text, err)
		}
	}
	for text, want := range map[string]error{
		`{}`: ErrNoCredential, `{"claudeAiOauth":{"accessToken":""}}`: ErrNoCredential,
		`{"claudeAiOauth":{"accessToken":"t","expiresAt":null}}`: nil,
	} {
		c := &Config{Agent: Agent{CredentialsFile: file(t, text)}}
		if _, err := c.LoadCredential(nil); !errors.Is(err, want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	c := &Config{Agent: Agent{CredentialsFile: file(t, `{"claudeAiOauth":`)}}
	if _, err := c.LoadCredential(nil); err == nil || errors.Is(err, ErrNoCredential) {
		t.Errorf("a damaged file: %v", err)
	}
	c.Agent.CredentialsFile = filepath.Join(t.TempDir(), "missing")
	if _, err := c.LoadCredential(nil); !errors.Is(err, ErrNoCredential) {
		t.Errorf("a missing file: %v", err)
	}
	c.Agent.SecretsFile = t.TempDir()
	if _, err := c.LoadCredential(nil); err == nil || errors.Is(err, ErrNoCredential) {
		t.Errorf("a directory: %v", err)
	}
}

func TestBaseURL(t *testing.T) {
	got, err := (&Config{}).LoadCredential([]string{"ANTHROPIC_API_KEY=k", "ANTHROPIC_BASE_URL=http://proxy/prefix/"})
	if err != nil || got.BaseURL != "http://proxy/prefix" {
		t.Errorf("%s, %v", got.BaseURL, err)
	}
}

func TestSecretsHide(t *testing.T) {
	cred := Credential{Value: "hunter2"}
	b, err := json.Marshal(cred)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{string(b), fmt.Sprint(cred), fmt.Sprintf("%+v %#v %s %q", cred, cred, cred.Value, cred.Value)} {
		if strings.Contains(s, "hunter2") {
			t.Errorf("it shows: %s", s)
		}
	}
}
