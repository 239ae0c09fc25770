package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli/internal/setup"
)

func TestDoctor(t *testing.T) {
	const secret = "sk-ant-oat01-very-secret"
	file := filepath.Join(t.TempDir(), "token")
	must(t, os.WriteFile(file, []byte(secret+"\n"), 0o644))
	environ := []string{"STROMBOLI_AGENT_SECRETS_FILE=" + file, "CONTAINER_HOST=ssh://core@localhost:5000/run/podman/podman.sock"}
	code, out, errs := command(t.Context(), t, environ, "doctor", "--json")
	if code != 1 || errs != "" || strings.Contains(out, "very-secret") {
		t.Fatalf("%d, %q, %q", code, out, errs)
	}
	var report struct {
		OK       bool
		Findings []setup.Finding
	}
	must(t, json.Unmarshal([]byte(out), &report))
	found := map[string]setup.Finding{}
	for _, f := range report.Findings {
		found[f.Check] = f
	}
	if f := found["engine"]; report.OK || f.Status != setup.Failed || f.Recovers || !strings.Contains(f.Fix, "podman machine ssh") {
		t.Errorf("an engine on another kernel: %+v", f)
	}
	if f := found["credentials"]; f.Status != setup.Warning || !strings.Contains(f.Found, "oauth from "+file) || !strings.Contains(f.Fix, "chmod 600") {
		t.Errorf("credentials: %+v", f)
	}
	code, out, _ = command(t.Context(), t, environ, "doctor")
	if code != 1 || !strings.Contains(out, "failed  engine") || !strings.Contains(out, "→") || strings.Contains(out, "very-secret") {
		t.Errorf("%d, %q", code, out)
	}
	code, out, _ = command(t.Context(), t, append(environ, "STROMBOLI_NONSENSE=1"), "doctor")
	if code != 1 || !strings.Contains(out, "STROMBOLI_NONSENSE") {
		t.Errorf("%d, %q", code, out)
	}
}
