package claude

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/tomblancdev/stromboli"
)

// DefaultPath is the PATH of an agent whose image names none.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Placeholder stands in the sandbox where the credential would be. It is no
// secret: the real one is put on outside.
const Placeholder = "placeholder-the-real-credential-is-not-in-this-sandbox"

// The kinds of credentials. The CLI sends other headers and asks for other
// cache lifetimes with each, so the placeholder is of the real one's kind.
const (
	APIKey    = "api_key"
	AuthToken = "auth_token"
	OAuth     = "oauth"
)

// EnvConfig is what the agent's environment is made from.
type EnvConfig struct {
	// Image is the environment of the image, "NAME=value"; its entries come
	// first and are overridden by all that follow.
	Image []string
	// Home is the agent's home directory in the sandbox.
	Home string
	// User is the agent's name there; empty: agent.
	User string
	// TempDir is where the CLI keeps its sockets and task output; empty: /tmp.
	TempDir string
	// Timezone becomes TZ; empty: the image's.
	Timezone string
	// Endpoint is the loopback URL that is both the model's API and the proxy,
	// without a trailing slash.
	Endpoint string
	// Connect is the path, in the sandbox, of a ProxyCommand for ssh; empty: none.
	Connect string
	// CredentialKind is APIKey, AuthToken or OAuth; anything else counts as
	// APIKey.
	CredentialKind string
	// MaxRetries bounds the CLI's attempts at one model request; negative: the
	// CLI's default of 10, with delays of up to half a minute each.
	MaxRetries int
	// Caller are the run's own variables, which have passed ValidateEnv; they
	// come after the image's.
	Caller map[string]string
	// Secrets are further variables of the run's, which have passed
	// ValidateSecretsEnv.
	Secrets map[string]string
	// Bundle and Authority are files with the certificates that tools are to trust:
	// the image's authorities and the sandbox's, and the latter alone. Empty: as
	// the image has it.
	Bundle, Authority string
	// Options are the run's: some of them the CLI takes from its environment.
	Options stromboli.ClaudeOptions
	// TraceParent is the place in a trace that the CLI's own spans join, which it
	// sends to Endpoint; empty: it makes none.
	TraceParent string
}

// ownedName reports names that must not come from an image: they would change
// whom the CLI talks to, as whom, or what is loaded into it.
func ownedName(name string) bool {
	upper := strings.ToUpper(name)
	switch upper {
	case "TERM", "IS_SANDBOX", "CLAUDECODE", "NODE_OPTIONS", "BUN_OPTIONS", "LD_PRELOAD", "ALL_PROXY":
		return true
	}
	for _, prefix := range []string{"ANTHROPIC_", "CLAUDE_", "STROMBOLI_"} {
		if strings.HasPrefix(upper, prefix) {
			return true
		}
	}
	return false
}

