package e2e_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
)

// fault is what /health says of a part; empty: it is well. Each answer must come
// soon: nothing is asked of a part while the caller waits for it.
func (s *server) fault(t *testing.T, part string) string {
	t.Helper()
	began := time.Now()
	o := s.send(t, "GET", "/health", "").want(t, http.StatusOK).object(t)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("/health took %s", took)
	}
	parts, _ := o["components"].([]any)
	sick := ""
	found := false
	for _, p := range parts {
		c, _ := p.(map[string]any)
		if c["error"] != nil && (c["status"] != "error" || o["status"] != "degraded") {
			t.Errorf("%v in %v", c, o)
		}
		if c["name"] == part {
			found = true
			sick, _ = c["error"].(string)
		}
	}
	if !found {
		t.Fatalf("there is no part %s in %v", part, o)
	}
	return sick
}

// TestHealth breaks parts of a server that docs/operations.md has no section for,
// one after the other: /health and /readyz tell, and what has passed is gone.
func TestHealth(t *testing.T) {
	t.Parallel()
	engine := newRelay(t)
	s := prepareRogue(t, "CONTAINER_HOST=unix://"+engine.path, "NPM_CONFIG_REGISTRY=http://127.0.0.1:1/")
	s.up()
	well := func(part string) {
		t.Helper()
		waitFor(t, part+" to be well", func() bool { return s.fault(t, part) == "" })
		waitFor(t, "a server that is ready", func() bool { return s.c.Ready(s.ctx()) == nil })
	}
	sick := func(part, says string) {
		t.Helper()
		waitFor(t, part+" not to be well", func() bool { return strings.Contains(s.fault(t, part), says) })
		a := s.send(t, "GET", "/readyz", "").want(t, http.StatusServiceUnavailable)
		if !strings.Contains(string(a.body), `"`+part+": ") {
			t.Errorf("readyz doesn't name %s: %s", part, a.body)
		}
		s.send(t, "GET", "/livez", "").want(t, http.StatusOK)
	}
	well("engine")

	// An engine that takes connections and answers none.
	engine.freeze()
	sick("engine", "hasn't answered")
	engine.thaw()
	well("engine")

	// Egress: frozen, and, after its death, back before it is missed.
	pid := s.egressPID()
	strike(t, pid, syscall.SIGSTOP)
	sick("egress", "hasn't answered")
	strike(t, pid, syscall.SIGCONT)
	well("egress")
	strike(t, pid, syscall.SIGKILL)
	waitFor(t, "another process", func() bool { return strings.Count(s.log.tail(1<<20), "egress: connected") > 1 })
	well("egress")

	// A program of the cache that somebody has cut.
	cli, err := filepath.Glob(filepath.Join(s.cache(), "cli", "*-glibc", "claude"))
	if err != nil || len(cli) == 0 {
		t.Fatal(cli, err)
	}
	whole := make([][]byte, len(cli))
	for i, path := range cli {
		if whole[i], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
		write(t, path, whole[i][1:])
	}
	sick("cli", "not whole (run `stromboli setup`)")
	for i, path := range cli {
		write(t, path, whole[i])
	}
	well("cli")

	// What each sandbox begins with is put there again.
	if err := os.RemoveAll(filepath.Join(s.data, "shim")); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the shim", func() bool {
		found, err := filepath.Glob(filepath.Join(s.data, "shim", "*", "stromboli-shim"))
		return err == nil && len(found) == 1 && s.fault(t, "sandboxes") == ""
	})
	s.do(t, stromboli.RunSpec{Prompt: rogueResult}).want(t, stromboli.Completed, "")
}

// TestDrain: a server that waits for its runs to end answers, and takes no new
// ones.
func TestDrain(t *testing.T) {
	t.Parallel()
	s := prepareRogue(t)
	s.survLaunch("--drain")
	s.survAwaitUp()
	gate := s.gate(t)
	id := s.submit(t, gate.mounted(stromboli.RunSpec{Prompt: gate.hold() + "; " + rogueResult}))
	s.waitPhase(id, stromboli.PhaseGenerating)
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "/readyz to say so", func() bool {
		a := s.send(t, "GET", "/readyz", "")
		return a.status == http.StatusServiceUnavailable && strings.Contains(string(a.body), "waits for its runs to end")
	})
	s.send(t, "GET", "/livez", "").want(t, http.StatusOK)
	s.send(t, "POST", "/run/async", `{"prompt":"exit 0"}`).refused(t, http.StatusServiceUnavailable, "draining", "")
	gate.open(t)
	s.await(t, id).want(t, stromboli.Completed, "")
	<-s.done
	s.cmd = nil
}

// write replaces a program.
func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o755); err != nil {
		t.Error(err)
	}
}

// cache is the server's own cache directory.
func (s *server) cache() string {
	dir := ""
	for _, kv := range s.env {
		if value, ok := strings.CutPrefix(kv, "STROMBOLI_CACHE_DIR="); ok {
			dir = value
		}
	}
	return dir
}
