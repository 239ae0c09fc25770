package setup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// bootstrap makes a minimal root of the host's own distribution from the
// host's own package sources and puts it into the store. As an ordinary user
// it works in a user namespace.
func (c ImageConfig) bootstrap(ctx context.Context, dir string) (base, error) {
	tool, ok := lookPath(c.Env, "mmdebstrap")
	if !ok {
		return base{}, errors.New("make a base: mmdebstrap is not installed")
	}
	apt := readApt(ctx, c.Env)
	if apt.codename == "" || len(apt.sources) == 0 {
		return base{}, errors.New("make a base: this host has no Debian or Ubuntu package sources")
	}
	// A subordinate uid must be able to pass and read; only the tree itself
	// lies here, no credentials.
	work, err := os.MkdirTemp("", "stromboli-base-")
	if err != nil {
		return base{}, fmt.Errorf("make a base: %w", err)
	}
	defer os.RemoveAll(work)
	if err := os.Chmod(work, 0o755); err != nil { //nolint:gosec // see above
		return base{}, fmt.Errorf("make a base: %w", err)
	}
	root := filepath.Join(work, "base.tar")
	mode := "unshare"
	if os.Geteuid() == 0 {
		mode = "root"
	}
	argv := []string{
		tool, "--mode=" + mode, "--variant=minbase", "--format=tar",
		"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		"--dpkgopt=path-exclude=/usr/share/info/*",
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/*/copyright",
		// Sources, options and names of this host don't belong into an image.
		`--customize-hook=rm -rf "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/* "$1"/etc/apt/apt.conf.d/99mmdebstrap ` +
			`"$1"/etc/apt/auth.conf* "$1"/etc/resolv.conf "$1"/var/log/*.log; echo localhost > "$1"/etc/hostname`,
	}
	for _, o := range apt.options {
		argv = append(argv, "--aptopt="+o)
	}
	if len(apt.auth) > 0 && mode == "root" {
		auth := filepath.Join(dir, "auth.conf") // below the private directory
		if err := os.WriteFile(auth, apt.auth, 0o600); err != nil {
			return base{}, fmt.Errorf("make a base: %w", err)
		}
		argv = append(argv, fmt.Sprintf("--aptopt=Dir::Etc::netrc %q", auth), `--aptopt=APT::Sandbox::User "root"`)
	}
	argv = append(argv, apt.codename, root)
	argv = append(argv, apt.sources...)

	const step = "agent image"
	c.Progress(Progress{Step: step, Message: "making a base of " + apt.name + " " + apt.codename})
	call := command{argv: argv, env: c.Env, dir: "/", line: func(line string) {
		if line, ok := strings.CutPrefix(line, "I: "); ok {
			c.Progress(Progress{Step: step, Message: "base: " + line})
		}
	}}
	if _, err := call.output(ctx); err != nil {
		return base{}, fmt.Errorf("make a base: %w", err)
	}
	ref := agentRepository + "-base:" + c.key()
	c.Progress(Progress{Step: step, Message: "importing the base"})
	if _, err := c.podman("import", "-q", root, ref).output(ctx); err != nil {
		return base{}, fmt.Errorf("import the base: %w", err)
	}
	return base{ref: ref, how: "bootstrap " + apt.name + " " + apt.codename, hostSources: true, drop: true}, nil
}

// aptSetup is the host's package configuration, as far as an image of the same
// distribution needs it while it is built.
type aptSetup struct {
	name, codename string
	sources        []string // one-line style
	options        []string // apt.conf lines without the semicolon
	auth           []byte   // auth.conf text, where this user may read it
}

// readApt asks apt itself, which knows all of its files' formats. A host
// without apt has an empty setup.
func readApt(ctx context.Context, env []string) aptSetup {
	var a aptSetup
	release := readRelease("/etc/os-release")
	a.name, a.codename = release["ID"], release["VERSION_CODENAME"]
	if tool, ok := lookPath(env, "apt-get"); ok && a.codename != "" {
		out, err := command{argv: []string{
			tool, "indextargets", "--format", "$(SITE)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)", "Created-By: Packages",
		}, env: env}.output(ctx)
		if err == nil {
			a.sources = sourceLines(out, a.codename, "/usr/share/keyrings")
		}
	}
	if tool, ok := lookPath(env, "apt-config"); ok {
		if out, err := (command{argv: []string{tool, "dump", "Acquire"}, env: env}).output(ctx); err == nil {
			a.options = acquireOptions(out)
		}
	}
	parts, err := filepath.Glob("/etc/apt/auth.conf.d/*.conf")
	if err == nil {
		for _, path := range append([]string{"/etc/apt/auth.conf"}, parts...) {
			if text, err := os.ReadFile(path); err == nil {
				a.auth = append(append(a.auth, text...), '\n')
			}
		}
	}
	return a
}

// sourceLines turns apt's own list of indexes into source lines, of the
// distribution alone: another vendor's archive has no place in the image.
func sourceLines(targets, codename, keyrings string) []string {
	var out []string
	for line := range strings.Lines(targets) {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) != 4 || f[1] != codename && !strings.HasPrefix(f[1], codename+"-") {
			continue
		}
		origin := f[3]
		if strings.Contains(origin, "$(") {
			origin = "" // lists never fetched
		}
		var option string
		switch origin {
		case "Debian", "Ubuntu":
			ring := filepath.Join(keyrings, strings.ToLower(origin)+"-archive-keyring.gpg")
			if _, err := os.Stat(ring); err == nil {
				option = "[signed-by=" + ring + "] "
			}
		case "":
		default:
			continue
		}
		if s := "deb " + option + f[0] + " " + f[1] + " " + f[2]; !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// acquireOptions keeps what decides whether an archive can be reached: proxies,
// timeouts, and how strict dates are.
func acquireOptions(dump string) []string {
	var out []string
	for line := range strings.Lines(dump) {
		line = strings.TrimSuffix(strings.TrimSpace(line), ";")
		key, value, ok := strings.Cut(line, " ")
		if !ok || value == `""` {
			continue
		}
		lower := strings.ToLower(key)
		keep := lower == "acquire::check-valid-until" || lower == "acquire::check-date" || lower == "acquire::retries" ||
			strings.HasPrefix(lower, "acquire::forceipv") ||
			(strings.HasPrefix(lower, "acquire::http::") || strings.HasPrefix(lower, "acquire::https::")) &&
				(strings.Contains(lower, "::proxy") || strings.HasSuffix(lower, "::timeout")) &&
				!strings.Contains(lower, "proxy-auto") && !strings.Contains(lower, "proxyauto")
		if keep {
			out = append(out, line)
		}
	}
	return out
}

// readRelease parses os-release.
func readRelease(path string) map[string]string {
	out := map[string]string{}
	f, err := os.Open(path)
	if err != nil {
		return out
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		if k, v, ok := strings.Cut(s.Text(), "="); ok {
			out[k] = strings.Trim(v, `"'`)
		}
	}
	return out
}
