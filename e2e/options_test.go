package e2e_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/modelstub"
)

// asked is what the agent sent to the model, as far as options show in it.
type asked struct {
	Model  string `json:"model"`
	System []struct {
		Text string `json:"text"`
	} `json:"system"`
	Tools []struct {
		Name string `json:"name"`
	} `json:"tools"`
	Messages []struct {
		Role    string          `json:"role"`
		Content json.RawMessage `json:"content"`
	} `json:"messages"`
	raw string
}

// requests returns the model's requests of the runs with this key, without the
// CLI's own errands, which offer no tools.
func (s *server) requests(t *testing.T, key string) []asked {
	t.Helper()
	var all []asked
	for _, r := range s.stub.Requests(key) {
		a := asked{raw: r.Body}
		if err := json.Unmarshal([]byte(r.Body), &a); err != nil {
			t.Fatalf("a request to the model: %v", err)
		}
		if len(a.Tools) > 0 {
			all = append(all, a)
		}
	}
	if len(all) == 0 {
		t.Fatalf("no request to the model with the key %s", key)
	}
	return all
}

func (a asked) system() string {
	var all []string
	for _, b := range a.System {
		all = append(all, b.Text)
	}
	return strings.Join(all, "\n")
}

func (a asked) offers(tool string) bool {
	for _, t := range a.Tools {
		if t.Name == tool {
			return true
		}
	}
	return false
}

// toolResult is the newest tool's result: its text, and whether it failed.
func (a asked) toolResult() (text string, failed bool) {
	for _, m := range a.Messages {
		var blocks []struct {
			Type    string          `json:"type"`
			Content json.RawMessage `json:"content"`
			IsError bool            `json:"is_error"`
		}
		if m.Role != "user" || json.Unmarshal(m.Content, &blocks) != nil {
			continue
		}
		for _, b := range blocks {
			if b.Type == "tool_result" {
				text, failed = string(b.Content), b.IsError
			}
		}
	}
	return text, failed
}

func tool(name, input string) modelstub.Step {
	return modelstub.Step{ToolUse: &modelstub.ToolUse{Name: name, Input: json.RawMessage(input)}}
}

// TestAPIOptions proves options by their effect: on the recorded request to the
// model, on what a tool could do, on the run's end.
func TestAPIOptions(t *testing.T) {
	s := start(t, "STROMBOLI_RUNS_MAX=3")
	touch := "touch /workspace/made; ls /workspace"
	write := tool("Write", `{"file_path":"/workspace/made","content":"x"}`)
	// one is a case that sets options on a run whose requests carry its name.
	one := func(name string, set func(*stromboli.RunSpec), check func(*testing.T, endedRun), steps ...modelstub.Step) fleetRun {
		in := keyed(name, steps...)
		in.Claude.DangerouslySkipPermissions = false
		set(&in)
		return fleetRun{name, in, check}
	}
	// tries is a case whose first step is a tool that is let or not.
	tries := func(name string, let bool, set func(*stromboli.ClaudeOptions), step modelstub.Step) fleetRun {
		return one(name, func(in *stromboli.RunSpec) { set(&in.Claude) }, func(t *testing.T, r endedRun) {
			r.want(t, stromboli.Completed, "")
			all := s.requests(t, name)
			if text, failed := all[len(all)-1].toolResult(); failed == let || len(all) < 2 {
				t.Errorf("the tool's result after %d requests: error %v, %.300s", len(all), failed, text)
			}
		}, step, text("done"))
	}
	fails := func(status stromboli.Status, reason stromboli.Reason) func(*testing.T, endedRun) {
		return func(t *testing.T, r endedRun) {
			r.want(t, status, reason)
			if r.Error == "" {
				t.Error("a failed run without a sentence")
			}
		}
	}
	schema := `{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]}`
	zeroTurns, oneTurn, budget := 0, 1, 0.000001
	s.fleet(t, []fleetRun{
		one("model and prompts", func(in *stromboli.RunSpec) {
			in.Claude.Model, in.Claude.SystemPrompt, in.Claude.AppendSystemPrompt = "claude-test-model", "You are a teapot.", "Short and stout."
		}, func(t *testing.T, r endedRun) {
			q := s.requests(t, "model and prompts")[0]
			if q.Model != "claude-test-model" || !strings.Contains(q.system(), "You are a teapot.") || !strings.Contains(q.system(), "Short and stout.") {
				t.Errorf("model %q, system %.500q", q.Model, q.system())
			}
			if r.Usage == nil || r.Usage.Model != "claude-test-model" {
				t.Errorf("usage %+v", r.Usage)
			}
		}, text("done")),
		tries("bash is denied unasked", false, func(*stromboli.ClaudeOptions) {}, bash(touch)),
		tries("allowed_tools", true, func(o *stromboli.ClaudeOptions) { o.AllowedTools = []string{"Bash(touch:*)", "Bash(ls:*)"} }, bash(touch)),
		tries("dangerously_skip_permissions", true, func(o *stromboli.ClaudeOptions) { o.DangerouslySkipPermissions = true }, bash(touch)),
		tries("bypassPermissions", true, func(o *stromboli.ClaudeOptions) { o.PermissionMode = "bypassPermissions" }, bash(touch)),
		tries("acceptEdits", true, func(o *stromboli.ClaudeOptions) { o.PermissionMode = "acceptEdits" }, write),
		tries("plan", false, func(o *stromboli.ClaudeOptions) { o.PermissionMode = "plan" }, write),
		tries("dontAsk", false, func(o *stromboli.ClaudeOptions) { o.PermissionMode = "dontAsk" }, write),
		tries("disallowed_tools by pattern", false, func(o *stromboli.ClaudeOptions) {
			o.DangerouslySkipPermissions, o.DisallowedTools = true, []string{"Bash(touch:*)"}
		}, bash(touch)),
		one("disallowed_tools by name", func(in *stromboli.RunSpec) {
			in.Claude.DangerouslySkipPermissions, in.Claude.DisallowedTools = true, []string{"Bash", "WebFetch"}
		}, func(t *testing.T, _ endedRun) {
			if q := s.requests(t, "disallowed_tools by name")[0]; q.offers("Bash") || q.offers("WebFetch") || !q.offers("Write") {
				t.Errorf("the tools are %+v", q.Tools)
			}
		}, text("done")),
		one("max_turns", func(in *stromboli.RunSpec) {
			in.Claude.MaxTurns, in.Claude.DangerouslySkipPermissions = &oneTurn, true
		}, fails(stromboli.Failed, stromboli.ReasonMaxTurns), bash("true"), text("too late")),
		one("max_turns without limit", func(in *stromboli.RunSpec) {
			in.Claude.MaxTurns, in.Claude.DangerouslySkipPermissions = &zeroTurns, true
		},
			func(t *testing.T, r endedRun) { r.want(t, stromboli.Completed, "") }, bash("true"), bash("true"), text("done")),
		one("max_budget_usd", func(in *stromboli.RunSpec) {
			in.Claude.MaxBudgetUSD, in.Claude.DangerouslySkipPermissions = &budget, true
		}, fails(stromboli.Failed, stromboli.ReasonBudget), bash("true"), text("too dear")),
		one("json_schema", func(in *stromboli.RunSpec) { in.Claude.JSONSchema = schema }, func(t *testing.T, r endedRun) {
			r.want(t, stromboli.Completed, "")
			if string(r.StructuredOutput) != `{"n":7}` {
				t.Errorf("structured_output is %s", r.StructuredOutput)
			}
		}, tool("StructuredOutput", `{"n":7}`), text("done")),
		one("json_schema that the model ignores", func(in *stromboli.RunSpec) { in.Claude.JSONSchema = schema },
			fails(stromboli.Failed, stromboli.ReasonSchema), text("prose"), text("more prose"), text("prose again")),
		one("workdir that nothing covers", func(in *stromboli.RunSpec) { in.Workdir = "/srv/elsewhere" }, func(t *testing.T, r endedRun) {
			r.want(t, stromboli.Completed, "")
			if !r.warned("workdir_empty") || !strings.Contains(s.requests(t, "workdir that nothing covers")[0].raw, "/srv/elsewhere") {
				t.Errorf("warnings %+v", r.Warnings)
			}
		}, text("done")),
	})
	t.Run("limits", func(t *testing.T) { limitsInForce(t, s) })
	t.Run("timeouts", func(t *testing.T) { timeouts(t, s) })
}

