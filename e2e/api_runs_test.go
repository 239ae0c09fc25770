package e2e_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/client"
	"github.com/tomblancdev/stromboli/internal/modelstub"
)

// TestAPIIdempotency: one key is one run, whoever asks, however, and across a
// restart of the server in mid-run.
func TestAPIIdempotency(t *testing.T) {
	s := start(t)
	gate := s.gate(t)
	in := specJSON(t, gate.spec(text("once")))
	key := "Idempotency-Key: first"
	first := s.send(t, "POST", "/run/async", in, key).want(t, 202)
	id := fmt.Sprint(first.object(t)["job_id"])
	s.sandboxOf(t, id)
	s.stop()
	s.up()
	if again := s.send(t, "POST", "/run/async", in, key).want(t, 202); string(again.body) != string(first.body) {
		t.Errorf("after a restart the same request is %s, not %s", again.body, first.body)
	}
	// The same body in another spelling.
	s.send(t, "POST", "/run/async", strings.Replace(in, "{", `{ "webhook_url":null,`, 1), key).want(t, 202)
	s.send(t, "POST", "/run/async", specJSON(t, spec(text("another"))), key).refused(t, 409, "idempotency_key_reuse", "")
	gate.open(t)
	if r := s.await(t, id); r.Output != "once" {
		t.Errorf("%s, output %q", r.Status, r.Output)
	}

	// Two at once wait for the same run; a stream attaches to its own.
	in, key = specJSON(t, spec(text("shared"))), "Idempotency-Key: second"
	var ids [2]string
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			a := s.send(t, "POST", "/run", in, key)
			ids[i] = fmt.Sprint(a.object(t)["id"])
		})
	}
	wg.Wait()
	if ids[0] != ids[1] || !strings.HasPrefix(ids[0], "run-") {
		t.Errorf("one key gave %v", ids)
	}
	a := sseBlocks(t, s.send(t, "POST", "/run/stream", in, key).want(t, 200).body)
	b := sseBlocks(t, s.send(t, "POST", "/run/stream", in, key).want(t, 200).body)
	if !slices.Equal(a, b) || a[0].id == ids[0]+"/0" { // another endpoint is another scope
		t.Errorf("the streams are %+v and %+v", a, b)
	}
	page, err := s.c.Jobs(s.ctx(), client.Filter{Kind: "all"})
	if err != nil || len(page.Jobs) != 3 {
		t.Errorf("%d runs were made, want 3; %v", len(page.Jobs), err)
	}
}

// TestAPICancelAndQueue: with one slot and a queue of one, runs are cancelled in
// each phase, a third is turned away, and a cancelled agent leaves no process.
func TestAPICancelAndQueue(t *testing.T) {
	s := start(t, "STROMBOLI_RUNS_MAX=1", "STROMBOLI_QUEUE_MAX=1", "STROMBOLI_AGENT_ALLOWED_VOLUMES=")
	mark := "cancel-" + filepath.Base(s.dir)
	var took []time.Duration
	cancel := func(t *testing.T, id string) {
		t.Helper()
		for range 2 { // repeated until the end it succeeds again
			a := s.send(t, "DELETE", "/jobs/"+id, "")
			if a.status == 409 { // it has ended in between
				return
			}
			if o := a.want(t, 200).object(t); o["job_id"] != id || o["cancelled"] != true {
				t.Errorf("the answer is %s", a.body)
			}
			took = append(took, a.took)
		}
	}
	ended := func(t *testing.T, id string) endedRun {
		t.Helper()
		r := s.await(t, id)
		r.want(t, stromboli.Cancelled, stromboli.ReasonRequest)
		s.send(t, "DELETE", "/jobs/"+id, "").refused(t, 409, "conflict", "")
		return r
	}

	// In a tool: a process group of its own that ignores signals, and one more
	// in a session of its own.
	busy := s.submit(t, spec(bash("setsid bash -c 'trap \"\" HUP INT TERM; "+strings.ReplaceAll(stayCommand(mark), "'", `"`)+"' & "+stayCommand(mark))))
	waitFor(t, "the agent's processes", func() bool { return processesLike(mark) >= 2 })

	waiting := s.submit(t, spec(text("never said")))
	if j, err := s.c.Job(s.ctx(), waiting); err != nil || j.Status != stromboli.Pending || j.Phase != stromboli.PhaseQueued {
		t.Errorf("%s %s, %v", j.Status, j.Phase, err)
	}
	a := s.send(t, "POST", "/run", specJSON(t, spec(text("too many"))))
	a.refused(t, 429, "queue_full", "")
	if a.header.Get("Retry-After") == "" {
		t.Error("429 without Retry-After")
	}

	t.Run("queued", func(t *testing.T) {
		cancel(t, waiting)
		if r := ended(t, waiting); r.count(stromboli.EventRunStarted) != 0 || !r.StartedAt.IsZero() {
			t.Error("a cancelled pending run was started")
		}
	})
	queued := s.submit(t, spec(text("next in line"))) // there is room again
	t.Run("in a tool", func(t *testing.T) {
		cancel(t, busy)
		r := ended(t, busy)
		if n := processesLike(mark); n != 0 {
			t.Errorf("%d processes of the agent are left", n)
		}
		if took := r.FinishedAt.Sub(r.StartedAt); took > time.Minute {
			t.Errorf("the run ended after %s", took)
		}
	})
	if r := s.await(t, queued); r.Output != "next in line" {
		t.Errorf("the queued run: %s %q", r.Status, r.Error)
	}
	t.Run("creating", func(t *testing.T) { cancelCreating(t, s, cancel) })
	t.Run("generating", func(t *testing.T) {
		step := text(strings.Repeat("on and on ", 1000))
		step.PaceMS = 100
		id := s.submit(t, keyed("cancel-generating", step))
		waitFor(t, "the model's request", func() bool { return len(s.stub.Requests("cancel-generating")) == 1 })
		cancel(t, id)
		begin := time.Now()
		ended(t, id)
		if d := time.Since(begin); d > 10*time.Second {
			t.Errorf("the end took %s", d)
		}
	})
	slices.Sort(took)
	t.Logf("DELETE took %v", took)
	if median := took[len(took)/2]; median > 100*time.Millisecond {
		t.Errorf("DELETE was answered within %s in the middle, want at most 100ms", median)
	}

	// Somebody who hangs up ends only what was to end with them.
	t.Run("disconnect", func(t *testing.T) { disconnect(t, s) })
	t.Run("volumes are denied", func(t *testing.T) {
		in := spec(text("no"))
		in.Podman.Volumes = []string{s.volumes + ":/repo"}
		s.send(t, "POST", "/run", specJSON(t, in)).refused(t, 400, "invalid_request", "podman.volumes[0]")
	})
	waitFor(t, "the sandboxes to be discarded", func() bool { return len(s.sandboxes()) == 0 })
}

