package config

import (
	"fmt"
	"path/filepath"
	"strings"
)

// privateName is the directory among the sessions' that holds what the server
// mounts into sandboxes, where the engine sees nothing else of the server's.
const privateName = ".stromboli"

// expandHome puts the home directory in the place of a leading ~/, as a shell
// would: files and units have none.
func (c *Config) expandHome() {
	paths := []*string{
		&c.DataDir, &c.CacheDir, &c.APITokensFile, &c.Agent.SessionsDir, &c.Agent.SecretsFile, &c.Agent.CredentialsFile,
		&c.Agent.TenantCredentialsFile, &c.Secrets.KeyFile, &c.Audit.File, &c.TLS.Cert, &c.TLS.Key,
	}
	for i := range c.Agent.AllowedVolumes {
		paths = append(paths, &c.Agent.AllowedVolumes[i])
	}
	for _, p := range paths {
		if rest, found := strings.CutPrefix(*p, "~/"); found && c.home != "" {
			*p = filepath.Join(c.home, rest)
		}
	}
}

// absolute checks the paths of a server in a container.
func (c *Config) absolute() error {
	for _, v := range []struct {
		name string
		path *string
	}{
		{"STROMBOLI_DATA_HOST_DIR", &c.DataHostDir},
		{"STROMBOLI_AGENT_SESSIONS_DIR", &c.Agent.SessionsDir},
		{"STROMBOLI_AGENT_SESSIONS_HOST_DIR", &c.Agent.SessionsHostDir},
		{"STROMBOLI_AUDIT_FILE", &c.Audit.File},
	} {
		if *v.path == "" {
			continue
		}
		if !filepath.IsAbs(*v.path) {
			return fmt.Errorf("%s: %q is not an absolute path", v.name, *v.path)
		}
		*v.path = filepath.Clean(*v.path)
	}
	return nil
}

// SessionsDir is where the sessions' directories lie.
func (c *Config) SessionsDir() string {
	if c.Agent.SessionsDir != "" {
		return c.Agent.SessionsDir
	}
	return filepath.Join(c.DataDir, "sessions")
}

// SharedDir is where everything else lies that sandboxes mount, and egress's
// directory: the data directory, unless the engine sees only the sessions'.
func (c *Config) SharedDir() string {
	if c.Agent.SessionsHostDir != "" && c.DataHostDir == "" {
		return filepath.Join(c.SessionsDir(), privateName)
	}
	return c.DataDir
}

// HostPath translates a path of the server's to the engine's host's. It is the
// only place that knows that they differ.
func (c *Config) HostPath(path string) string {
	for _, m := range []struct{ from, to string }{
		{c.SessionsDir(), c.Agent.SessionsHostDir}, {c.DataDir, c.DataHostDir},
	} {
		if m.to == "" {
			continue
		}
		if rest, found := strings.CutPrefix(path, m.from); found && (rest == "" || rest[0] == '/') {
			return filepath.Join(m.to, rest)
		}
	}
	return path
}
