package e2e_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine/enginetest"
)

// TestEngineSecrets: a secret that the engine keeps reaches the agent's
// environment, and hooks', by the shim alone: the agent can't get at the file,
// and the value is in no inspect, command line, file, log, event or answer.
func TestEngineSecrets(t *testing.T) {
	prefix := "stromboli-test-" + strings.ToLower(rand.Text()[:10]) + "-"
	s := start(t, "STROMBOLI_SECRETS_ENGINE_NAMES="+prefix+"*")
	value := "engine-" + canary + "-value"
	keep := enginetest.PodmanSecrets(suite.engine.Socket())
	keep(s.ctx(), t, prefix+"token", value)
	keep(s.ctx(), t, prefix+"nul", "a\x00b")
	if err := s.c.CreateSecret(s.ctx(), "own", "own-"+value); err != nil {
		t.Fatal(err)
	}
	in := spec(bash(`printf %s "$TOKEN" | sha256sum; printf %s "$AGAIN$OWN" | sha256sum
		for f in /run/stromboli/secrets /run/stromboli/secrets/0; do ls -ld $f && echo "reached" $f; done 2>/dev/null
		cat /run/stromboli/secrets/* >/dev/null 2>&1 && echo "reached" it
		until [ -e /workspace/go ]; do sleep 0.05; done`), text("done"))
	in.Podman.SecretsEnv = map[string]string{"TOKEN": "engine:" + prefix + "token", "AGAIN": "engine:" + prefix + "token", "OWN": "own"}
	in.Podman.Lifecycle.PostStart = []string{`printf %s "$TOKEN" | sha256sum`}
	id := s.submit(t, in)
	box := s.sandboxOf(t, id)
	s.inTool(t, id)
	s.showsNoSecret(box)
	s.letGo(id, "go")
	done := s.await(t, id)
	said := func(what string) (n int) {
		for _, e := range done.events {
			n += bytes.Count(e.Data, []byte(what))
		}
		return n
	}
	sum := func(s string) string {
		h := sha256.Sum256([]byte(s))
		return hex.EncodeToString(h[:])
	}
	if done.Status != stromboli.Completed || said(sum(value)) < 2 || said(sum(value+"own-"+value)) < 1 {
		t.Errorf("%s %s; said %d times by hook and agent, %d times by the agent", done.Status, done.Error, said(sum(value)), said(sum(value+"own-"+value)))
	}
	if said("reached ") != 0 {
		t.Error("the agent has reached the secret's file")
	}

	refused := func(secret string) {
		t.Helper()
		in := spec(text("never"))
		in.Podman.SecretsEnv = map[string]string{"TOKEN": secret}
		s.send(t, "POST", "/run", specJSON(t, in)).refused(t, http.StatusBadRequest, "invalid_request", "podman.secrets_env.TOKEN")
	}
	refused("engine:" + prefix + "none")
	refused("engine:another")
	in = spec(text("never"))
	in.Podman.SecretsEnv = map[string]string{"TOKEN": "engine:" + prefix + "nul"}
	s.do(t, in).want(t, stromboli.Failed, stromboli.ReasonNotConfigured)
}
