package claude

import (
	"maps"
	"slices"
	"strings"

	"github.com/tomblancdev/stromboli"
)

// Bounds of a run's own environment variables.
const (
	maxEnv      = 100
	maxEnvName  = 256
	maxEnvBytes = 64 << 10 // names and values together
)

// ReservedName says why a caller can't set a variable; empty: it can. Such
// names would change what is loaded into the agent's processes, whom the CLI
// talks to and as whom, or where its files are.
func ReservedName(name string) string {
	upper := strings.ToUpper(name)
	switch upper {
	case "PATH", "HOME", "USER", "LOGNAME", "TERM", "BASH_ENV", "ENV", "SHELLOPTS", "BASHOPTS", "IFS", "GCONV_PATH":
		return "is the sandbox's own"
	case "NODE_OPTIONS", "BUN_OPTIONS", "NODE_EXTRA_CA_CERTS", "NODE_TLS_REJECT_UNAUTHORIZED", "SSL_CERT_FILE", "SSL_CERT_DIR",
		"IS_SANDBOX", "DISABLE_AUTOUPDATER", "NODE_USE_ENV_PROXY":
		return "is the agent CLI's, which the server sets up"
	case "ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "FTP_PROXY":
		return "is the sandbox's way out, which the server sets up"
	case "ENABLE_PROMPT_CACHING_1H", "FORCE_PROMPT_CACHING_5M":
		return "is the agent CLI's; use claude.prompt_caching_ttl"
	}
	for _, prefix := range []string{"ANTHROPIC_", "CLAUDE_", "CLAUDECODE", "VERTEX_REGION_"} {
		if strings.HasPrefix(upper, prefix) {
			return "is the agent CLI's; the fields of claude set what may be set of it"
		}
	}
	for _, prefix := range []string{"LD_", "DYLD_", "BUN_INSTALL", "GLIBC_TUNABLES", "STROMBOLI_", "BASH_FUNC_"} {
		if strings.HasPrefix(upper, prefix) {
			return "is the sandbox's own"
		}
	}
	return ""
}

// ValidateEnv checks a run's own variables. An error is a stromboli.Error that
// names the field.
func ValidateEnv(field string, env map[string]string) error {
	if len(env) > maxEnv {
		return stromboli.FieldError(field, "has %d entries, at most %d are possible", len(env), maxEnv)
	}
	size := 0
	for _, name := range slices.Sorted(maps.Keys(env)) {
		value := env[name]
		if !envName(name) {
			return stromboli.FieldError(field, "%s is no name of an environment variable: letters, digits and _, at most %d, no digit first", quote(name), maxEnvName)
		}
		if why := ReservedName(name); why != "" {
			return stromboli.FieldError(field+"."+name, "%s", why)
		}
		if strings.ContainsRune(value, 0) {
			return stromboli.FieldError(field+"."+name, "holds a NUL character")
		}
		if size += len(name) + len(value) + 2; size > maxEnvBytes {
			return stromboli.FieldError(field, "is larger than %d bytes", maxEnvBytes)
		}
	}
	return nil
}

// trustNames are the variables by which tools find the certificates that they
// trust: git, curl, what is made with OpenSSL or Go (Python and Ruby among them),
// Node and npm, Python's requests, pip, cargo, and the AWS tools.
func trustNames() []string {
	return []string{
		"GIT_SSL_CAINFO", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CARGO_HTTP_CAINFO", "AWS_CA_BUNDLE",
	}
}

// ValidateTrust refuses variables that a run with bindings gets from the
// server.
func ValidateTrust(field string, env map[string]string) error {
	for _, name := range trustNames() {
		if _, set := env[name]; set {
			return stromboli.FieldError(field+"."+name, "is set up by the server for a run with bindings")
		}
	}
	return nil
}

// maxSecretsEnv is how many secrets a run may have in its environment.
const maxSecretsEnv = 50

// ValidateSecretsEnv checks which variables are to hold secrets: names as those
// of ValidateEnv, and none twice. Whether the secrets exist is for others to say.
func ValidateSecretsEnv(field string, secrets, env map[string]string) error {
	if len(secrets) > maxSecretsEnv {
		return stromboli.FieldError(field, "has %d entries, at most %d are possible", len(secrets), maxSecretsEnv)
	}
	for _, name := range slices.Sorted(maps.Keys(secrets)) {
		_, twice := env[name]
		switch {
		case !envName(name):
			return stromboli.FieldError(field, "%s is no name of an environment variable: letters, digits and _, at most %d, no digit first", quote(name), maxEnvName)
		case ReservedName(name) != "":
			return stromboli.FieldError(field+"."+name, "%s", ReservedName(name))
		case twice:
			return stromboli.FieldError(field+"."+name, "is set in env too")
		case strings.HasPrefix(secrets[name], "engine:"): // configuration says which
		case !stromboli.ValidSecretName(secrets[name]):
			return stromboli.FieldError(field+"."+name, "%s is no secret's name: 1 to %d letters, digits, dashes and underscores", quote(secrets[name]), stromboli.MaxSecretName)
		}
	}
	return nil
}

func envName(s string) bool {
	if s == "" || len(s) > maxEnvName || s[0] >= '0' && s[0] <= '9' {
		return false
	}
	for _, c := range []byte(s) {
		if c != '_' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}
