package runner_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/sandbox"
	"github.com/tomblancdev/stromboli/internal/secret"
)

// door is what egress was told of a sandbox.
func (n *network) door(sandboxID string) sandbox.Door {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.box(sandboxID).door
}

// TestBindings: what a run's hosts are shown goes to egress, follows the secret
// store while the run lives, and is there again under another server; a host
// whose secret is gone has a fault in its place.
func TestBindings(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{max: 1})
	ctx := context.Background()
	vault := secret.NewVault(l.store, w.keys)
	_, err := vault.Create(ctx, me(), "git", []byte("the-value\n"))
	must(t, err)
	_, err = vault.Create(ctx, stromboli.Principal{Tenant: "other"}, "theirs", []byte("their-value"))
	must(t, err)
	_, err = vault.Create(ctx, me(), "lines", []byte("a\nb"))
	must(t, err)
	with := func(list ...stromboli.Binding) func(*stromboli.RunSpec) {
		return func(s *stromboli.RunSpec) { s.Bindings = list }
	}
	git := stromboli.Binding{Host: "Git.example", Secret: "git", Scheme: "bearer"}
	for field, change := range map[string]func(*stromboli.RunSpec){
		"bindings[0].secret": with(stromboli.Binding{Host: "a.example", Secret: "none", Scheme: "bearer"}),
		"bindings[1].secret": with(git, stromboli.Binding{Host: "a.example", Secret: "theirs", Scheme: "bearer"}),
		"bindings[2].secret": with(git, stromboli.Binding{Host: "a.example", Secret: "git", Scheme: "basic"}, stromboli.Binding{Host: "b.example", Secret: "lines", Scheme: "bearer"}),
		"bindings[0].host":   with(stromboli.Binding{Host: "*.example", Secret: "git", Scheme: "bearer"}),
		"env.GIT_SSL_CAINFO": func(s *stromboli.RunSpec) { with(git)(s); s.Env = map[string]string{"GIT_SSL_CAINFO": "/x"} },
		"podman.secrets_env.CURL_CA_BUNDLE": func(s *stromboli.RunSpec) {
			with(git)(s)
			s.Podman.SecretsEnv = map[string]string{"CURL_CA_BUNDLE": "git"}
		},
	} {
		_, err := l.Submit(ctx, me(), submission("result x", change))
		var fault *stromboli.Error
		if !errors.As(err, &fault) || len(fault.Details) != 1 || fault.Details[0].Field != field || strings.Contains(err.Error(), "value") {
			t.Errorf("%s: %v", field, err)
		}
	}

	run := l.submit(`result "$GIT_SSL_CAINFO $NODE_EXTRA_CA_CERTS $SSL_CERT_FILE"; until [ -e "$HOME/go" ]; do sleep 0.02; done`, with(git))
	box := l.sandboxOf(run.ID)
	shown := func() sandbox.Binding {
		t.Helper()
		d := w.door(box)
		if len(d.Reach.Bindings) != 1 || d.Identity.Certificate == "" || d.Identity.Key == "" {
			t.Fatalf("egress was told %v", d.Reach)
		}
		return d.Reach.Bindings[0]
	}
	want := sandbox.Binding{To: "git.example:443", Header: "Authorization", Value: "Bearer the-value"}
	if got := shown(); got != want {
		t.Errorf("%+v", got)
	}
	if _, err := l.SetNetwork(ctx, me(), run.ID, stromboli.Network{Mode: stromboli.NetworkModel}); err != nil {
		t.Fatal(err)
	}
	if got := shown(); got != want || w.reach(box).Mode != stromboli.NetworkModel {
		t.Errorf("after the network's change: %+v", got)
	}
	must(t, vault.Delete(ctx, me(), "git"))
	must(t, l.SecretChanged(ctx, "other", "git"))
	if got := shown(); got != want {
		t.Errorf("another tenant's change: %+v", got)
	}
	must(t, l.SecretChanged(ctx, me().Tenant, "git"))
	gone := sandbox.Binding{To: "git.example:443", Fault: "the secret git was deleted"}
	if got := shown(); got != gone {
		t.Errorf("after the secret's end: %+v", got)
	}
	identity := w.door(box).Identity
	l.stop()
	l = w.start(options{max: 1})
	l.eventually("the new server has told egress", func() bool { return shown() == gone })
	vault = secret.NewVault(l.store, w.keys)
	_, err = vault.Create(ctx, me(), "git", []byte("another"))
	must(t, err)
	l.eventually("the new server has the sandbox", func() bool {
		must(t, l.SecretChanged(ctx, me().Tenant, "git"))
		return shown().Value == "Bearer another"
	})
	if w.door(box).Identity != identity {
		t.Error("the sandbox's certificate is another one")
	}
	waits := l.submit(`result ok`, with(git))
	must(t, vault.Delete(ctx, me(), "git"))
	l.touch(run, "go")
	done := l.wait(run.ID)
	if want := "/opt/stromboli/trust/bundle.pem /opt/stromboli/trust/authority.pem /opt/stromboli/trust/bundle.pem"; done.Outcome.Output != want {
		t.Errorf("%s: %q %s", done.Status, done.Outcome.Output, done.Outcome.Error)
	}
	if done := l.wait(waits.ID); done.Outcome.Reason != stromboli.ReasonNotConfigured || !strings.Contains(done.Outcome.Error, "secret git was deleted") {
		t.Errorf("%s: %s", done.Outcome.Reason, done.Outcome.Error)
	}
	free := l.submit(`result "none: $GIT_SSL_CAINFO"`)
	if done := l.wait(free.ID); done.Outcome.Output != "none: " {
		t.Errorf("without bindings: %q", done.Outcome.Output)
	}
}
