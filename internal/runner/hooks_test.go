package runner_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/store"
)

// hooked gives a run hooks.
func hooked(l stromboli.Lifecycle) func(*stromboli.RunSpec) {
	return func(s *stromboli.RunSpec) { s.Podman.Lifecycle = l }
}

// threeHooks note in the home that they ran.
func threeHooks() stromboli.Lifecycle {
	return stromboli.Lifecycle{
		OnCreateCommand: []string{`echo create >> ~/hooks; echo to stdout`}, PostCreate: []string{`echo post >> ~/hooks; echo to stderr >&2; sleep 0.05`, `echo post2 >> ~/hooks`},
		PostStart: []string{`echo start >> ~/hooks`},
	}
}

// ran is what the hooks of a session have noted.
func (w *world) ran(run stromboli.Run) string {
	b, _ := os.ReadFile(filepath.Join(w.data, "sessions", run.SessionID, "home", "hooks"))
	return strings.Join(strings.Fields(string(b)), " ")
}

// hookEvents is what a run's events tell of its hooks, in short.
func hookEvents(t *testing.T, st *store.Store, id string) []string {
	t.Helper()
	events, err := st.Events(t.Context(), id, 0, 10_000)
	must(t, err)
	var all []string
	for _, ev := range events {
		var d struct {
			Hook         string
			Index        int
			Stream, Text string
			ExitCode     int `json:"exit_code"`
		}
		must(t, json.Unmarshal(ev.Data, &d))
		name := fmt.Sprintf("%s %s[%d]", ev.Type, d.Hook, d.Index)
		switch string(ev.Type) {
		case string(stromboli.EventHookStarted):
			all = append(all, name)
		case string(stromboli.EventHookOutput):
			all = append(all, name+" "+d.Stream+" "+d.Text)
		case string(stromboli.EventHookFinished):
			all = append(all, fmt.Sprintf("%s %d", name, d.ExitCode))
		case string(stromboli.EventPhase):
			all = append(all, string(ev.Data))
		}
	}
	return all
}

func TestHooks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{})
	first := l.wait(l.submit(`say "$(cat ~/hooks | tr '\n' ' ')"; result hello`, hooked(threeHooks())).ID)
	want(t, first, stromboli.Completed, "")
	events := hookEvents(t, l.store, first.ID)
	begin := slices.Index(events, `{"phase":"hooks"}`)
	if begin < 0 {
		t.Fatalf("events %q", events)
	}
	wants := []string{
		`{"phase":"hooks"}`,
		"hook.started on_create_command[0]", "hook.output on_create_command[0] stdout to stdout", "hook.finished on_create_command[0] 0",
		"hook.started post_create[0]", "hook.output post_create[0] stderr to stderr", "hook.finished post_create[0] 0",
		"hook.started post_create[1]", "hook.finished post_create[1] 0", "hook.started post_start[0]", "hook.finished post_start[0] 0",
		`{"phase":"starting"}`,
	}
	if got := events[begin : begin+len(wants)]; !slices.Equal(got, wants) {
		t.Errorf("events %q", got)
	}
	if got := w.ran(first); got != "create post post2 start" {
		t.Errorf("ran %q", got)
	}
	if len(first.Warnings) != 0 {
		t.Errorf("warnings %v", first.Warnings)
	}

	warned := func(run stromboli.Run) (codes []string) {
		for _, w := range run.Warnings {
			if strings.HasPrefix(w.Code, "hooks_") {
				codes = append(codes, w.Code)
			}
		}
		return codes
	}
	// The sandbox is another one: its create hooks run again, and post_start only
	// where it is named.
	again := l.wait(l.submit(`result again`, resume(first.SessionID)).ID)
	want(t, again, stromboli.Completed, "")
	if got := w.ran(first); got != "create post post2 start create post post2" || !slices.Equal(warned(again), []string{"hooks_repeated"}) {
		t.Errorf("ran %q, warnings %v", got, again.Warnings)
	}
	// They are those of the first run.
	other := threeHooks()
	other.OnCreateCommand = []string{"echo other >> ~/hooks"}
	must(t, os.Remove(filepath.Join(w.data, "sessions", first.SessionID, "home", "hooks")))
	third := l.wait(l.submit(`result third`, resume(first.SessionID), hooked(other)).ID)
	if got := w.ran(first); got != "create post post2 start" || !slices.Equal(warned(third), []string{"hooks_repeated", "hooks_not_run"}) {
		t.Errorf("ran %q, warnings %v", got, third.Warnings)
	}
	// A fork is a session of its own, that begins with the hooks of its source's or its own.
	fork := func(change ...func(*stromboli.RunSpec)) stromboli.Run {
		return l.wait(l.submit(`result forked`, append(change, resume(first.SessionID), func(s *stromboli.RunSpec) { s.Claude.ForkSession = true })...).ID)
	}
	if run := fork(); w.ran(run) != "create post post2 start create post post2" || len(warned(run)) != 0 {
		t.Errorf("a fork ran %q, warnings %v", w.ran(run), run.Warnings)
	}
	if run := fork(hooked(other)); !strings.HasSuffix(w.ran(run), "start other post post2 start") || len(warned(run)) != 0 {
		t.Errorf("a fork with its own ran %q, warnings %v", w.ran(run), run.Warnings)
	}
	// A session that began without has none.
	plain := l.wait(l.submit(`result plain`).ID)
	late := l.wait(l.submit(`result late`, resume(plain.SessionID), hooked(threeHooks())).ID)
	if got := w.ran(late); got != "start" || !slices.Equal(warned(late), []string{"hooks_not_run"}) {
		t.Errorf("ran %q, warnings %v", got, late.Warnings)
	}
	l.empty()
}

