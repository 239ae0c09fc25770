package e2e_test

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/tomblancdev/stromboli"
)

// TestTenantCredentials: two tenants' runs go on at the same time, each with its
// own credential, of its own kind, also after egress and the server were killed
// in their middle and after a rotation; a tenant that the file doesn't name runs
// nothing, and nobody is told of another's.
func TestTenantCredentials(t *testing.T) {
	s := prepare(t)
	file := func(name, text string) string {
		t.Helper()
		path := filepath.Join(s.dir, name)
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	third := "token-" + canary + "-of-a-third"
	tokens := file("tokens.json", `{"tokens":[{"name":"ours","token":"`+authToken+`","tenant":"ours"},{"name":"other","token":"`+authOther+`","tenant":"other"},
		{"name":"third","token":"`+third+`","tenant":"third"}]}`)
	keys := func(ours string) string {
		return `{"tenants":{"ours":{"api_key":"` + modelKey + ours + `","headers":{"X-Team":"ours"}},"other":{"oauth_token":"` + modelKey + `-other"}}}`
	}
	credentials := file("tenants.json", keys("-ours"))
	s.env = append(s.env, "STROMBOLI_AUTH_ENABLED=true", "STROMBOLI_API_TOKENS_FILE="+tokens, "STROMBOLI_AGENT_TENANT_CREDENTIALS_FILE="+credentials)
	s.up()

	status := s.wantStatus(200, "GET", "/claude/status", authOther, "")
	if !strings.Contains(status, `"kind":"oauth"`) || strings.Contains(status, "ours") || strings.Contains(status, canary) {
		t.Errorf("the status: %s", status)
	}
	if status = s.wantStatus(200, "GET", "/claude/status", third, ""); !strings.Contains(status, `"configured":false`) {
		t.Errorf("the status of a tenant without a credential: %s", status)
	}
	s.wantStatus(http.StatusServiceUnavailable, "POST", "/run", third, specJSON(t, spec(text("never"))))

	seen := func(tenant string) (all []string) {
		for _, r := range s.stub.Requests(tenant) {
			key := r.Header.Get("X-Api-Key") + strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
			all = append(all, strings.TrimPrefix(key, modelKey)+" "+r.Header.Get("X-Team"))
		}
		return all
	}
	wait := func(n string) string { return "until [ -e /workspace/go" + n + " ]; do sleep 0.05; done" }
	runs := map[string]string{}
	for tenant, token := range map[string]string{"ours": authToken, "other": authOther} {
		s.as(token)
		runs[tenant] = s.submit(t, keyed(tenant, bash(wait("1")), bash(wait("2")), text("done")))
	}
	goOn := func(n string, requests int) {
		t.Helper()
		for tenant, token := range map[string]string{"ours": authToken, "other": authOther} {
			s.as(token)
			s.letGo(runs[tenant], "go"+n)
			waitFor(t, tenant+"'s next request", func() bool { return len(seen(tenant)) >= requests })
		}
	}
	waitFor(t, "both agents at work", func() bool { return len(seen("ours")) == 1 && len(seen("other")) == 1 })
	if err := syscall.Kill(s.egressPID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	goOn("1", 2)
	s.kill()
	if err := syscall.Kill(s.egressPID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	file("tenants.json", keys("-rotated"))
	s.up()
	goOn("2", 3)
	var both sync.WaitGroup
	for tenant, token := range map[string]string{"ours": authToken, "other": authOther} {
		s.as(token)
		c := *s
		both.Go(func() {
			if done := c.await(t, runs[tenant]); done.Status != stromboli.Completed {
				t.Errorf("%s: %s %s", tenant, done.Status, done.Error)
			}
		})
	}
	both.Wait()
	// The CLI repeats a request whose answer egress took with it.
	for tenant, want := range map[string]string{"ours": "-ours ours|-rotated ours", "other": "-other "} {
		if got := strings.Join(slices.Compact(seen(tenant)), "|"); got != want {
			t.Errorf("the model got from %s: %s, want %s", tenant, got, want)
		}
	}
}
