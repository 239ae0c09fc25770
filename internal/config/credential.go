package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
)

// CredentialKind is what sort of key the model's API gets; the CLI sends
// different headers for each, so the sandbox's placeholder has the same kind.
type CredentialKind string

// The kinds.
const (
	APIKey    CredentialKind = "api_key"    // x-api-key
	AuthToken CredentialKind = "auth_token" // Authorization: Bearer
	OAuth     CredentialKind = "oauth"      // Authorization: Bearer, of a Claude subscription
)

// Secret is a string that doesn't show itself when printed.
type Secret string

// String hides the value.
func (Secret) String() string { return "[hidden]" }

// GoString hides the value.
func (Secret) GoString() string { return "[hidden]" }

// MarshalJSON hides the value.
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"[hidden]"`), nil }

// Credential is the key for the model's API and where it came from.
type Credential struct {
	Kind    CredentialKind
	Value   Secret
	Source  string    // for people: the variable's name or the file's path
	Expires time.Time // zero: not known
	BaseURL string    // the model's endpoint, without a trailing slash
}

// DefaultBaseURL is the model's public endpoint.
const DefaultBaseURL = "https://api.anthropic.com"

// ErrNoCredential tells that no source has a credential.
var ErrNoCredential = errors.New("no Claude credentials: set ANTHROPIC_API_KEY or CLAUDE_CODE_OAUTH_TOKEN (made by `claude setup-token`), " +
	"name a file that holds one in STROMBOLI_AGENT_SECRETS_FILE, or log in with the Claude CLI; `--demo` needs none")

// BaseURL is the model's endpoint, as ANTHROPIC_BASE_URL names it.
func BaseURL(environ []string) string {
	if base := strings.TrimRight(env.ToMap(environ)["ANTHROPIC_BASE_URL"], "/"); base != "" {
		return base
	}
	return DefaultBaseURL
}

const maxSecretFile = 64 << 10

// LoadCredential looks for the model's credential in the order in which the
// CLI itself would: ANTHROPIC_API_KEY, ANTHROPIC_AUTH_TOKEN,
// CLAUDE_CODE_OAUTH_TOKEN, then the secrets file, then the CLI's own
// credentials file. The files are read anew at each call.
func (c *Config) LoadCredential(environ []string) (Credential, error) {
	vars := env.ToMap(environ)
	base := BaseURL(environ)
	for _, v := range []struct {
		name string
		kind CredentialKind
	}{{"ANTHROPIC_API_KEY", APIKey}, {"ANTHROPIC_AUTH_TOKEN", AuthToken}, {"CLAUDE_CODE_OAUTH_TOKEN", OAuth}} {
		if s := strings.TrimSpace(vars[v.name]); s != "" {
			return Credential{Kind: v.kind, Value: Secret(s), Source: v.name, BaseURL: base}, nil
		}
	}
	if f := c.Agent.SecretsFile; f != "" {
		b, err := readSmall(f)
		if err != nil {
			return Credential{}, fmt.Errorf("STROMBOLI_AGENT_SECRETS_FILE: %w", err)
		}
		cred, err := oneToken(f, b)
		if err != nil {
			return Credential{}, fmt.Errorf("STROMBOLI_AGENT_SECRETS_FILE: %w", err)
		}
		cred.BaseURL = base
		return cred, nil
	}
	return c.cliCredential(base)
}

// oneToken is the credential of a file that holds nothing else.
func oneToken(path string, content []byte) (Credential, error) {
	token := strings.TrimSpace(string(content))
	if token == "" || strings.ContainsAny(token, " \t\r\n") {
		return Credential{}, fmt.Errorf("%s does not hold one token", path)
	}
	return Credential{Kind: tokenKind(token), Value: Secret(token), Source: path}, nil
}

// tokenKind tells an OAuth token from an API key by its published prefix.
func tokenKind(token string) CredentialKind {
	if strings.HasPrefix(token, "sk-ant-oat") {
		return OAuth
	}
	return APIKey
}

func (c *Config) cliCredential(base string) (Credential, error) {
	f := c.Agent.CredentialsFile
	if f == "" {
		return Credential{}, ErrNoCredential
	}
	b, err := readSmall(f)
	if errors.Is(err, fs.ErrNotExist) {
		return Credential{}, ErrNoCredential
	}
	if err != nil {
		return Credential{}, fmt.Errorf("reading the Claude CLI's credentials: %w", err)
	}
	cred, err := login(f, b)
	cred.BaseURL = base
	return cred, err
}

// login is the credential of the Claude CLI's own file.
func login(f string, content []byte) (Credential, error) {
	var file struct {
		OAuth struct {
			AccessToken string `json:"accessToken"`
			ExpiresAt   int64  `json:"expiresAt"` // milliseconds since 1970, or null
		} `json:"claudeAiOauth"`
	}
	if err := json.Unmarshal(content, &file); err != nil {
		return Credential{}, fmt.Errorf("%s is not the Claude CLI's credentials file: %w", f, err)
	}
	if file.OAuth.AccessToken == "" {
		return Credential{}, ErrNoCredential
	}
	cred := Credential{Kind: OAuth, Value: Secret(file.OAuth.AccessToken), Source: f}
	if file.OAuth.ExpiresAt > 0 {
		cred.Expires = time.UnixMilli(file.OAuth.ExpiresAt)
	}
	return cred, nil
}

func readSmall(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxSecretFile {
		return nil, fmt.Errorf("%s: not a regular file of at most %d bytes", path, maxSecretFile)
	}
	return os.ReadFile(path)
}
