package e2e_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/modelstub"
)

// steps is a row's run of the model's steps, with every tool allowed.
func steps(all ...modelstub.Step) func(*server) stromboli.RunSpec {
	return func(*server) stromboli.RunSpec { return spec(all...) }
}

// with changes a row's run.
func with(change func(*stromboli.RunSpec), all ...modelstub.Step) func(*server) stromboli.RunSpec {
	return func(*server) stromboli.RunSpec {
		in := spec(all...)
		change(&in)
		return in
	}
}

// failing is a step that the model answers with an error for good.
func failing(status int) modelstub.Step {
	return modelstub.Step{Status: status, Headers: map[string]string{"x-should-retry": "false"}}
}

// says checks a run's output.
func says(output string) func(*testing.T, *server, endedRun) {
	return func(t *testing.T, _ *server, r endedRun) {
		t.Helper()
		if r.Output != output {
			t.Errorf("the output is %q, want %q", r.Output, output)
		}
	}
}

// background is a step that leaves a command running behind the answer.
func background(command string) modelstub.Step {
	in, err := json.Marshal(map[string]any{"command": command, "description": "test", "run_in_background": true})
	if err != nil {
		panic(err) // our own types
	}
	return tool("Bash", string(in))
}

func answeredOutcomes() []outcome {
	return []outcome{
		{what: "it answers", status: stromboli.Completed, http: 200, spec: steps(bash("true"), text("done")), check: says("done")},
		{
			what: "it answers, though a tool was denied", status: stromboli.Completed, http: 200,
			spec: with(func(in *stromboli.RunSpec) { in.Claude.DangerouslySkipPermissions = false }, bash("touch /workspace/made; ls"), text("without it")), check: says("without it"),
		},
		{
			what: "it answers, though a tool was killed for want of memory", status: stromboli.Completed, http: 200, root: true,
			spec: func(*server) stromboli.RunSpec {
				in := keyed("tool-oom", bash(`python3 -c 'x = b"x" * (600 << 20)'; echo rc=$?`), text("carried on"))
				in.Podman.Memory = "400m"
				return in
			},
			check: func(t *testing.T, s *server, r endedRun) {
				says("carried on")(t, s, r)
				all := s.requests(t, "tool-oom")
				if got, _ := all[len(all)-1].toolResult(); !strings.Contains(got, "rc=137") {
					t.Errorf("the tool wasn't killed: %s", got)
				}
			},
		},
		{
			what: "it answers, and again when a task in the background has ended", status: stromboli.Completed, http: 200,
			spec: func(*server) stromboli.RunSpec {
				return keyed("follow-up", background("sleep 0.5; echo task output"), text("started it"), text("it has ended"))
			},
			check: func(t *testing.T, s *server, r endedRun) {
				says("started it\n\nit has ended")(t, s, r)
				if n := len(s.requests(t, "follow-up")); n != 3 || r.count(stromboli.EventBackgroundEnded) != 0 || r.Usage == nil || r.Usage.OutputTokens < 3 {
					t.Errorf("the model was asked %d times, usage %+v", n, r.Usage)
				}
			},
		},
		{
			what: "it answers, and a task in the background never ends (it is ended after `background_wait`)", status: stromboli.Completed, http: 200,
			spec: steps(background(stayCommand("ends-for-ever")), text("answered")),
			check: func(t *testing.T, s *server, r endedRun) {
				says("answered")(t, s, r)
				var d stromboli.BackgroundEndedData
				if !r.first(t, stromboli.EventBackgroundEnded, &d) || len(d.Tasks) != 1 {
					t.Errorf("background_ended has %+v", d)
				}
				if n := processesLike("ends-for-ever"); n != 0 {
					t.Errorf("%d processes of the task are left", n)
				}
			},
		},
	}
}

