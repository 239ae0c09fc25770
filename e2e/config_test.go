package e2e_test

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
)

// configFile is what a server's configuration file holds, by the keys that this
// test changes.
type configFile struct{ level, burst, deny, volumes, patterns, maxTimeout, more string }

func (c configFile) write(s *server) {
	s.t.Helper()
	text := "auth: {enabled: true}\napi_tokens_file: tokens.json\nrate_limit: {enabled: true, rps: 1000, burst: " + c.burst + "}\n" +
		"log: {level: " + c.level + "}\negress: {deny: [" + c.deny + "]}\nresources: {memory: 1g, max_timeout: " + c.maxTimeout + "}\n" +
		"agent: {allowed_volumes: [" + c.volumes + "], allowed_image_patterns: [" + c.patterns + "]}\n" + c.more + "\n"
	if err := os.WriteFile(filepath.Join(s.dir, "stromboli.yaml"), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) writeTokens(token string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, "tokens.json"), []byte(`{"tokens":[{"name":"a","token":"`+token+`"}]}`), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// hangup has the server read its configuration anew and waits until it says what
// became of that.
func (s *server) hangup(says string) {
	s.t.Helper()
	before := strings.Count(s.log.tail(1<<30), says)
	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		s.t.Fatal(err)
	}
	waitFor(s.t, says, func() bool { return strings.Count(s.log.tail(1<<30), says) > before })
}

// without takes settings of the environment away, so that the file's count.
func (s *server) without(names ...string) {
	s.env = slices.DeleteFunc(s.env, func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains(names, name)
	})
}

