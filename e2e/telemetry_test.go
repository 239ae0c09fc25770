package e2e_test

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/tomblancdev/stromboli"
)

// scrape reads the metrics of an address.
func scrape(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%d %v", resp.StatusCode, err)
	}
	return string(b)
}

// sum adds up the samples of a scrape whose names match a pattern.
func sum(t *testing.T, text, pattern string) float64 {
	t.Helper()
	var total float64
	for _, m := range regexp.MustCompile(`(?m)^`+pattern+` (\S+)$`).FindAllStringSubmatch(text, -1) {
		f, err := strconv.ParseFloat(m[len(m)-1], 64)
		if err != nil {
			t.Fatal(err)
		}
		total += f
	}
	return total
}

// TestTelemetry runs agents on a server whose metrics and log are then read: by
// those who may, with everything that happened, through the death of egress;
// and nothing of what was asked, said or kept secret is in the log.
func TestTelemetry(t *testing.T) {
	s := prepare(t, "STROMBOLI_LOG_LEVEL=info", "STROMBOLI_LOG_FORMAT=json", "STROMBOLI_LOG_LEVELS=engine=debug")
	tokens := filepath.Join(s.dir, "tokens.json")
	if err := os.WriteFile(tokens, []byte(`{"tokens":[{"name":"ours","token":"`+authToken+`","tenant":"acme"},{"name":"reader","token":"`+authOther+`","tenant":"acme","scopes":["read"]}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	s.env = append(s.env, "STROMBOLI_AUTH_ENABLED=true", "STROMBOLI_API_TOKENS_FILE="+tokens)
	s.up()
	for token, want := range map[string]int{"": http.StatusUnauthorized, authOther: http.StatusForbidden, authToken: http.StatusOK} {
		if status, _ := s.authAsk("GET", "/metrics", token, ""); status != want {
			t.Errorf("/metrics: %d, want %d", status, want)
		}
	}
	var own string
	waitFor(t, "the metrics' own address", func() bool {
		found := regexp.MustCompile(`"msg":"metrics are served","part":"server","url":"([^"]+)"`).FindStringSubmatch(s.log.tail(1 << 30))
		if found != nil {
			own = found[1]
		}
		return found != nil
	})

	s.as(authToken)
	if err := s.c.CreateSecret(s.ctx(), "token", "sk-"+canary+"-of-a-caller"); err != nil {
		t.Fatal(err)
	}
	in := spec(bash(`echo `+outputCanary+`; echo `+outputCanary+` >&2; echo "$TOKEN" > /dev/null; curl -sm 5 http://192.0.2.1/ > /dev/null; true`), text("I say "+outputCanary))
	in.Podman.SecretsEnv = map[string]string{"TOKEN": "token"}
	in.Podman.Lifecycle.PostStart = []string{"echo " + outputCanary}
	good, err := s.c.Run(s.ctx(), in)
	if err != nil || good.Status != stromboli.Completed {
		t.Fatalf("%+v, %v", good, err)
	}
	bad := spec(text("never said"))
	bad.Podman.Lifecycle.PostStart = []string{"echo " + outputCanary + " >&2; exit 3"}
	failed, err := s.c.Run(s.ctx(), bad)
	if err == nil && failed.Status != stromboli.Failed {
		t.Fatalf("%+v", failed)
	}

	const byModel = `stromboli_egress_connections_total\{kind="model",verdict="allowed"\}`
	before := scrape(t, own)
	for _, want := range []string{
		`stromboli_runs_accepted_total\{kind="sync"\} 2`,
		`stromboli_runs_total\{outcome="completed",reason="none"\} 1`, `stromboli_runs_total\{outcome="failed",reason="hook"\} 1`,
		`stromboli_run_phase_duration_seconds_count\{phase="hooks"\} 2`, `stromboli_run_phase_duration_seconds_count\{phase="generating"\} 1`,
		`stromboli_run_start_duration_seconds_count\{start="cold"\} 1`,
		`stromboli_tokens_total\{model="[a-z0-9.-]+",type="output"\} [1-9]\d*`, `stromboli_egress_tokens_total\{model="[a-z0-9.-]+",type="output"\} [1-9]\d*`,
		`stromboli_usage_compared_tokens_total\{source="agent"\} [1-9]\d*`, `stromboli_usage_compared_tokens_total\{source="egress"\} [1-9]\d*`,
		`stromboli_egress_connections_total\{kind="request",verdict="denied"\} [1-9]\d*`,
		`stromboli_engine_call_duration_seconds_count\{operation="create_container",outcome="ok"\} [1-9]\d*`,
		`stromboli_store_commit_duration_seconds_count\{outcome="ok"\} [1-9]\d*`,
		`http_requests_total\{method="POST",route="/run",status="200"\} 1`, `http_requests_total\{method="GET",route="/metrics",status="403"\} 1`,
		`stromboli_queue_depth 0`, `stromboli_run_slots [1-9]\d*`, `stromboli_build_info\{.*\} 1`,
	} {
		if !regexp.MustCompile(`(?m)^` + want + `$`).MatchString(before) {
			t.Errorf("there is no line %s", want)
		}
	}
	if t.Failed() {
		t.Log(before)
	}

	// What egress did doesn't fall when another process takes its place.
	if err := syscall.Kill(s.egressPID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if r, err := s.c.Run(s.ctx(), spec(text("again"))); err != nil || r.Status != stromboli.Completed {
		t.Fatalf("%+v, %v", r, err)
	}
	after := scrape(t, own)
	if a, b := sum(t, before, byModel), sum(t, after, byModel); b <= a || a == 0 {
		t.Errorf("%v connections to the model, and %v after the next run", a, b)
	}
	waitFor(t, "what is measured in the background", func() bool {
		text := scrape(t, own)
		for _, want := range []string{
			`stromboli_component_up\{component="(engine|store|egress|image|disk|cli|credentials|sandboxes|queue)"\} 1`, `stromboli_queue_oldest_age_seconds 0`,
			`stromboli_disk_used_bytes\{kind="(database|sessions)"\} [1-9].*`, `stromboli_disk_free_bytes [1-9].*`, `stromboli_webhook_deliveries\{state="dead"\} 0`,
		} {
			if !regexp.MustCompile(`(?m)^` + want + `$`).MatchString(text) {
				return false
			}
		}
		components := float64(strings.Count(text, "\nstromboli_component_up{"))
		return components >= 9 && sum(t, text, `stromboli_component_up\{.*\}`) == components && sum(t, text, `active_containers`) == 0
	})
	checkLog(t, s.log.tail(1<<30), good.ID)
}