// Env is the environment of the agent's process, each name once.
//
// TERM is left out, since there is no terminal. Retries stay at the CLI's
// default, because overloads of the model often last minutes. What no retry can
// change ends soon all the same: egress marks a 401 as not worth repeating, and
// the CLI then asks once with an API key or token and twice with an OAuth token
// (measured).
func Env(c EnvConfig) []string {
	e := environ{}
	for _, kv := range c.Image {
		if name, value, ok := strings.Cut(kv, "="); ok && name != "" && !ownedName(name) {
			e.set(name, value)
		}
	}
	if e.value("PATH") == "" {
		e.set("PATH", DefaultPath)
	}
	user := c.User
	if user == "" {
		user = "agent"
	}
	e.set("HOME", c.Home)
	e.set("USER", user)
	e.set("LOGNAME", user)
	e.set("LANG", "C.UTF-8")
	if c.Connect != "" {
		// Nobody is there to be asked about the key of a host that is new.
		e.set("GIT_SSH_COMMAND", `ssh -o ProxyCommand="`+c.Connect+` %h %p" -o StrictHostKeyChecking=accept-new`)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Caller)) {
		if envName(name) && ReservedName(name) == "" {
			e.set(name, c.Caller[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Secrets)) {
		if envName(name) && ReservedName(name) == "" {
			e.set(name, c.Secrets[name])
		}
	}
	if _, own := c.Caller["TZ"]; c.Timezone != "" && !own {
		e.set("TZ", c.Timezone)
	}
	if c.TempDir != "" {
		e.set("TMPDIR", c.TempDir)
		e.set("CLAUDE_CODE_TMPDIR", c.TempDir)
	}

	// The network: one loopback port for everything.
	e.set("ANTHROPIC_BASE_URL", c.Endpoint)
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY"} {
		e.set(name, c.Endpoint)
		e.set(strings.ToLower(name), c.Endpoint)
	}
	e.set("NO_PROXY", "localhost,127.0.0.1,::1")
	e.set("no_proxy", "localhost,127.0.0.1,::1")
	e.set("NODE_USE_ENV_PROXY", "1")

	for _, name := range trustNames() {
		switch {
		case c.Bundle == "":
		case name == "NODE_EXTRA_CA_CERTS": // comes on top of Node's own
			e.set(name, c.Authority)
		default:
			e.set(name, c.Bundle)
		}
	}

	switch c.CredentialKind {
	case AuthToken:
		e.set("ANTHROPIC_AUTH_TOKEN", Placeholder)
	case OAuth:
		e.set("CLAUDE_CODE_OAUTH_TOKEN", Placeholder)
	default:
		e.set("ANTHROPIC_API_KEY", Placeholder)
	}

	// A repository's settings must not redirect the CLI, and it has no
	// business at hosts other than the model's.
	e.set("CLAUDE_CODE_PROVIDER_MANAGED_BY_HOST", "1")
	e.set("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1")
	e.set("DISABLE_AUTOUPDATER", "1")
	switch c.Options.PromptCachingTTL {
	case "1h":
		e.set("ENABLE_PROMPT_CACHING_1H", "1")
	case "5m":
		e.set("FORCE_PROMPT_CACHING_5M", "1")
	}
	if c.Options.EnablePowershellTool {
		e.set("CLAUDE_CODE_USE_POWERSHELL_TOOL", "1")
	}
	if c.TraceParent != "" && !c.ownTelemetry() {
		e.setTracing(c)
	}
	if c.MaxRetries >= 0 {
		e.set("CLAUDE_CODE_MAX_RETRIES", strconv.Itoa(c.MaxRetries))
	}
	return e.list
}

// ownTelemetry reports whether the caller or the image has telemetry of its own,
// which must not be led elsewhere.
func (c EnvConfig) ownTelemetry() bool {
	own := func(name string) bool { return strings.HasPrefix(name, "OTEL_") || name == "TRACEPARENT" }
	for _, vars := range []map[string]string{c.Caller, c.Secrets} {
		for name := range vars {
			if own(name) {
				return true
			}
		}
	}
	return slices.ContainsFunc(c.Image, own)
}

// setTracing has the CLI make spans, and nothing else: no metrics, no logs, and
// nothing in the spans of what is said.
func (e *environ) setTracing(c EnvConfig) {
	for _, kv := range [][2]string{
		{"CLAUDE_CODE_ENABLE_TELEMETRY", "1"},
		{"CLAUDE_CODE_ENHANCED_TELEMETRY_BETA", "1"},
		{"OTEL_TRACES_EXPORTER", "otlp"},
		{"OTEL_METRICS_EXPORTER", "none"},
		{"OTEL_LOGS_EXPORTER", "none"},
		{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"},
		{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", c.Endpoint + "/v1/traces"},
		{"OTEL_LOG_USER_PROMPTS", "0"},
		{"OTEL_LOG_TOOL_DETAILS", "0"},
		{"OTEL_LOG_TOOL_CONTENT", "0"},
		{"TRACEPARENT", c.TraceParent},
	} {
		e.set(kv[0], kv[1])
	}
}

// environ keeps "NAME=value" entries in order, each name once.
type environ struct {
	list []string
}

func (e *environ) index(name string) int {
	for i, kv := range e.list {
		if n, _, _ := strings.Cut(kv, "="); n == name {
			return i
		}
	}
	return -1
}

func (e *environ) value(name string) string {
	if i := e.index(name); i >= 0 {
		return e.list[i][len(name)+1:]
	}
	return ""
}

func (e *environ) set(name, value string) {
	if i := e.index(name); i >= 0 {
		e.list[i] = name + "=" + value
		return
	}
	e.list = append(e.list, name+"="+value)
}
