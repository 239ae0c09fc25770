package e2e_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
)

// TestSecrets: a secret reaches the agent's environment and nothing else: not
// the container as the engine knows it, not a command line, and, as the search
// at the end of every test shows, no file, log, event or answer. A new key
// changes nothing of that.
func TestSecrets(t *testing.T) {
	s := start(t)
	value := "sk-" + canary + "-of-a-caller"
	if err := s.c.CreateSecret(s.ctx(), "token", value); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(value))
	use := func() {
		t.Helper()
		in := spec(bash(`printf %s "$TOKEN" | sha256sum; until [ -e /workspace/go ]; do sleep 0.05; done`), text("done"))
		in.Podman.SecretsEnv = map[string]string{"TOKEN": "token"}
		id := s.submit(t, in)
		box := s.sandboxOf(t, id)
		s.inTool(t, id)
		s.showsNoSecret(box)
		s.letGo(id, "go")
		done := s.await(t, id)
		said := false
		for _, e := range done.events {
			said = said || bytes.Contains(e.Data, []byte(hex.EncodeToString(sum[:])))
		}
		if done.Status != stromboli.Completed || !said {
			t.Errorf("%s %s; the agent had the secret: %v", done.Status, done.Error, said)
		}
	}
	use()
	rekey := func() (string, error) {
		cmd := exec.Command(suite.bin, "secrets", "rekey")
		cmd.Env = s.env
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := rekey(); err == nil {
		t.Errorf("a key was changed under a running server: %s", out)
	}
	s.stop()
	if out, err := rekey(); err != nil || !strings.Contains(out, "1 secrets are sealed with a new key") {
		t.Errorf("rekey: %s, %v", out, err)
	}
	s.up()
	use()
}

// showsNoSecret searches what the engine tells of a sandbox, and all command
// lines of the machine.
func (s *server) showsNoSecret(box string) {
	s.t.Helper()
	hc := &http.Client{Transport: unixTransport(suite.engine.Socket())}
	resp, err := hc.Get("http://podman/v4.0.0/libpod/containers/stromboli-" + box + "/json")
	if err != nil {
		s.t.Fatal(err)
	}
	var inspected canaryWriter
	if _, err := io.Copy(&inspected, resp.Body); err != nil || inspected.found != "" {
		s.t.Errorf("inspect: %v, %q", err, inspected.found)
	}
	_ = resp.Body.Close()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(lines) == 0 {
		s.t.Fatal(err)
	}
	for _, path := range lines {
		if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte(canary)) {
			s.t.Errorf("%s has the secret", path)
		}
	}
}