func failedOutcomes() []outcome {
	var rows []outcome
	failed := func(what string, reason stromboli.Reason, in func(*server) stromboli.RunSpec, says string) {
		rows = append(rows, outcome{
			what: what, status: stromboli.Failed, reason: reason, http: 500, spec: in,
			check: func(t *testing.T, _ *server, r endedRun) {
				if !strings.Contains(r.Error, says) {
					t.Errorf("error %q doesn't say %q", r.Error, says)
				}
			},
		})
	}
	for _, c := range []struct {
		status int
		reason stromboli.Reason
		note   string
	}{
		{400, stromboli.ReasonModel, ""},
		{401, stromboli.ReasonAuth, ""},
		{403, stromboli.ReasonAuth, ""},
		{404, stromboli.ReasonModel, ", such as for an unknown model"},
		{413, stromboli.ReasonModel, ""},
		{500, stromboli.ReasonModel, ", again and again"},
		{502, stromboli.ReasonModel, ", again and again: so egress answers where the model's endpoint can't be reached"},
		{529, stromboli.ReasonOverloaded, ", again and again"},
	} {
		failed(fmt.Sprintf("the model's API says %d%s", c.status, c.note), c.reason, steps(failing(c.status)), "")
	}
	failed("the model's API says 429, and to wait longer than the CLI does", stromboli.ReasonOverloaded,
		steps(modelstub.Step{Status: 429, Headers: map[string]string{"retry-after": "3600"}}), "")
	refusal := modelstub.Step{Text: "I can't", StopReason: "refusal"} // the CLI asks once more
	failed("the model refuses", stromboli.ReasonModel, steps(refusal, refusal, refusal), "")
	endless := modelstub.Step{Text: "and on ", StopReason: "max_tokens"} // the CLI has it go on three times
	failed("the answer is longer than the model may make it, after three continuations", stromboli.ReasonModel,
		steps(endless, endless, endless, endless, endless, endless), "")
	failed("the prompt is longer than the CLI takes", stromboli.ReasonModel, with(func(in *stromboli.RunSpec) {
		in.Prompt += strings.Repeat("\nmany words of nothing in particular", 7_500_000/36)
		in.Podman.Memory = "2g"
	}, text("never asked")), "too long")
	one, budget, schema := 1, 0.000001, `{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]}`
	failed("`max_turns` is reached", stromboli.ReasonMaxTurns,
		with(func(in *stromboli.RunSpec) { in.Claude.MaxTurns = &one }, bash("true"), text("too late")), "")
	failed("`max_budget_usd` is spent", stromboli.ReasonBudget,
		with(func(in *stromboli.RunSpec) { in.Claude.MaxBudgetUSD = &budget }, bash("true"), text("too dear")), "")
	failed("a lifecycle hook fails", stromboli.ReasonHook, with(func(in *stromboli.RunSpec) {
		in.Podman.Lifecycle.PostStart = []string{"exit 6"}
	}, text("never said")), "hook post_start[0] failed with exit code 6")
	wrong := tool("StructuredOutput", `{"n":"seven"}`)
	failed("the structured output never fits `json_schema`", stromboli.ReasonSchema,
		with(func(in *stromboli.RunSpec) { in.Claude.JSONSchema = schema }, wrong, wrong, wrong, wrong, wrong, wrong, wrong), "")
	failed("the model gives no structured output at all", stromboli.ReasonSchema,
		with(func(in *stromboli.RunSpec) { in.Claude.JSONSchema = schema }, text("prose"), text("more prose"), text("prose again")), "structured")
	return rows
}

// limited is a row whose run has a time limit.
func limited(claude, sandbox time.Duration, all ...modelstub.Step) func(*server) stromboli.RunSpec {
	return with(func(in *stromboli.RunSpec) {
		in.Claude.Timeout, in.Podman.Timeout = stromboli.Duration(claude), stromboli.Duration(sandbox)
	}, all...)
}

func deadlineOutcomes() []outcome {
	hangs := modelstub.Step{Text: "I begin.", Hang: "after"}
	var rows []outcome
	for _, c := range []struct {
		what string
		spec func(*server) stromboli.RunSpec
	}{
		{"`podman.timeout` passes before the agent is started", limited(0, time.Millisecond, text("never said"))},
		{"`claude.timeout` passes while the agent starts", limited(time.Millisecond, 0, text("never said"))},
		{"`claude.timeout` passes before the model answers", limited(4*time.Second, 0, modelstub.Step{Hang: "before"})},
		{"`claude.timeout` passes in mid-answer", limited(4*time.Second, 0, hangs)},
		{"`podman.timeout` passes in mid-answer", limited(0, 4*time.Second, hangs)},
		{"`claude.timeout` passes while a tool works", limited(5*time.Second, 0, bash("trap '' TERM INT; while :; do sleep 1; done"))},
		{"`claude.timeout` passes while an answered agent has a task in the background", limited(12*time.Second, 0, background(stayCommand("late-task")), text("answered"))},
	} {
		rows = append(rows, outcome{what: c.what, status: stromboli.Failed, reason: stromboli.ReasonTimeout, http: 504, spec: c.spec})
	}
	rows[len(rows)-1].check = func(t *testing.T, _ *server, _ endedRun) {
		if n := processesLike("late-task"); n != 0 {
			t.Errorf("%d processes of the task are left", n)
		}
	}
	return rows
}

