package e2e_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
)

// TestCredentialRotates: a token that is renewed in the middle of a run is what
// the model gets from then on; a file that is broken in between changes
// nothing. What egress counts is what the model says.
func TestCredentialRotates(t *testing.T) {
	s := prepare(t)
	file := filepath.Join(s.dir, "token")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	for i, kv := range s.env {
		if strings.HasPrefix(kv, "ANTHROPIC_API_KEY=") {
			s.env[i] = "STROMBOLI_AGENT_SECRETS_FILE=" + file
		}
	}
	write(modelKey + "-one")
	s.up()
	wait := func(name string) string { return "until [ -e /workspace/" + name + " ]; do sleep 0.05; done" }
	in := keyed("rotates", bash(wait("go")), text("done"))
	id := s.submit(t, in)
	keys := func() []string {
		var keys []string
		for _, r := range s.stub.Requests("rotates") {
			keys = append(keys, strings.TrimPrefix(r.Header.Get("X-Api-Key"), modelKey))
		}
		return keys
	}
	waitFor(t, "the first request", func() bool { return len(keys()) == 1 })
	write("two tokens are not one")
	status := func() string {
		resp, err := http.Get(s.url + "/claude/status")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		b := make([]byte, 1000)
		n, _ := resp.Body.Read(b)
		return string(b[:n])
	}
	waitFor(t, "the fault to be shown", func() bool { return strings.Contains(status(), "does not hold one token") })
	configured := func() int {
		log, err := os.ReadFile(filepath.Join(s.data, "egress", "log"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(log), "egress: configured")
	}
	before := configured()
	write(modelKey + "-two")
	waitFor(t, "the new token", func() bool { return configured() > before })
	s.letGo(id, "go")
	done := s.await(t, id)
	if got := strings.Join(keys(), " "); done.Status != stromboli.Completed || got != "-one -two" {
		t.Errorf("%s, keys %q", done.Status, got)
	}
	page, err := s.c.Egress(s.ctx(), id, 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	var counted int64
	for _, r := range page.Records {
		if r.Kind == "model" && r.Usage != nil {
			counted += r.Usage.TotalTokens
		}
	}
	if done.Usage == nil || counted != done.Usage.TotalTokens || counted == 0 {
		t.Errorf("egress counted %d tokens, the CLI %+v", counted, done.Usage)
	}
}
