package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestDoctor: the doctor sees the host that tests run on as fit; what can pass
// while a server runs doesn't stop it, and is told of until it has passed.
func TestDoctor(t *testing.T) {
	s := prepare(t)
	type report struct {
		OK       bool
		Findings []struct{ Check, Status, Found, Fix string }
	}
	doctor := func() (r report, text string) {
		t.Helper()
		cmd := exec.CommandContext(s.ctx(), suite.bin, "doctor", "--json")
		cmd.Env, cmd.Dir = s.env, s.dir
		out, err := cmd.Output()
		if jerr := json.Unmarshal(out, &r); jerr != nil || (err == nil) != r.OK {
			t.Fatalf("%v, %v: %s", err, jerr, out)
		}
		return r, string(out)
	}
	if r, text := doctor(); !r.OK || len(r.Findings) < 12 || strings.Contains(text, modelKey) {
		t.Errorf("%s", text)
	}

	// The login of a person, which has expired.
	s.env = slices.DeleteFunc(s.env, func(kv string) bool { return strings.HasPrefix(kv, "ANTHROPIC_API_KEY=") })
	file := filepath.Join(s.dir, ".claude", ".credentials.json")
	login := func(expires time.Time) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf(`{"claudeAiOauth":{"accessToken":"sk-ant-oat01-secret","expiresAt":%d}}`, expires.UnixMilli())
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	login(time.Now().Add(-time.Hour))
	if r, text := doctor(); r.OK || !strings.Contains(text, "expired") || !strings.Contains(text, "claude setup-token") || strings.Contains(text, "sk-ant-oat01") {
		t.Errorf("%s", text)
	}
	s.up()
	waitFor(t, "/health to say so", func() bool { return strings.Contains(s.fault(t, "credentials"), "expired") })
	s.send(t, "GET", "/readyz", "").want(t, 503)
	login(time.Now().Add(48 * time.Hour))
	waitFor(t, "a server that is ready", func() bool { return s.c.Ready(s.ctx()) == nil })
	s.stop()

	// What would only fail later.
	s.env = append(s.env, "CONTAINER_HOST=ssh://core@localhost:1234/run/podman/podman.sock")
	if err := s.tryUp(); err == nil || !strings.Contains(err.Error(), "podman machine ssh") {
		t.Errorf("with an engine on another kernel: %v", err)
	}
}
