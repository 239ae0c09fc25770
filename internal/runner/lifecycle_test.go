package runner_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/tomblancdev/stromboli"
)

// expected is what the model knows of a run.
type expected struct {
	run       stromboli.Run
	output    string // of an agent that ends by itself; empty: it waits
	cancelled bool   // a cancel was answered with success
	ended     bool   // it was waited for
}

// lifecycle is a small model of the runner, beside the runner.
type lifecycle struct {
	w    *world
	name string
	l    *life
	o    options
	runs []*expected
	keys map[string]*expected
}

func (m *lifecycle) submit(t *rapid.T) {
	e := &expected{}
	script := `read -r x; exit`
	if rapid.Bool().Draw(t, "ends by itself") {
		e.output = fmt.Sprintf("r%d", len(m.runs))
		script = "say working; result " + e.output
	}
	s := submission(script)
	key := rapid.SampledFrom([]string{"", "", "a", "b"}).Draw(t, "key")
	s.Idempotency = stromboli.Idempotency{Tenant: "default", Endpoint: m.name, Key: key, Hash: "h"}
	if len(m.runs) > 0 && rapid.IntRange(0, 2).Draw(t, "resume") == 0 {
		resume(rapid.SampledFrom(m.runs).Draw(t, "session").run.SessionID)(&s.Spec)
	}
	run, existing, err := m.l.Runner.Submit(context.Background(), me(), s)
	first := m.keys[key]
	switch {
	case err == nil && existing != (first != nil):
		t.Fatalf("existing %v, key %q", existing, key)
	case err == nil && existing:
		if run.ID != first.run.ID {
			t.Fatalf("key %q gave %s, first %s", key, run.ID, first.run.ID)
		}
	case err == nil:
		e.run = run
		m.runs = append(m.runs, e)
		if key != "" {
			m.keys[key] = e
		}
	case errors.Is(err, stromboli.SessionBusy):
		for _, other := range m.runs {
			if other.run.SessionID == s.Spec.Claude.SessionID && !other.ended {
				return
			}
		}
		t.Fatalf("nobody uses the session: %v", err)
	default:
		t.Fatal(err)
	}
}

func (m *lifecycle) cancel(t *rapid.T) {
	if len(m.runs) == 0 {
		return
	}
	e := rapid.SampledFrom(m.runs).Draw(t, "run")
	_, err := m.l.Cancel(context.Background(), me(), e.run.ID, stromboli.ReasonRequest)
	switch {
	case err == nil && e.ended:
		t.Fatalf("%s was cancelled after its end", e.run.ID)
	case err == nil:
		e.cancelled = true
	case !errors.Is(err, stromboli.Conflict):
		t.Fatal(err)
	}
}

func (m *lifecycle) restart(*rapid.T) {
	m.l.stop()
	m.l = m.w.start(m.o)
}

func (m *lifecycle) wait(t *rapid.T) {
	for _, e := range m.runs {
		if !e.ended && (e.output != "" || e.cancelled) && m.turn(e) {
			m.end(t, e)
			return
		}
	}
}

// turn reports whether a run's end depends on no run that waits for ever.
func (m *lifecycle) turn(e *expected) bool {
	blocked := 0
	for _, other := range m.runs {
		if other == e {
			return e.cancelled || blocked < m.o.max
		}
		if !other.ended && other.output == "" && !other.cancelled {
			blocked++
		}
	}
	return false
}

// end waits for a run's end and compares it with the model.
func (m *lifecycle) end(t *rapid.T, e *expected) {
	run := m.l.wait(e.run.ID)
	e.ended = true
	switch {
	case e.cancelled && run.Status != stromboli.Cancelled:
		t.Fatalf("%s was cancelled and ended as %s", run.ID, run.Status)
	case !e.cancelled && (run.Status != stromboli.Completed || run.Outcome.Output != e.output):
		t.Fatalf("%s ended as %s (%s), output %q: %s", run.ID, run.Status, run.Outcome.Reason, run.Outcome.Output, run.Outcome.Error)
	}
}

// check looks at everything at the end: each run ended as the model says and
// stays so, and no session saw more starts than it had runs.
func (m *lifecycle) check(t *rapid.T) {
	for _, e := range m.runs {
		if !e.ended && e.output == "" && !e.cancelled {
			_, err := m.l.Cancel(context.Background(), me(), e.run.ID, stromboli.ReasonRequest)
			e.cancelled = err == nil
		}
	}
	most := make(map[string]int)
	for _, e := range m.runs {
		if !e.ended {
			m.end(t, e)
		}
		most[e.run.SessionID]++
	}
	m.l.empty()
	m.restart(t)
	for _, e := range m.runs {
		before := m.l.get(e.run.ID)
		if again := m.l.wait(e.run.ID); again.LastSeq != before.LastSeq || again.Status != before.Status {
			t.Fatalf("%s changed after its end", e.run.ID)
		}
		if n := m.w.starts(e.run); n > most[e.run.SessionID] {
			t.Fatalf("the session of %s saw %d starts of %d runs", e.run.ID, n, most[e.run.SessionID])
		}
	}
	m.l.stop()
}

// Whatever callers do and however often the server restarts: an agent starts at
// most once, an answered cancel holds, an end is final, sequences have no gaps,
// sessions become free.
func TestLifecycle(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if checks := flag.Lookup("rapid.checks"); checks.Value.String() == checks.DefValue {
		must(t, checks.Value.Set("6")) // each takes seconds
		must(t, flag.Set("rapid.shrinktime", "20s"))
	}
	rapid.Check(t, func(t *rapid.T) {
		m := &lifecycle{w: w, name: uuid.NewString(), o: options{max: rapid.IntRange(1, 3).Draw(t, "slots")}, keys: make(map[string]*expected)}
		m.l = w.start(m.o)
		defer func() { m.l.stop() }()
		steps := map[string]func(*rapid.T){"submit": m.submit, "cancel": m.cancel, "restart": m.restart, "wait": m.wait}
		for range rapid.IntRange(3, 12).Draw(t, "steps") {
			steps[rapid.SampledFrom([]string{"submit", "submit", "submit", "cancel", "restart", "wait"}).Draw(t, "step")](t)
		}
		m.check(t)
	})
}
