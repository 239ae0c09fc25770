package runner_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
)

// TestEngineSecretsAtSubmit: which of the engine's secrets a run may name is
// configuration's to say, for each tenant; one that is missing is told at once,
// and of one that isn't permitted nobody learns whether it is there.
func TestEngineSecretsAtSubmit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{max: 1, engineSecrets: []string{"ci-*", "other/theirs"}})
	ctx := context.Background()
	for _, name := range []string{"ci-one", "hidden", "theirs"} {
		w.engine.AddSecret(ctx, t, name, "")
	}
	submit := func(tenant, secret string) error {
		s := submission("result ok", func(s *stromboli.RunSpec) { s.Podman.SecretsEnv = map[string]string{"TOKEN": secret} })
		_, err := l.Submit(ctx, stromboli.Principal{Tenant: tenant, Name: "x"}, s)
		return err
	}
	for _, c := range []struct{ tenant, secret, message string }{
		{"default", "engine:ci-none", "the engine has no secret"},
		{"default", "engine:hidden", "may not be used"},
		{"default", "engine:absent", "may not be used"},
		{"default", "engine:theirs", "may not be used"},
		{"other", "engine:ci-one", "may not be used"},
		{"default", "engine:", "no name of a secret"},
		{"default", "engine:ci-/x", "no name of a secret"},
		{"default", "engine:engine:ci-one", "no name of a secret"},
	} {
		err := submit(c.tenant, c.secret)
		var fault *stromboli.Error
		if !errors.As(err, &fault) || fault.Code != stromboli.Invalid || len(fault.Details) != 1 || fault.Details[0].Field != "podman.secrets_env.TOKEN" ||
			!strings.Contains(err.Error(), c.message) {
			t.Errorf("%s for %s: %v", c.secret, c.tenant, err)
		}
	}
	// The blocked names and the limit are those of all secrets.
	_, err := l.Submit(ctx, me(), submission("result ok", func(s *stromboli.RunSpec) { s.Podman.SecretsEnv = map[string]string{"LD_PRELOAD": "engine:ci-one"} }))
	if !errors.Is(err, stromboli.Invalid) {
		t.Errorf("a blocked name: %v", err)
	}
	// A reload takes names away and gives others.
	none := l.policy
	none.EngineSecrets = nil
	l.SetPolicy(none)
	if err := submit("default", "engine:ci-one"); err == nil || !strings.Contains(err.Error(), "may not be used") {
		t.Errorf("after it was taken away: %v", err)
	}
	l.SetPolicy(l.policy)
	// One that is gone when its run's turn comes.
	w.engine.AddSecret(ctx, t, "ci-two", "")
	first := l.submit(`until [ -e "$HOME/go" ]; do sleep 0.02; done; result ok`)
	l.sandboxOf(first.ID)
	waits := l.submit("result ok", func(s *stromboli.RunSpec) { s.Podman.SecretsEnv = map[string]string{"TOKEN": "engine:ci-two"} })
	w.engine.RemoveSecret("ci-two")
	l.touch(first, "go")
	if done := l.wait(waits.ID); done.Outcome.Reason != stromboli.ReasonNotConfigured || !strings.Contains(done.Outcome.Error, "ci-two was deleted") {
		t.Errorf("%s: %s", done.Outcome.Reason, done.Outcome.Error)
	}
	// The fake mounts nothing: the shim finds no file, and says so without end.
	run := l.submit("result ok", func(s *stromboli.RunSpec) { s.Podman.SecretsEnv = map[string]string{"TOKEN": "engine:ci-one"} })
	if done := l.wait(run.ID); done.Status != stromboli.Failed || done.Outcome.Reason != stromboli.ReasonNotConfigured || !strings.Contains(done.Outcome.Error, "the secret of TOKEN") {
		t.Errorf("%s, %s: %s", done.Status, done.Outcome.Reason, done.Outcome.Error)
	}
}