// A hook that fails stops the rest, and there is no agent.
func TestHookFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{})
	for name, c := range map[string]struct {
		l      stromboli.Lifecycle
		reason stromboli.Reason
		says   string
		ran    string
		change func(*stromboli.RunSpec)
	}{
		"the first":           {l: stromboli.Lifecycle{OnCreateCommand: []string{"echo one >> ~/hooks; exit 7", "echo two >> ~/hooks"}, PostStart: []string{"echo three >> ~/hooks"}}, reason: "hook", says: "hook on_create_command[0] failed with exit code 7", ran: "one"},
		"a later one":         {l: stromboli.Lifecycle{PostCreate: []string{"echo one >> ~/hooks", "nonsense-command"}, PostStart: []string{"echo three >> ~/hooks"}}, reason: "hook", says: "hook post_create[1] failed with exit code 127", ran: "one"},
		"on each run":         {l: stromboli.Lifecycle{PostStart: []string{"kill -9 $$"}}, reason: "hook", says: "hook post_start[0] failed with exit code 137 (SIGKILL)"},
		"one that never ends": {l: stromboli.Lifecycle{PostStart: []string{"echo one >> ~/hooks; sleep 0.2", "sleep 300"}, HooksTimeout: stromboli.Duration(700 * time.Millisecond)}, reason: "hook", says: "hook post_start[1] did not end in time", ran: "one"},
		"the run's time": {
			l: stromboli.Lifecycle{PostStart: []string{"sleep 300"}}, reason: "timeout", says: "time limit",
			change: func(s *stromboli.RunSpec) { s.Podman.Timeout = stromboli.Duration(2 * time.Second) },
		},
		"not the agent's time": {
			l: stromboli.Lifecycle{PostStart: []string{"sleep 1; exit 9"}}, reason: "hook", says: "exit code 9",
			change: func(s *stromboli.RunSpec) { s.Claude.Timeout = stromboli.Duration(100 * time.Millisecond) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			change := c.change
			if change == nil {
				change = func(*stromboli.RunSpec) {}
			}
			run := l.wait(l.submit(`result never`, hooked(c.l), change).ID)
			want(t, run, stromboli.Failed, c.reason)
			if !strings.Contains(run.Outcome.Error, c.says) || w.ran(run) != c.ran || w.starts(run) != 0 || run.AgentStarted {
				t.Errorf("%q; ran %q, %d agents", run.Outcome.Error, w.ran(run), w.starts(run))
			}
		})
	}
}

