package enginetest

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli/internal/engine"
)

// SecretMaker makes a secret in an engine, which goes with the test. Engines
// have no such call for the product: it only uses what is there.
type SecretMaker func(ctx context.Context, tb testing.TB, name, value string)

// AddSecret makes a secret in the fake.
func (f *Fake) AddSecret(_ context.Context, _ testing.TB, name, _ string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.secrets = append(f.secrets, engine.Secret{ID: strings.ToLower(rand.Text()), Name: name})
}

// RemoveSecret takes a secret away from the fake.
func (f *Fake) RemoveSecret(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.secrets = slices.DeleteFunc(f.secrets, func(s engine.Secret) bool { return s.Name == name })
}

// SecretList implements engine.Secrets.
func (f *Fake) SecretList(ctx context.Context) ([]engine.Secret, error) {
	if err := f.enter(ctx, "SecretList"); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	return slices.Clone(f.secrets), nil
}

// secretsOf makes secrets in an engine under test.
func secretsOf(e engine.Engine) SecretMaker {
	switch e := e.(type) {
	case *Fake:
		return e.AddSecret
	case interface{ Socket() string }:
		return PodmanSecrets(e.Socket())
	}
	return func(_ context.Context, tb testing.TB, _, _ string) {
		tb.Skip("nobody knows how to make a secret in this engine")
	}
}

// PodmanSecrets makes secrets in the Podman whose service listens on socket.
func PodmanSecrets(socket string) SecretMaker {
	ask := func(ctx context.Context, tb testing.TB, method, path, body string) int {
		tb.Helper()
		tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}}
		defer tr.CloseIdleConnections()
		req, err := http.NewRequestWithContext(ctx, method, "http://podman/v4.0.0/libpod/secrets/"+path, strings.NewReader(body))
		if err != nil {
			tb.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/octet-stream") // a form's would be eaten
		resp, err := (&http.Client{Transport: tr}).Do(req)
		if err != nil {
			tb.Errorf("%s a secret: %v", method, err)
			return 0
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	return func(ctx context.Context, tb testing.TB, name, value string) {
		tb.Helper()
		if status := ask(ctx, tb, http.MethodPost, "create?name="+url.QueryEscape(name), value); status != http.StatusOK {
			tb.Fatalf("making the engine's secret %s: status %d", name, status)
		}
		tb.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), Limit)
			defer cancel()
			if status := ask(ctx, tb, http.MethodDelete, url.PathEscape(name), ""); status != http.StatusNoContent && status != http.StatusNotFound {
				tb.Errorf("removing the engine's secret %s: status %d", name, status)
			}
		})
	}
}

// testSecrets: what was made is listed by its whole name, can be mounted by its
// id, and its value is nowhere to be seen; what wasn't made is missing.
func testSecrets(ctx context.Context, t *testing.T, s *Suite) {
	name, value := "stromboli-test-"+strings.ToLower(rand.Text()[:12]), "value-"+rand.Text()
	find := func() (engine.Secret, bool) {
		list, err := s.Engine.SecretList(ctx)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(list, func(x engine.Secret) bool { return x.Name == name })
		if i < 0 {
			return engine.Secret{}, false
		}
		return list[i], true
	}
	if _, ok := find(); ok {
		t.Fatal("a secret is listed that nobody has made")
	}
	mount := []engine.SecretMount{{Secret: name, Target: "/run/stromboli/secrets/0"}}
	spec := s.Spec("exit", "0")
	spec.Tmpfs = []engine.Tmpfs{{Target: "/run/stromboli", Bytes: 1 << 20, Mode: 0o700}}
	spec.Secrets = mount
	if c, err := s.Engine.Create(ctx, spec); !errors.Is(err, engine.ErrSecretMissing) {
		t.Errorf("a container with a missing secret: %v, %v", c, err)
	}
	s.Secret(ctx, t, name, value)
	secret, ok := find()
	if !ok || secret.ID == "" || secret.ID == name {
		t.Fatalf("the secret is listed as %+v", secret)
	}
	spec.Secrets[0].Secret = secret.ID
	id := s.Run(ctx, t, spec)
	if code, err := s.Engine.Wait(ctx, id); code != 0 || err != nil {
		t.Errorf("it ended with %d, %v", code, err)
	}
}
