package setup

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

const npmrcLimit = 1 << 20

// npmrc is what npm's own configuration says: environment over the user's
// file over the global one. The current directory's file is left out, since
// setup has nothing to do with the project that it happens to be called in.
type npmrc struct {
	values map[string]string
	env    []string
}

func readNpmrc(env []string) (npmrc, error) {
	c := npmrc{values: map[string]string{}, env: env}
	fromEnv := map[string]string{}
	for _, kv := range env {
		key, value, _ := strings.Cut(kv, "=")
		if len(key) > len("npm_config_") && strings.EqualFold(key[:len("npm_config_")], "npm_config_") && value != "" {
			fromEnv[envKey(key[len("npm_config_"):])] = value
		}
	}
	for _, path := range npmrcFiles(env, fromEnv) {
		if err := c.readFile(path); err != nil {
			return c, err
		}
	}
	for k, v := range fromEnv {
		c.values[k] = v
	}
	return c, nil
}

// envKey turns the rest of an npm_config_ variable into a key, as npm does:
// credentials of a registry keep their spelling.
func envKey(key string) string {
	if strings.HasPrefix(key, "//") || strings.HasPrefix(key, "@") {
		return key
	}
	lower := strings.ToLower(key)
	if strings.HasPrefix(lower, "_") {
		return lower
	}
	return strings.ReplaceAll(lower, "_", "-")
}

// npmrcFiles lists the files by rising weight.
func npmrcFiles(env []string, fromEnv map[string]string) []string {
	var files []string
	if global := fromEnv["globalconfig"]; global != "" {
		files = append(files, global)
	} else {
		files = append(files, "/usr/etc/npmrc", "/usr/local/etc/npmrc", "/etc/npmrc")
		if prefix := lookup(env, "PREFIX"); filepath.IsAbs(prefix) {
			files = append(files, filepath.Join(prefix, "etc", "npmrc"))
		}
	}
	if user := fromEnv["userconfig"]; user != "" {
		return append(files, user)
	}
	if home := lookup(env, "HOME"); filepath.IsAbs(home) {
		files = append(files, filepath.Join(home, ".npmrc"))
	}
	return files
}

func (c npmrc) readFile(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read npm's configuration: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, npmrcLimit))
	if err != nil {
		return fmt.Errorf("read npm's configuration %s: %w", path, err)
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, ";") || strings.HasPrefix(line, "#") || strings.HasPrefix(line, "[") {
			continue
		}
		key, value, _ := strings.Cut(line, "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if len(value) >= 2 && (value[0] == '"' || value[0] == '\'') && value[len(value)-1] == value[0] {
			value = value[1 : len(value)-1]
		}
		c.values[c.expand(key)] = c.expand(value)
	}
	return nil
}

// expand replaces ${NAME} by the environment's value and, as npm does, leaves
// unknown names as they stand.
func (c npmrc) expand(s string) string {
	var out strings.Builder
	for {
		before, rest, ok := strings.Cut(s, "${")
		out.WriteString(before)
		if !ok {
			return out.String()
		}
		name, after, ok := strings.Cut(rest, "}")
		if !ok {
			out.WriteString("${" + rest)
			return out.String()
		}
		if v := lookup(c.env, strings.TrimSuffix(name, "?")); v != "" || strings.HasSuffix(name, "?") {
			out.WriteString(v)
		} else {
			out.WriteString("${" + name + "}")
		}
		s = after
	}
}

// registry returns the registry of a package, or "" if none is configured.
func (c npmrc) registry(pkg string) string {
	if scope, _, ok := strings.Cut(pkg, "/"); ok && strings.HasPrefix(scope, "@") {
		if r := c.values[scope+":registry"]; r != "" {
			return r
		}
	}
	return c.values["registry"]
}

// authorization returns the header for a URL: the credentials of the longest
// configured prefix of its host and path, so that a token never goes to
// another host than the one it was given for.
func (c npmrc) authorization(u *url.URL) string {
	dir := u.Path
	for {
		prefix := "//" + u.Host + strings.TrimSuffix(dir, "/")
		for _, p := range []string{prefix + "/", prefix} {
			if h := c.credentials(p + ":"); h != "" {
				return h
			}
		}
		dir = strings.TrimSuffix(dir, "/")
		i := strings.LastIndexByte(dir, '/')
		if i < 0 {
			return ""
		}
		dir = dir[:i]
	}
}

func (c npmrc) credentials(prefix string) string {
	if t := c.values[prefix+"_authToken"]; t != "" {
		return "Bearer " + t
	}
	if a := c.values[prefix+"_auth"]; a != "" {
		return "Basic " + a
	}
	user, secret := c.values[prefix+"username"], c.values[prefix+"_password"]
	if user == "" || secret == "" {
		return ""
	}
	password, err := base64.StdEncoding.DecodeString(secret)
	if err != nil {
		return ""
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+string(password)))
}

// proxy chooses the proxy of a request: npm's setting, else the usual
// variables, with exceptions by name and suffix.
func (c npmrc) proxy(r *http.Request) (*url.URL, error) {
	except := c.first("noproxy", "no-proxy")
	if except == "" {
		except = c.firstEnv("NO_PROXY", "no_proxy")
	}
	host := r.URL.Hostname()
	for name := range strings.SplitSeq(except, ",") {
		name = strings.TrimPrefix(strings.TrimSpace(name), ".")
		if name == "*" || name != "" && (host == name || strings.HasSuffix(host, "."+name)) {
			return nil, nil //nolint:nilnil // http.Transport's contract: no proxy
		}
	}
	var proxy string
	if r.URL.Scheme == "https" {
		proxy = c.first("https-proxy", "proxy")
		if proxy == "" {
			proxy = c.firstEnv("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
		}
	} else {
		proxy = c.first("proxy", "http-proxy")
		if proxy == "" {
			proxy = c.firstEnv("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
		}
	}
	if proxy == "" || proxy == "null" || proxy == "false" {
		return nil, nil //nolint:nilnil // http.Transport's contract: no proxy
	}
	if !strings.Contains(proxy, "://") {
		proxy = "http://" + proxy
	}
	u, err := url.Parse(proxy)
	if err != nil {
		return nil, errors.New("the configured proxy is not a URL") // its text may hold a password
	}
	return u, nil
}

func (c npmrc) first(keys ...string) string {
	for _, k := range keys {
		if v := c.values[k]; v != "" {
			return v
		}
	}
	return ""
}

func (c npmrc) firstEnv(keys ...string) string {
	for _, k := range keys {
		if v := lookup(c.env, k); v != "" {
			return v
		}
	}
	return ""
}