// The server dies at each of its writes. Whoever comes next, each hook runs once, each of
// its events is there once, and the agent is started once.
func TestHooksDeathAtEachWrite(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for at, more := 1, true; more; at++ {
		for _, before := range []bool{true, false} {
			var id string
			id, more = w.dies(at, before, `result hello`, hooked(threeHooks()))
			l := w.start(options{})
			run := l.wait(id)
			want(t, run, stromboli.Completed, "")
			var hooks []string
			for _, ev := range hookEvents(t, l.store, id) {
				if strings.HasPrefix(ev, "hook.") {
					hooks = append(hooks, ev)
				}
			}
			if w.ran(run) != "create post post2 start" || w.starts(run) != 1 || len(hooks) != 10 || len(slices.Compact(slices.Sorted(slices.Values(hooks)))) != 10 {
				t.Errorf("write %d, before %v: ran %q, %d agents, %d events of hooks: %q", at, before, w.ran(run), w.starts(run), len(hooks), hooks)
			}
			l.empty()
			l.stop()
		}
		if at > 40 {
			t.Fatal("a run has no end of writes")
		}
	}
}

// A hook that is at work while the server is away goes on; its failure is told
// by the next one, also when that one dies before it has said so.
func TestHookWithoutServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{})
	id := l.submit(`result never`, hooked(stromboli.Lifecycle{OnCreateCommand: []string{`echo one >> ~/hooks; until [ -e ~/go ]; do sleep 0.01; done; echo two >> ~/hooks; exit 5`}})).ID
	run := l.get(id)
	l.eventually("the hook has begun", func() bool { return w.ran(run) == "one" })
	l.stop()
	must(t, os.WriteFile(filepath.Join(w.data, "sessions", run.SessionID, "home", "go"), nil, 0o644))
	l = w.start(options{faults: &faults{dieAt: 3, before: true}}) // taking over, storing the end, finishing
	l.eventually("it dies, or says it", func() bool {
		l.faults.mu.Lock()
		defer l.faults.mu.Unlock()
		return l.faults.dead
	})
	l.stop()
	l = w.start(options{})
	run = l.wait(id)
	want(t, run, stromboli.Failed, stromboli.ReasonHook)
	if w.ran(run) != "one two" || !strings.Contains(run.Outcome.Error, "on_create_command[0] failed with exit code 5") {
		t.Errorf("ran %q: %s", w.ran(run), run.Outcome.Error)
	}
	l.empty()
}

func TestHookIsCancelled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{})
	id := l.submit(`result never`, hooked(stromboli.Lifecycle{PostStart: []string{`echo one >> ~/hooks; trap '' TERM; while :; do sleep 0.1; done`, "echo two >> ~/hooks"}})).ID
	run := l.get(id)
	l.eventually("the hook has begun", func() bool { return w.ran(run) == "one" })
	l.cancel(id)
	run = l.wait(id)
	want(t, run, stromboli.Cancelled, stromboli.ReasonRequest)
	if w.ran(run) != "one" || w.starts(run) != 0 {
		t.Errorf("ran %q, %d agents", w.ran(run), w.starts(run))
	}
	l.empty()
}

// A sandbox that is gone in the middle of its hooks ends the run: what they did is not done
// a second time by the same run.
func TestHooksLoseTheirSandbox(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{})
	id := l.submit(`result never`, hooked(stromboli.Lifecycle{OnCreateCommand: []string{`echo one >> ~/hooks; sleep 300`}})).ID
	run := l.get(id)
	l.eventually("the hook has begun", func() bool { return w.ran(run) == "one" })
	must(t, w.engine.Remove(t.Context(), "stromboli-"+l.get(id).SandboxID))
	run = l.wait(id)
	want(t, run, stromboli.Crashed, stromboli.ReasonLost)
	if w.ran(run) != "one" || w.starts(run) != 0 {
		t.Errorf("ran %q, %d agents", w.ran(run), w.starts(run))
	}
	l.empty()
}

// What a hook leaves running is there for the agent, and what it makes is there
// for the run's options.
func TestHookServesTheAgent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{})
	dir := stromboli.Lifecycle{PostStart: []string{`mkdir ~/made; (while :; do date +%s%N > ~/beat; sleep 0.02; done; echo >&2) & until [ -s ~/beat ]; do :; done`}}
	run := l.wait(l.submit(`a=$(cat ~/beat); for i in $(seq 200); do sleep 0.02; [ "$(cat ~/beat)" != "$a" ] && { result beats; break; }; done`, hooked(dir),
		func(s *stromboli.RunSpec) { s.Claude.AddDirs = []string{"/home/agent/made"} }).ID)
	want(t, run, stromboli.Completed, "")
	if run.Outcome.Output != "beats" {
		t.Errorf("output %q", run.Outcome.Output)
	}
	l.empty()
}
