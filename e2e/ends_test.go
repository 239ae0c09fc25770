package e2e_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/modelstub"
)

// background is a step that leaves a command running behind the answer.
func background(command string) modelstub.Step {
	in, err := json.Marshal(map[string]any{"command": command, "description": "test", "run_in_background": true})
	if err != nil {
		panic(err) // our own types
	}
	return tool("Bash", string(in))
}

// TestEnds: how runs end, each told by its status, reason and what is left.
func TestEnds(t *testing.T) {
	s := start(t, "STROMBOLI_RUNS_MAX=4", "STROMBOLI_RUNS_BACKGROUND_WAIT=6s")
	crashed := func(reason stromboli.Reason, check func(*testing.T, endedRun)) func(*testing.T, endedRun) {
		return func(t *testing.T, r endedRun) {
			r.want(t, stromboli.Crashed, reason)
			if r.CrashInfo == nil || r.CrashInfo.Reason == "" || r.CrashInfo.TaskCompleted {
				t.Fatalf("crash_info is %+v", r.CrashInfo)
			}
			check(t, r)
		}
	}
	small := spec(text("never said"))
	small.Podman.Memory = "64m"
	runs := []fleetRun{
		{"a task that never ends", spec(background(stayCommand("ends-for-ever")), text("answered")), func(t *testing.T, r endedRun) {
			r.want(t, stromboli.Completed, "")
			var d stromboli.BackgroundEndedData
			if !r.first(t, stromboli.EventBackgroundEnded, &d) || len(d.Tasks) != 1 {
				t.Errorf("background_ended has %+v", d)
			}
			if took := r.FinishedAt.Sub(r.StartedAt); r.Output != "answered" || took < 6*time.Second || took > 40*time.Second {
				t.Errorf("after %s: %q", took, r.Output)
			}
			if n := processesLike("ends-for-ever"); n != 0 {
				t.Errorf("%d processes of the task are left", n)
			}
		}},
		{"a task that ends after the answer", keyed("follow-up", background("sleep 0.5; echo task output"), text("started it"), text("it has ended")), func(t *testing.T, r endedRun) {
			r.want(t, stromboli.Completed, "")
			if r.Output != "started it\n\nit has ended" || r.count(stromboli.EventBackgroundEnded) != 0 {
				t.Errorf("the output is %q", r.Output)
			}
			if n := len(s.requests(t, "follow-up")); n != 3 {
				t.Errorf("the model was asked %d times", n)
			}
			if r.Usage == nil || r.Usage.OutputTokens < 3 {
				t.Errorf("usage of both turns: %+v", r.Usage)
			}
		}},
		{"several tools", keyed("usage", bash("echo 1 > n"), bash("cat n"), text("one")), func(t *testing.T, r endedRun) {
			r.want(t, stromboli.Completed, "")
			if r.Output != "one" || r.CrashInfo != nil || r.Usage == nil || r.Usage.TotalTokens != r.Usage.InputTokens+r.Usage.OutputTokens || r.Usage.EstimatedCostUSD <= 0 {
				t.Fatalf("%+v, usage %+v", r.Job, r.Usage)
			}
			var sent int64 // what the model counted, of all rounds
			for _, q := range s.stub.Requests("usage") {
				sent += int64(q.Size/4 + 1)
			}
			if r.Usage.InputTokens != sent || r.Usage.Model == "" {
				t.Errorf("usage %+v, the model counted %d tokens of input", r.Usage, sent)
			}
		}},
		{"killed by its own tool", spec(modelstub.Step{Text: "I begin.", ToolUse: bash("kill -9 $CLAUDE_PID; sleep 5").ToolUse}), crashed(stromboli.ReasonSignal, func(t *testing.T, r endedRun) {
			if c := r.CrashInfo; c.Signal != "SIGKILL" || c.ExitCode != 137 || c.PartialOutput != "I begin." {
				t.Errorf("crash_info is %+v", c)
			}
		})},
		{"ended by its own tool", spec(bash("kill $CLAUDE_PID; sleep 5")), crashed(stromboli.ReasonSignal, func(t *testing.T, r endedRun) {
			if c := r.CrashInfo; c.Signal != "SIGTERM" || c.ExitCode != 143 {
				t.Errorf("crash_info is %+v", c)
			}
		})},
		{"out of memory in a tool", func() stromboli.RunSpec {
			in := keyed("tool-oom", bash(`python3 -c 'x = b"x" * (600 << 20)'; echo rc=$?`), text("carried on"))
			in.Podman.Memory = "400m"
			return in
		}(), func(t *testing.T, r endedRun) {
			r.want(t, stromboli.Completed, "")
			if r.Output != "carried on" {
				t.Errorf("the output is %q", r.Output)
			}
			all := s.requests(t, "tool-oom")
			if got, _ := all[len(all)-1].toolResult(); !suite.rootless && !strings.Contains(got, "rc=137") {
				t.Errorf("the tool wasn't killed: %s", got)
			}
		}},
	}
	if !suite.rootless { // where limits may not be enforced
		runs = append(runs, fleetRun{"out of memory", small, crashed(stromboli.ReasonOOM, func(t *testing.T, r endedRun) {
			if c := r.CrashInfo; c.Signal != "SIGKILL" || c.ExitCode != 137 {
				t.Errorf("crash_info is %+v", c)
			}
		})})
	}
	s.fleet(t, runs)
	t.Run("crashed over HTTP", func(t *testing.T) {
		o := s.send(t, "POST", "/run", specJSON(t, spec(bash("kill -9 $CLAUDE_PID; sleep 5")))).want(t, 200).object(t)
		info, _ := o["crash_info"].(map[string]any)
		if o["status"] != "crashed" || info["signal"] != "SIGKILL" || info["exit_code"] != 137.0 || info["task_completed"] != false {
			t.Errorf("the answer is %v", o)
		}
	})
	waitFor(t, "the sandboxes to be discarded", func() bool { return len(s.sandboxes()) == 0 })
}
