package egress

import (
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// keyEcho answers with the credential and the team's header that came.
func keyEcho(w http.ResponseWriter, r *http.Request) {
	_, _ = io.WriteString(w, r.Header.Get("X-Api-Key")+r.Header.Get("Authorization")+r.Header.Get("X-Team"))
}

// askAt sends one request to the model by a sandbox's socket and returns status
// and body; 0 where the connection broke.
func askAt(t *testing.T, socket string) (int, string) {
	t.Helper()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialSandbox(ctx, socket) }}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://model/v1/messages", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Api-Key", "placeholder")
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, text(t, resp)
}

// TestTenantsKeys: sandboxes of several tenants ask at the same time, and each
// request has the credential, the headers and the endpoint of its own.
func TestTenantsKeys(t *testing.T) {
	t.Parallel()
	u, other := newUpstream(t, keyEcho), newUpstream(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "other ")
		keyEcho(w, r)
	})
	cfg := Config{
		ModelURL: u.URL, Credential: Credential{APIKey, "sk-common"},
		Tenants: map[string]Endpoint{
			"a":      {ModelURL: u.URL, Credential: Credential{APIKey, "sk-a"}, ExtraHeaders: map[string]string{"X-Team": "+a"}},
			"b":      {ModelURL: other.URL, Credential: Credential{OAuth, "oat-b"}},
			"broken": {},
		},
		Exclusive: true,
	}
	f := newFixture(t, cfg)
	sockets := map[string]string{"": f.socket}
	for _, tenant := range []string{"default", "a", "b", "broken", "unknown"} {
		reg := f.registration("of-" + tenant)
		reg.Tenant, reg.Socket = tenant, filepath.Join(shortDir(t), "s")
		if err := f.g.add(reg); err != nil {
			t.Fatal(err)
		}
		sockets[tenant] = reg.Socket
	}
	check := func(want map[string]string) {
		t.Helper()
		var wg sync.WaitGroup
		for tenant, answer := range want {
			for range 4 {
				wg.Go(func() {
					if status, got := askAt(t, sockets[tenant]); answer == "" && status != http.StatusServiceUnavailable || answer != "" && got != answer {
						t.Errorf("tenant %q: %d %s, want %q", tenant, status, got, answer)
					}
				})
			}
		}
		wg.Wait()
	}
	check(map[string]string{"": "sk-common", "default": "sk-common", "a": "sk-a+a", "b": "other Bearer oat-b", "broken": "", "unknown": ""})
	cfg.Exclusive = false
	cfg.Tenants["a"] = Endpoint{ModelURL: u.URL, Credential: Credential{AuthToken, "sk-a2"}} // rotated
	if err := f.g.configure(cfg); err != nil {
		t.Fatal(err)
	}
	check(map[string]string{"": "sk-common", "a": "Bearer sk-a2", "b": "other Bearer oat-b", "broken": "", "unknown": "sk-common"})

	reg := f.registration("of-a")
	reg.Tenant, reg.Socket = "b", sockets["a"]
	if err := f.g.add(reg); err == nil || !strings.Contains(err.Error(), "another tenant") {
		t.Errorf("a sandbox was given to another tenant: %v", err)
	}
	check(map[string]string{"a": "Bearer sk-a2"})
	bad := Config{Tenants: map[string]Endpoint{"x": {ModelURL: "https://h", Credential: Credential{APIKey, "sk-\nsecret"}}}}
	if err := bad.Validate(); err == nil || !strings.Contains(err.Error(), "tenant x") || strings.Contains(err.Error()+bad.String(), "secret\"") {
		t.Errorf("a tenant's key that no header may hold: %v", err)
	}
}

// TestTenantsKeysAfterKill: a new process knows whose key is whose before the
// first byte of a sandbox passes.
func TestTenantsKeysAfterKill(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	u := newUpstream(t, keyEcho)
	s := supervise(t, filepath.Join(dir, "egress"), "one")
	err := s.SetConfig(t.Context(), Config{
		ModelURL: u.URL, Credential: Credential{APIKey, "sk-common"}, Exclusive: true,
		Tenants: map[string]Endpoint{
			"a": {ModelURL: u.URL, Credential: Credential{APIKey, "sk-a"}}, "b": {ModelURL: u.URL, Credential: Credential{APIKey, "sk-b"}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, tenant := range []string{"a", "b"} {
		reg := registration(filepath.Join(dir, tenant))
		reg.Tenant = tenant
		if err := s.Add(t.Context(), reg); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		pid := s.pid(t)
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		// From the first moment at which somebody listens again: never a wrong key.
		for _, tenant := range []string{"a", "b"} {
			eventually(t, "an answer for "+tenant, func() bool {
				status, got := askAt(t, filepath.Join(dir, tenant))
				if status != 0 && got != "sk-"+tenant {
					t.Errorf("tenant %s: %d %s", tenant, status, got)
				}
				return status != 0
			})
		}
		eventually(t, "a new process", func() bool {
			st, err := s.Status(t.Context())
			return err == nil && st.PID != pid
		})
	}
}
