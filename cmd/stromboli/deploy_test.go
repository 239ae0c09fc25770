package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli/internal/config"
)

// unit reads the systemd unit: its settings by name.
func unit(t *testing.T) (text string, settings map[string][]string) {
	t.Helper()
	b, err := os.ReadFile("../../deployments/systemd/stromboli.service")
	must(t, err)
	settings = map[string][]string{}
	for line := range strings.Lines(string(b)) {
		if name, value, found := strings.Cut(strings.TrimSpace(line), "="); found && !strings.HasPrefix(name, "#") {
			settings[name] = append(settings[name], value)
		}
	}
	return string(b), settings
}

// The unit must leave everything but the server alone when it stops, and must
// give it no view of the file system that the engine doesn't have.
func TestUnit(t *testing.T) {
	text, settings := unit(t)
	for name, want := range map[string]string{
		"KillMode": "process", "OOMPolicy": "continue", "ExecStart": "/usr/local/bin/stromboli serve", "Restart": "on-failure", "ExecReload": "kill -HUP $MAINPID", "StateDirectoryMode": "0700",
	} {
		if got := settings[name]; !slices.Equal(got, []string{want}) {
			t.Errorf("%s=%q, want %q", name, got, want)
		}
	}
	for _, name := range []string{
		"PrivateTmp", "ProtectSystem", "ProtectHome", "PrivateMounts", "PrivateDevices", "ReadOnlyPaths", "InaccessiblePaths", "BindPaths",
		"TemporaryFileSystem", "RootDirectory", "DynamicUser", "ProtectKernelTunables", "ProtectControlGroups", "PrivateNetwork", "ExecStop", "SendSIGKILL",
	} {
		if settings[name] != nil {
			t.Errorf("%s would take agents or directories away", name)
		}
	}
	socket, err := os.ReadFile("../../deployments/systemd/stromboli.socket")
	must(t, err)
	if n := strings.Count(string(socket), "\nListenStream="); n != 1 || !strings.Contains(string(socket), "\nAccept=no\n") {
		t.Errorf("the server takes one listening socket, the unit makes %d", n)
	}
	environ := []string{"HOME=/root"}
	for _, line := range settings["Environment"] {
		environ = append(environ, strings.Fields(strings.NewReplacer("%S", "/var/lib", "%C", "/var/cache").Replace(line))...)
	}
	cfg, err := config.Load(environ)
	if err != nil || cfg.DataDir != "/var/lib/stromboli" || cfg.CacheDir != "/var/cache/stromboli" {
		t.Errorf("%+v, %v", cfg, err)
	}

	verify, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("no systemd-analyze here")
	}
	self, err := os.Executable()
	must(t, err)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "stromboli.service"), []byte(strings.ReplaceAll(text, "/usr/local/bin/stromboli", self)), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "stromboli.socket"), socket, 0o600))
	for _, name := range []string{"stromboli.service", "stromboli.socket"} {
		out, err := exec.CommandContext(t.Context(), verify, "verify", "--man=no", "--recursive-errors=no", filepath.Join(dir, name)).CombinedOutput()
		if err != nil || strings.Contains(string(out), name) {
			t.Errorf("systemd-analyze verify: %v: %s", err, out)
		}
	}
}

// The compose file's settings are ones that the server reads, and both services
// see the sessions at one path.
func TestComposeFile(t *testing.T) {
	b, err := os.ReadFile("../../deployments/docker/compose.yml")
	must(t, err)
	text := strings.NewReplacer(
		"${STROMBOLI_CACHE_DIR:-${HOME}/.cache/stromboli}", "/home/u/.cache/stromboli",
		"${STROMBOLI_SESSIONS:-${HOME}/.local/share/stromboli-sessions}", "/home/u/sessions",
	).Replace(string(b))
	environ := append([]string{"HOME=/root"}, imageEnv(t)...)
	for line := range strings.Lines(text) {
		name, value, found := strings.Cut(strings.TrimSpace(line), ": ")
		if found && (strings.HasPrefix(name, "STROMBOLI_") || name == "CONTAINER_HOST") {
			environ = append(environ, name+"="+strings.Trim(value, `"`))
		}
	}
	cfg, err := config.Load(environ)
	must(t, err)
	if cfg.SharedDir() != "/sessions/.stromboli" || cfg.HostPath("/sessions/.stromboli/sb") != "/home/u/sessions/.stromboli/sb" ||
		!cfg.Egress.External || cfg.CacheDir != "/home/u/.cache/stromboli" || cfg.Agent.SecretsFile != "/run/secrets/claude-token" {
		t.Errorf("%+v", cfg)
	}
	if cfg.Server.Address != ":8080" || cfg.Closed() {
		t.Errorf("it listens at %s, closed: %v", cfg.Server.Address, cfg.Closed())
	}
	for _, want := range []string{
		"\n  stromboli:\n", "userns_mode: keep-id", `"127.0.0.1:8080:8080"`, "file: ${CLAUDE_SECRETS_FILE:-../../.claude-secrets}",
		"- ${XDG_RUNTIME_DIR}/podman/podman.sock:/run/podman/podman.sock", `"--dir", "/sessions/.stromboli/egress"`,
		"- /home/u/.cache/stromboli:/home/u/.cache/stromboli\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing", want)
		}
	}
	if strings.Count(text, "- /home/u/sessions:/sessions\n") != 2 {
		t.Error("server and egress don't share the sessions at one path")
	}
}