// limitsInForce reads a sandbox's limits back from the engine.
func limitsInForce(t *testing.T, s *server) {
	gate := s.gate(t)
	in, shares := gate.spec(text("done")), 512
	in.Podman.Memory, in.Podman.CPUs, in.Podman.CPUShares, in.Podman.Image = "700m", "0.7", &shares, suite.image
	id := s.submit(t, in)
	c, err := suite.engine.Inspect(s.ctx(), "stromboli-"+s.sandboxOf(t, id))
	if err != nil {
		t.Fatal(err)
	}
	info, err := suite.engine.Info(s.ctx())
	if err != nil {
		t.Fatal(err)
	}
	f := c.InForce
	if info.EnforcesLimits && (f.MemoryBytes != 700<<20 || f.MemorySwapBytes != f.MemoryBytes || f.NanoCPUs != 700_000_000 || f.CPUShares != 512 || f.PidsLimit <= 0) {
		t.Errorf("in force: %+v", f)
	}
	gate.open(t)
	r := s.await(t, id)
	if r.Output != "done" || r.ImageDigest == "" {
		t.Errorf("%s %q, image %q", r.Status, r.Error, r.ImageDigest)
	}
	if r.warned("not_enforced") == info.EnforcesLimits {
		t.Errorf("warnings %v", r.Warnings)
	}
}

// timeouts end runs whose model never answers; both kinds, over HTTP.
func timeouts(t *testing.T, s *server) {
	hang := modelstub.Step{Text: "I begin.", Hang: "after"}
	agent, sandbox := spec(hang), spec(hang)
	agent.Claude.Timeout = stromboli.Duration(3 * time.Second)
	sandbox.Podman.Timeout = stromboli.Duration(4 * time.Second)
	id := s.submit(t, sandbox)
	a := s.send(t, "POST", "/run", specJSON(t, agent)).want(t, 504)
	o := a.object(t)
	if o["status"] != "error" || o["code"] != "timeout" || o["reason"] != "timeout" || o["error"] == "" {
		t.Errorf("the answer is %s", a.body)
	}
	r := s.await(t, id)
	r.want(t, stromboli.Failed, stromboli.ReasonTimeout)
	said := slices.ContainsFunc(r.events, func(e stromboli.Event) bool { return bytes.Contains(e.Data, []byte(`\"type\":\"assistant\"`)) })
	if said && r.Output != "I begin." { // a slow machine may not have come that far
		t.Errorf("the output is %q", r.Output)
	}
	if d := r.FinishedAt.Sub(r.StartedAt); d < 3*time.Second || d > 30*time.Second {
		t.Errorf("the run with 4 s took %s", d)
	}
}
