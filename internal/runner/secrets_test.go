package runner_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/secret"
)

func TestSecretsEnv(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{max: 1})
	ctx := context.Background()
	vault := secret.NewVault(l.store, w.keys)
	keep := func(name, value string) {
		_, err := vault.Create(ctx, me(), name, []byte(value))
		must(t, err)
	}
	keep("token", "the-value")
	keep("huge", strings.Repeat("x", 130<<10))
	with := func(env map[string]string) func(*stromboli.RunSpec) {
		return func(s *stromboli.RunSpec) { s.Podman.SecretsEnv = env }
	}
	run := l.submit(`result "has $(printf %s "$TOKEN" | wc -c) $(printf %s "$TOKEN" | tr a-z n-za-m)"`, with(map[string]string{"TOKEN": "token"}))
	if done := l.wait(run.ID); done.Outcome.Output != "has 9 gur-inyhr" {
		t.Errorf("%q %s", done.Outcome.Output, done.Outcome.Error)
	}
	many := map[string]string{}
	for i := range 51 {
		many["V"+strings.Repeat("x", i)] = "token"
	}
	for field, env := range map[string]map[string]string{
		"podman.secrets_env.TOKEN":      {"TOKEN": "none"},
		"podman.secrets_env.LD_PRELOAD": {"LD_PRELOAD": "token"},
		"podman.secrets_env.http_proxy": {"http_proxy": "token"},
		"podman.secrets_env.HUGE":       {"HUGE": "huge"},
		"podman.secrets_env.A":          {"A": "a/b"},
		"podman.secrets_env.E":          {"E": "engine:token"},
		"podman.secrets_env":            many,
	} {
		_, err := l.Submit(ctx, me(), submission("result x", with(env)))
		var fault *stromboli.Error
		if !errors.As(err, &fault) || len(fault.Details) != 1 || fault.Details[0].Field != field || strings.Contains(err.Error(), "the-value") {
			t.Errorf("%s: %v", field, err)
		}
	}
	_, err := l.Submit(ctx, me(), submission("result x", with(map[string]string{"A": "token"}), func(s *stromboli.RunSpec) { s.Env = map[string]string{"A": "b"} }))
	if !errors.Is(err, stromboli.Invalid) {
		t.Errorf("set twice: %v", err)
	}
	// One that is gone when its run's turn comes.
	first := l.submit(`until [ -e "$HOME/go" ]; do sleep 0.02; done; result ok`)
	l.sandboxOf(first.ID)
	waits := l.submit(`result ok`, with(map[string]string{"TOKEN": "token"}))
	must(t, vault.Delete(ctx, me(), "token"))
	l.touch(first, "go")
	if done := l.wait(waits.ID); done.Outcome.Reason != stromboli.ReasonNotConfigured || !strings.Contains(done.Outcome.Error, "secret token was deleted") {
		t.Errorf("%s: %s", done.Outcome.Reason, done.Outcome.Error)
	}
}