// cancelCreating cancels runs at several moments of their sandbox's making. An
// engine goes on making a container that nobody waits for any more; none may
// be left behind.
func cancelCreating(t *testing.T, s *server, cancel func(*testing.T, string)) {
	made := map[string]bool{}
	for i := range 10 {
		id := s.submit(t, spec(text("hardly begun")))
		until := time.Now().Add(time.Duration(i) * 15 * time.Millisecond)
		waitFor(t, "a moment", func() bool { return time.Now().After(until) })
		for _, box := range s.sandboxes() {
			made["stromboli-"+box] = true
		}
		cancel(t, id)
		s.await(t, id).want(t, stromboli.Cancelled, stromboli.ReasonRequest)
	}
	waitFor(t, "the sandboxes to be discarded", func() bool { return len(s.sandboxes()) == 0 })
	containers, err := suite.engine.List(s.ctx(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range containers {
		if made[c.Name] {
			t.Errorf("the container %s is left, %s", c.Name, c.State)
		}
	}
}

func disconnect(t *testing.T, s *server) {
	for _, c := range []struct {
		on     stromboli.OnDisconnect
		status stromboli.Status
		reason stromboli.Reason
	}{
		{stromboli.OnDisconnectCancel, stromboli.Cancelled, stromboli.ReasonDisconnect},
		{stromboli.OnDisconnectContinue, stromboli.Completed, ""},
	} {
		key := "disconnect-" + string(c.on)
		answer := text("finished alone")
		if c.on == stromboli.OnDisconnectCancel {
			answer.Hang = "before"
		}
		in := keyed(key, bash("true"), answer)
		in.OnDisconnect, in.Metadata = c.on, map[string]string{"case": key}
		ctx, hangUp := context.WithCancel(s.ctx())
		done := make(chan error, 1)
		go func() {
			_, err := s.c.Run(ctx, in)
			done <- err
		}()
		waitFor(t, "the model's request", func() bool { return len(s.stub.Requests(key)) > 0 })
		hangUp()
		if err := <-done; err == nil {
			t.Fatal("the run ended before its caller left")
		}
		page, err := s.c.Jobs(s.ctx(), client.Filter{Kind: "all", Metadata: in.Metadata})
		if err != nil || len(page.Jobs) != 1 {
			t.Fatalf("%+v, %v", page, err)
		}
		s.await(t, page.Jobs[0].ID).want(t, c.status, c.reason)
	}
}

// gate holds agents in a tool until it is opened.
type gate struct{ path string }

// gate makes one; its agents have the directory /gate, and work there.
func (s *server) gate(t *testing.T) gate {
	t.Helper()
	owner := os.Geteuid()
	if owner == 0 {
		owner = 1000
	}
	return gate{s.volume("gate", owner)}
}

// hold is a command that ends when the gate is open.
func (g gate) hold() string { return "until [ -e /gate/open ]; do sleep 0.05; done" }

// spec is a run that waits at the gate and then plays the step.
func (g gate) spec(last modelstub.Step) stromboli.RunSpec {
	return g.mounted(spec(bash(g.hold()), last))
}

func (g gate) mounted(in stromboli.RunSpec) stromboli.RunSpec {
	in.Workdir, in.Podman.Volumes = "/gate", []string{g.path + ":/gate"}
	return in
}

func (g gate) open(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(g.path, "open"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
}