// cancel is a caller's cancel.
func cancel(t *testing.T, s *server, id string) {
	t.Helper()
	if err := s.c.Cancel(s.ctx(), id); err != nil {
		t.Fatal(err)
	}
}

func cancelOutcomes() []outcome {
	var rows []outcome
	cancelled := func(what string, in func(*server) stromboli.RunSpec, during func(*testing.T, *server, string)) {
		rows = append(rows, outcome{what: what, status: stromboli.Cancelled, reason: stromboli.ReasonRequest, http: 409, spec: in, during: during})
	}
	slow := survPaced(time.Minute)
	cancelled("cancelled in mid-answer", with(func(in *stromboli.RunSpec) { in.Claude.IncludePartialMessages = true }, slow), func(t *testing.T, s *server, id string) {
		s.waitEvent(t, id, "a delta", func(e stromboli.Event) bool { return e.Type == stromboli.EventText })
		cancel(t, s, id)
	})
	cancelled("cancelled while a tool works that ignores signals", steps(bash("trap '' TERM INT HUP; while :; do sleep 1; done")), func(t *testing.T, s *server, id string) {
		s.inTool(t, id)
		cancel(t, s, id)
	})
	cancelled("cancelled after the answer, while a task in the background goes on", steps(background(stayCommand("cancelled-task")), text("answered")), func(t *testing.T, s *server, id string) {
		s.waitEvent(t, id, "a result", func(e stromboli.Event) bool {
			return e.Type == stromboli.EventOutput && strings.Contains(survLineOf(t, e), `"type":"result"`)
		})
		cancel(t, s, id)
	})
	cancelled("cancelled while the sandbox is made", steps(text("never said")), cancel)
	cancelled("cancelled while the agent starts", steps(slow), func(t *testing.T, s *server, id string) {
		s.sandboxOf(t, id)
		cancel(t, s, id)
	})
	rows[len(rows)-1].late, rows[len(rows)-2].late = true, true
	return append(rows, outcome{
		what: "its caller goes away, and had asked for `on_disconnect: cancel`", status: stromboli.Cancelled, reason: stromboli.ReasonDisconnect, hangsUp: true,
		spec: with(func(in *stromboli.RunSpec) { in.OnDisconnect = stromboli.OnDisconnectCancel }, bash(stayCommand("left"))),
	})
}

// awayFor is how long the agents of awayOutcomes may be without a server.
const awayFor = 12 * time.Second

// awayOutcomes are ended by their shims while no server is there. The first
// takes the server away from both.
func awayOutcomes() []outcome {
	work := bash("echo begun; setsid sleep 301 & sleep 300")
	check := func(key string) func(*testing.T, *server, endedRun) {
		return func(t *testing.T, s *server, r endedRun) {
			s.survResumable(&survivor{s: s, id: r.ID, session: r.SessionID, key: key})
		}
	}
	return []outcome{
		{
			what: "no server is there for longer than `STROMBOLI_ORPHAN_TIMEOUT`", status: stromboli.Failed, reason: stromboli.ReasonOrphaned, http: 500,
			spec: func(*server) stromboli.RunSpec { return keyed("orphaned", work, text("never said")) },
			during: func(t *testing.T, s *server, id string) {
				s.inTool(t, id)
				waitFor(t, "both tools' processes", func() bool {
					for _, box := range s.sandboxes() {
						if !s.survAgentRuns(box, "sleep") {
							return false
						}
					}
					return len(s.sandboxes()) == 2
				})
				s.kill()
				for _, box := range s.sandboxes() {
					waitFor(t, "the agent's end without a server", func() bool { return !s.survAgentRuns(box, "sleep") && !s.survAgentRuns(box, "claude") })
					if _, running := s.survContainer(box); !running {
						t.Error("the sandbox is gone: who would tell the next server what happened?")
					}
				}
				s.up()
			},
			check: check("orphaned"),
		},
		{
			what: "`claude.timeout` passes while no server is there", status: stromboli.Failed, reason: stromboli.ReasonTimeout, http: 504,
			spec: func(*server) stromboli.RunSpec {
				in := keyed("late", work, text("never said"))
				in.Claude.Timeout = stromboli.Duration(10 * time.Second)
				return in
			},
			check: check("late"),
		},
	}
}
