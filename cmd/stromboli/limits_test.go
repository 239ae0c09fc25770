package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli/internal/config"
)

func TestMaxima(t *testing.T) {
	for setting, fails := range map[string]bool{
		"STROMBOLI_RESOURCES_MAX_MEMORY=512m": false, "STROMBOLI_RESOURCES_MAX_MEMORY=511m": true, "STROMBOLI_RESOURCES_MAX_MEMORY=lots": true,
		"STROMBOLI_RESOURCES_MAX_CPUS=1": false, "STROMBOLI_RESOURCES_MAX_CPUS=0.9": true, "STROMBOLI_RESOURCES_MAX_CPUS=x": true,
		"STROMBOLI_RESOURCES_MAX_CPU_SHARES=2": false, "STROMBOLI_RESOURCES_MAX_CPU_SHARES=1": true, "STROMBOLI_RESOURCES_MAX_CPU_SHARES=-1": true,
		"STROMBOLI_RESOURCES_MAX_TIMEOUT=30m": false, "STROMBOLI_RESOURCES_MAX_TIMEOUT=29m": true, "STROMBOLI_RESOURCES_MAX_TIMEOUT=-1s": true,
	} {
		cfg, err := config.Load([]string{"HOME=/home/u", setting})
		if err != nil {
			t.Fatal(err)
		}
		name, _, _ := strings.Cut(setting, "=")
		if _, err := policyConfig(cfg, "image"); (err != nil) != fails || fails && !strings.HasPrefix(err.Error(), name+": ") {
			t.Errorf("%s: %v", setting, err)
		}
	}
}

// What the server keeps can't be a volume, whatever its name.
func TestProtected(t *testing.T) {
	dir := t.TempDir()
	real, link := filepath.Join(dir, "real"), filepath.Join(dir, "link")
	if err := os.Mkdir(real, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load([]string{"HOME=/home/u", "STROMBOLI_DATA_DIR=" + link, "STROMBOLI_SECRETS_KEY_FILE=/keys/k", "STROMBOLI_AGENT_SECRETS_FILE=/tokens/t", "STROMBOLI_API_TOKENS_FILE=/tokens/api"})
	if err != nil {
		t.Fatal(err)
	}
	all := withoutLinks(append(protected(cfg), "/run/podman/podman.sock"))
	for _, p := range []string{link, real, "/keys/k", "/tokens/t", "/tokens/api", "/home/u/.claude/.credentials.json", "/home/u/.cache/stromboli", "/run/podman/podman.sock"} {
		if !slices.Contains(all, p) {
			t.Errorf("%s is not among %v", p, all)
		}
	}
}