// TestReload: SIGHUP takes over tokens, limits, policies and the log's level in
// one step, for runs to come; hosts that are denied now are denied to living
// runs too. Where anything is wrong nothing changes, and it is shown.
func TestReload(t *testing.T) {
	s := prepare(t)
	s.without("STROMBOLI_LOG_LEVEL", "STROMBOLI_AGENT_ALLOWED_VOLUMES", "STROMBOLI_RESOURCES_MEMORY")
	first := configFile{level: "warn", burst: "500", volumes: s.volumes, patterns: "localhost/**", maxTimeout: "1h"}
	first.write(s)
	s.writeTokens(authToken)
	s.up()
	s.as(authToken)
	mark := "stromboli-e2e-reload"
	id := s.submit(t, spec(bash(stayCommand(mark)), text("ok")))
	s.inTool(t, id)
	if strings.Contains(s.log.tail(1<<30), "level=INFO") {
		t.Error("the log tells more than warnings")
	}
	volume := stromboli.RunSpec{Prompt: "x", Podman: stromboli.PodmanOptions{Volumes: []string{s.dir + "/other:/other"}}}
	if _, err := s.c.RunAsync(s.ctx(), volume); err == nil {
		t.Error("a volume that isn't allowed was taken")
	}
	if err := os.Mkdir(filepath.Join(s.dir, "other"), 0o755); err != nil {
		t.Fatal(err)
	}

	second := configFile{level: "debug", burst: "400", deny: "denied.example", volumes: s.dir + "/other", patterns: "localhost/**, ghcr.io/org/*", maxTimeout: "40m"}
	second.write(s)
	s.writeTokens(authOther)
	s.hangup("configuration was reloaded")
	s.wantStatus(http.StatusUnauthorized, "GET", "/jobs/"+id, authToken, "")
	s.as(authOther)
	holds := func() {
		t.Helper()
		a := s.send(t, "GET", "/images/search?q=ghcr.io/nobody/x", "", "X-API-Token: "+authOther)
		if limit := a.header.Get("X-Ratelimit-Limit"); limit != "400" {
			t.Errorf("the burst is %s", limit)
		}
		if strings.Contains(string(a.body), "image_forbidden") {
			t.Errorf("the registry is named by no pattern: %s", a.body)
		}
		if job, err := s.c.Job(s.ctx(), id); err != nil || job.Status != stromboli.Running {
			t.Errorf("the run that was active: %+v, %v", job.Status, err)
		}
	}
	holds()
	waitFor(t, "the denied host in the living run's network", func() bool {
		return strings.Contains(s.wantStatus(http.StatusOK, "GET", "/jobs/"+id, authOther, ""), "denied.example")
	})
	clamped := spec(text("ok"))
	clamped.Podman.Volumes, clamped.Podman.Timeout = volume.Podman.Volumes, stromboli.Duration(time.Hour)
	if r := s.do(t, clamped); r.Status != stromboli.Completed || !r.warned("limit_clamped") {
		t.Errorf("a run by the new policy: %s %s, %+v", r.Status, r.Error, r.Warnings)
	}

	// Nothing of these is taken over.
	for wrong, says := range map[string]string{
		"compose: {}\nsandbox: {userns: no}": "STROMBOLI_SANDBOX_USERNS",
		"queue_max: 1\nqueue_max: 2":         "it is set twice",
		"webhook: {allow: ['http://x/']}":    "",
		"queue_max: 5":                       "takes a restart: STROMBOLI_QUEUE_MAX",
		"data_dir: /elsewhere\nqueue_max: 5": "STROMBOLI_QUEUE_MAX",
		"jobs: [":                            "it is not YAML",
	} {
		broken := first
		broken.more = wrong
		if strings.HasPrefix(wrong, "webhook") {
			broken.deny = "'not a host'"
			says = "STROMBOLI_EGRESS_DENY"
		}
		broken.write(s)
		s.writeTokens(authToken)
		s.hangup("configuration was not reloaded")
		holds()
		var health struct {
			Status     string
			Components []struct{ Name, Status, Error string }
		}
		if err := json.Unmarshal([]byte(s.wantStatus(http.StatusOK, "GET", "/health", "", "")), &health); err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(health.Components, func(c struct{ Name, Status, Error string }) bool { return c.Name == "configuration" })
		if i < 0 || health.Components[i].Status != "error" || !strings.Contains(health.Components[i].Error, "the log says why") || !strings.Contains(s.log.tail(1<<30), says) || health.Status != "degraded" {
			t.Errorf("%s: health says %+v", wrong, health)
		}
		s.wantStatus(http.StatusOK, "GET", "/readyz", "", "")
	}
	second.write(s)
	s.writeTokens(authOther)
	s.hangup("configuration was reloaded")
	if body := s.wantStatus(http.StatusOK, "GET", "/health", "", ""); strings.Contains(body, "degraded") {
		t.Errorf("after it was mended: %s", body)
	}
	body := s.wantStatus(http.StatusOK, "GET", "/audit?action=config.reload", authOther, "")
	if ok, refused := strings.Count(body, `"outcome":"ok"`), strings.Count(body, `"outcome":"refused"`); ok != 2 || refused != 6 || !strings.Contains(body, "STROMBOLI_EGRESS_DENY") {
		t.Errorf("two reloads and six refused ones in the audit log: %s", body)
	}
	if err := s.c.Cancel(s.ctx(), id); err != nil {
		t.Error(err)
	}
	s.await(t, id)
}

// TestHangup: a hangup while the server starts or stops ends nothing.
func TestHangup(t *testing.T) {
	s := prepare(t)
	if err := os.WriteFile(filepath.Join(s.dir, "stromboli.yaml"), []byte("queue_max: 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(suite.bin) // no command: it serves
	cmd.Env, cmd.Dir, cmd.Stderr = s.env, s.dir, s.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.cmd, s.done = cmd, make(chan struct{})
	go func() { _ = cmd.Wait(); close(s.done) }()
	waitFor(t, "the start", func() bool { _, err := os.Stat(filepath.Join(s.data, "lock")); return err == nil })
	hang := func() { _ = cmd.Process.Signal(syscall.SIGHUP) }
	for range 3 {
		hang()
	}
	waitFor(t, "the server", func() bool { return strings.Contains(s.log.tail(1<<30), "serving at") })
	waitFor(t, "the reload", func() bool { return strings.Contains(s.log.tail(1<<30), "configuration was reloaded") })
	_ = cmd.Process.Signal(syscall.SIGTERM)
	for ended := false; !ended; {
		select {
		case <-s.done:
			ended = true
		case <-time.After(time.Millisecond):
			hang()
		}
	}
	if code := cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d: %s", code, cmd.ProcessState)
	}
	s.cmd = nil
}
