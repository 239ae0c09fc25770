package telemetry_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/tomblancdev/stromboli/internal/telemetry"
)

type rules struct {
	Groups []struct {
		Rules []struct {
			Alert, Expr string
			Annotations map[string]string
		}
	}
}

func readAlerts(t *testing.T) rules {
	t.Helper()
	b, err := os.ReadFile("../../deployments/prometheus/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	var r rules
	if err := yaml.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// dashboardExprs are the expressions of the dashboard's panels, by title.
func dashboardExprs(t *testing.T) map[string]string {
	t.Helper()
	b, err := os.ReadFile("../../deployments/grafana/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
		Templating struct {
			List []struct{ Name, Query string }
		}
	}
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	exprs := make(map[string]string)
	for _, p := range d.Panels {
		for i, target := range p.Targets {
			exprs[fmt.Sprintf("%s %d", p.Title, i)] = target.Expr
		}
	}
	for _, v := range d.Templating.List {
		if strings.HasPrefix(v.Query, "label_values") {
			exprs[v.Name] = v.Query
		}
	}
	return exprs
}

// Whatever dashboard and alerts ask for is there.
func TestDeploymentsNameWhatExists(t *testing.T) {
	m := newMetrics()
	everything(t, m)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Run(ctx, telemetry.Sample{Name: "x", Every: time.Hour, Limit: time.Second}); err != nil { // makes its series
		t.Fatal(err)
	}
	_, families := scrape(t, m)
	names := regexp.MustCompile(`\b(?:stromboli|http|go|process|active)_[a-z_]+`)
	check := func(where, expr string) {
		t.Helper()
		// Names of labels stand in braces and after "by", and aren't metrics.
		expr = regexp.MustCompile(`\{[^}]*\}|by \([^)]*\)`).ReplaceAllString(expr, "")
		found := names.FindAllString(expr, -1)
		if len(found) == 0 {
			t.Errorf("%s: no metric in %q", where, expr)
		}
		for _, name := range found {
			base := regexp.MustCompile(`_(bucket|count|sum)$`).ReplaceAllString(name, "")
			if families[name] == nil && families[base] == nil {
				t.Errorf("%s: there is no metric %s", where, name)
			}
		}
	}
	for where, expr := range dashboardExprs(t) {
		check(where, expr)
	}
	for _, g := range readAlerts(t).Groups {
		for _, r := range g.Rules {
			check(r.Alert, r.Expr)
		}
	}
}

// Each alert leads to a section of the runbook.
func TestAlertsHaveRunbooks(t *testing.T) {
	b, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	anchors := make(map[string]bool)
	for _, h := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(string(b), -1) {
		anchors[strings.ReplaceAll(strings.ToLower(h[1]), " ", "-")] = true
	}
	for _, g := range readAlerts(t).Groups {
		for _, r := range g.Rules {
			page, anchor, _ := strings.Cut(r.Annotations["runbook_url"], "#")
			if !strings.HasSuffix(page, "/docs/operations.md") || !anchors[anchor] || r.Annotations["summary"] == "" {
				t.Errorf("%s: %q", r.Alert, r.Annotations)
			}
		}
	}
}

// TestPromtool has Prometheus's own program judge alerts and expressions, where
// there is one: `make lint` fetches it.
func TestPromtool(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Skip(err)
		}
		if promtool, err = exec.LookPath(filepath.Join(cache, "stromboli", "tools", "promtool", "promtool")); err != nil {
			t.Skip("there is no promtool; `make lint` fetches it where it can")
		}
	}
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	run("check", "rules", "../../deployments/prometheus/alerts.yml")
	run("test", "rules", "../../deployments/prometheus/alerts_test.yml")

	type record struct {
		Record string `json:"record"`
		Expr   string `json:"expr"`
	}
	var records []record
	replace := strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*", "$job", "stromboli")
	for _, expr := range dashboardExprs(t) {
		if strings.HasPrefix(expr, "label_values") {
			continue
		}
		records = append(records, record{fmt.Sprintf("panel:expr:%d", len(records)), replace.Replace(expr)})
	}
	b, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": records}}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "dashboard.yml")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	run("check", "rules", path)
	m := newMetrics()
	everything(t, m)
	text, _ := scrape(t, m)
	check := exec.CommandContext(t.Context(), promtool, "check", "metrics")
	check.Stdin = strings.NewReader(text)
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}