// checkLog verifies that the log's lines tell whose work they are.
func checkLog(t *testing.T, text, runID string) {
	t.Helper()
	seen := map[string]int{}
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var l map[string]any
		if json.Unmarshal(lines.Bytes(), &l) != nil {
			continue // the program's word that it serves
		}
		msg, _ := l["msg"].(string)
		seen[msg]++
		if l["part"] == nil {
			t.Errorf("no part: %s", lines.Text())
		}
		if strings.Contains(lines.Text(), runID) && msg != "request" && (l["run_id"] != runID || l["tenant"] != "acme" || l["principal"] != "ours") {
			t.Errorf("it isn't said whose this is: %s", lines.Text())
		}
		if (msg == "request" && l["status"] == 200.0 || msg == "run accepted") &&
			(l["request_id"] == nil || l["tenant"] != "acme" || l["principal"] != "ours") {
			t.Errorf("it isn't said who asked: %s", lines.Text())
		}
		if msg == "request" && (l["route"] == "/health" || l["route"] == "/livez" || l["route"] == "/metrics") {
			t.Errorf("a probe is in the log: %s", lines.Text())
		}
	}
	if seen["request"] < 4 || seen["run accepted"] != 3 || seen["run ended"] != 3 {
		t.Errorf("lines by message: %v", seen)
	}
}

// TestMetricsPortTaken: a server whose metrics' port is another's serves all the
// same, and says so; one whose metrics are off has none.
func TestMetricsPortTaken(t *testing.T) {
	other := start(t)
	taken := strings.TrimPrefix(other.url, "http://")
	s := start(t, "STROMBOLI_METRICS_ADDRESS="+taken)
	waitFor(t, "the warning", func() bool {
		return strings.Contains(s.log.tail(1<<30), "metrics can't be served at an address of their own (STROMBOLI_METRICS_ADDRESS)")
	})
	if text := scrape(t, s.url+"/metrics"); !strings.Contains(text, "\nhttp_requests_total{") {
		t.Errorf("without authentication: %s", text)
	}
	off := start(t, "STROMBOLI_METRICS_ENABLED=false")
	waitFor(t, "egress", func() bool { return strings.Contains(off.log.tail(1<<30), "egress: connected") })
	if a := off.send(t, "GET", "/metrics", ""); a.status != http.StatusNotFound || strings.Contains(off.log.tail(1<<30), "metrics are served") {
		t.Errorf("switched off: %d", a.status)
	}
}
