package config

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/caarlos0/env/v11"
)

// CustomHeaders are the headers of each request to the model, as
// ANTHROPIC_CUSTOM_HEADERS has them in the CLI's own form: one "Name: value"
// per line. A gateway may want them beside a credential or in place of one.
func CustomHeaders(environ []string) (map[string]string, error) {
	headers := map[string]string{}
	for line := range strings.Lines(env.ToMap(environ)["ANTHROPIC_CUSTOM_HEADERS"]) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return nil, fmt.Errorf("a line is not \"Name: value\"") // which may be a secret
		}
		headers[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	return headers, nil
}

// UpstreamProxy is the proxy that this host's requests go through.
type UpstreamProxy struct {
	URL     Secret // http:// or https://, perhaps with a user and a password; empty: none
	NoProxy string // hosts that are reached without it
}

// Proxy is what HTTPS_PROXY and NO_PROXY say, in either case; the lower one
// comes first, as in curl.
func Proxy(environ []string) UpstreamProxy {
	vars := env.ToMap(environ)
	first := func(names ...string) string {
		for _, name := range names {
			if v := vars[name]; v != "" {
				return v
			}
		}
		return ""
	}
	return UpstreamProxy{URL: Secret(first("https_proxy", "HTTPS_PROXY")), NoProxy: first("no_proxy", "NO_PROXY")}
}

// RegistryAuthFiles are the files that may hold this user's logins for
// registries, as Podman's own tools look for them: what REGISTRY_AUTH_FILE
// names alone, else Podman's, then Docker's.
func RegistryAuthFiles(environ []string, uid int) []string {
	vars := env.ToMap(environ)
	if f := vars["REGISTRY_AUTH_FILE"]; f != "" {
		return []string{f}
	}
	var files []string
	if dir := vars["XDG_RUNTIME_DIR"]; filepath.IsAbs(dir) {
		files = append(files, filepath.Join(dir, "containers", "auth.json"))
	} else {
		files = append(files, filepath.Join("/run/containers", strconv.Itoa(uid), "auth.json"))
	}
	docker := vars["DOCKER_CONFIG"]
	if home := vars["HOME"]; home != "" {
		if dir := vars["XDG_CONFIG_HOME"]; filepath.IsAbs(dir) {
			files = append(files, filepath.Join(dir, "containers", "auth.json"))
		} else {
			files = append(files, filepath.Join(home, ".config", "containers", "auth.json"))
		}
		if docker == "" {
			docker = filepath.Join(home, ".docker")
		}
	}
	if docker != "" {
		files = append(files, filepath.Join(docker, "config.json"))
	}
	return files
}
