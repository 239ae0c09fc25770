package runner_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/shim"
)

func timeout(d time.Duration) func(*stromboli.RunSpec) {
	return func(s *stromboli.RunSpec) { s.Claude.Timeout = stromboli.Duration(d) }
}

func resume(session string) func(*stromboli.RunSpec) {
	return func(s *stromboli.RunSpec) { s.Claude.SessionID, s.Claude.Resume = session, true }
}

func TestOutcomes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{background: 200 * time.Millisecond})
	t.Cleanup(l.empty)
	for name, c := range map[string]struct {
		script string
		change func(*stromboli.RunSpec)
		status stromboli.Status
		reason stromboli.Reason
		output string
	}{
		"completed":      {script: `result hello`, status: stromboli.Completed, output: "hello"},
		"exit":           {script: `exit 7`, status: stromboli.Crashed, reason: stromboli.ReasonExit},
		"signal":         {script: `kill -SEGV $$`, status: stromboli.Crashed, reason: stromboli.ReasonSignal},
		"timeout":        {script: `sleep 60`, change: timeout(300 * time.Millisecond), status: stromboli.Failed, reason: stromboli.ReasonTimeout},
		"stubborn":       {script: `trap "" TERM; while :; do read -t 1 -r x </dev/zero; done`, change: timeout(300 * time.Millisecond), status: stromboli.Failed, reason: stromboli.ReasonTimeout},
		"child left":     {script: `sleep 300 & result done`, status: stromboli.Completed, output: "done"},
		"background":     {script: `say '{"type":"system","subtype":"background_tasks_changed","tasks":[{"task_id":"b1","task_type":"shell"}]}'; result early`, status: stromboli.Completed, output: "early"},
		"missing image":  {script: `result x`, change: func(s *stromboli.RunSpec) { s.Podman.Image = "not/there" }},
		"invalid option": {script: `result x`, change: func(s *stromboli.RunSpec) { s.Claude.Model = "--evil" }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			change := c.change
			if change == nil {
				change = func(*stromboli.RunSpec) {}
			}
			s, err := l.Submit(t.Context(), me(), submission(c.script, change))
			if c.status == "" {
				if err == nil {
					t.Errorf("submitted as %s", s.ID)
				}
				return
			}
			must(t, err)
			run := l.wait(s.ID)
			want(t, run, c.status, c.reason)
			if c.output != "" && run.Outcome.Output != c.output {
				t.Errorf("output %q", run.Outcome.Output)
			}
			if run.Status == stromboli.Crashed && run.Outcome.CrashInfo == nil {
				t.Error("no crash_info")
			}
			if w.starts(run) != 1 {
				t.Errorf("%d starts", w.starts(run))
			}
			if name == "background" && !strings.Contains(l.types(run.ID), "background_ended") {
				t.Errorf("events: %s", l.types(run.ID))
			}
		})
	}
}

// An agent that reads nothing ends as what its exit says.
func TestAgentThatReadsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	must(t, os.WriteFile(filepath.Join(w.cli, "claude"), []byte("#!/bin/bash\necho broken >&2\nexit 9\n"), 0o755))
	l := w.start(options{})
	run := l.wait(l.submit(strings.Repeat("#", 1<<20)).ID)
	want(t, run, stromboli.Crashed, stromboli.ReasonExit)
	if run.Outcome.CrashInfo.ExitCode != 9 || !strings.Contains(run.Outcome.Error, "broken") {
		t.Errorf("outcome %+v", run.Outcome)
	}

	must(t, os.Remove(filepath.Join(w.cli, "claude")))
	run = l.wait(l.submit("").ID)
	want(t, run, stromboli.Failed, stromboli.ReasonImage)
	l.empty()
}

// types joins the types of a run's events, and the phases.
func (l *life) types(id string) string {
	l.w.t.Helper()
	events, err := l.store.Events(context.Background(), id, 0, 1000)
	must(l.w.t, err)
	var names []string
	for _, ev := range events {
		name := string(ev.Type)
		var d stromboli.PhaseData
		if ev.Type == stromboli.EventPhase && json.Unmarshal(ev.Data, &d) == nil {
			name = string(d.Phase)
		}
		names = append(names, name)
	}
	return strings.Join(names, " ")
}

// A run that becomes pending while a slot is given away is not forgotten.
func TestSubmitWhileClaiming(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := &faults{}
	l := w.start(options{max: 1, faults: f})
	first := l.submit(`read -r x; exit`)
	l.until(first.ID, stromboli.PhaseGenerating)
	claimed := make(chan struct{}, 10)
	f.mu.Lock()
	f.after = func(op string) {
		if op == "claim" {
			claimed <- struct{}{}
		}
	}
	f.create = func(stromboli.NewRun) {
		l.cancel(first.ID)
		<-claimed // and found nothing, for the row isn't there yet
	}
	f.mu.Unlock()
	second := l.submit(`result after`)
	if second.Status != stromboli.Pending {
		t.Fatalf("status %s", second.Status)
	}
	want(t, l.wait(second.ID), stromboli.Completed, "")
}

func TestQueue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{max: 1, queue: 3})
	blocker := l.submit(`read -r x; exit`)
	var ids []string
	for i := range 3 {
		ids = append(ids, l.submit(fmt.Sprintf("result r%d", i)).ID)
	}
	if _, err := l.Submit(t.Context(), me(), submission("result x")); !errors.Is(err, stromboli.QueueFull) {
		t.Errorf("a queue that is full: %v", err)
	}
	l.until(blocker.ID, stromboli.PhaseGenerating)
	l.cancel(blocker.ID)
	var last time.Time
	for i, id := range ids {
		run := l.wait(id)
		want(t, run, stromboli.Completed, "")
		if run.StartedAt.Before(last) {
			t.Errorf("run %d started before the one before it", i)
		}
		last = run.StartedAt
	}
	l.eventually("the slot is free", func() bool { return l.Drain(expired(t)) == nil })
}

// expired is a context that ends very soon.
func expired(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func TestIdempotency(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{max: 1})
	s := submission(`read -r x; exit`)
	s.Idempotency = stromboli.Idempotency{Tenant: "default", Endpoint: "e", Key: "k", Hash: "h"}
	first, err := l.Submit(t.Context(), me(), s)
	must(t, err)
	for range 3 { // the first has the only slot: these are reserved as pending
		again, existing, err := l.Runner.Submit(t.Context(), me(), s)
		if err != nil || !existing || again.ID != first.ID {
			t.Errorf("again: %s, %v, %v", again.ID, existing, err)
		}
	}
	s.Idempotency.Hash = "other"
	if _, err := l.Submit(t.Context(), me(), s); !errors.Is(err, stromboli.KeyReused) {
		t.Errorf("another body: %v", err)
	}
	l.until(first.ID, stromboli.PhaseGenerating)
	l.cancel(first.ID)
	want(t, l.wait(first.ID), stromboli.Cancelled, stromboli.ReasonRequest)
	l.empty()
	s.Idempotency.Hash = "h"
	again, existing, err := l.Runner.Submit(t.Context(), me(), s)
	if err != nil || !existing || again.Status != stromboli.Cancelled {
		t.Errorf("after the end: %s, %v, %v", again.Status, existing, err)
	}
	l.needsNoQueue()
}

func TestSessions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{max: 1})
	first := l.wait(l.submit(`result one`).ID)
	second := l.submit(`read -r x; exit`, resume(first.SessionID))
	if _, err := l.Submit(t.Context(), me(), submission(`result x`, resume(first.SessionID))); !errors.Is(err, stromboli.SessionBusy) {
		t.Errorf("a busy session: %v", err)
	}
	l.until(second.ID, stromboli.PhaseGenerating)
	l.cancel(second.ID)
	l.wait(second.ID)
	// Only what was saved counts: the home's copy is the agent's.
	home := filepath.Join(w.data, "sessions", first.SessionID, "home", ".claude", "projects")
	must(t, os.RemoveAll(home))
	third := l.wait(l.submit(`result "$(wc -l < "$log")"`, resume(first.SessionID)).ID)
	want(t, third, stromboli.Completed, "")
	if third.Outcome.Output != "3" || w.starts(third) != 3 {
		t.Errorf("output %q, %d starts", third.Outcome.Output, w.starts(third))
	}
	session, err := l.store.GetSession(t.Context(), "default", first.SessionID)
	must(t, err)
	if session.TranscriptVersion != 3 || session.UID != imageID {
		t.Errorf("session %+v", session)
	}
	l.eventually("only the newest transcript is kept", func() bool {
		blobs, _ := filepath.Glob(filepath.Join(w.data, "blobs", "*", first.SessionID, "*"))
		return len(blobs) == 1
	})
	if _, err := l.Submit(t.Context(), me(), submission(`result x`, func(s *stromboli.RunSpec) { s.Claude.SessionID = first.SessionID })); !errors.Is(err, stromboli.SessionExists) {
		t.Errorf("a session that exists: %v", err)
	}

	// A session whose first run never spoke can be gone on with.
	blocker := l.submit(`read -r x; exit`)
	never := l.submit(`result never`)
	l.cancel(never.ID)
	l.until(blocker.ID, stromboli.PhaseGenerating)
	l.cancel(blocker.ID)
	run := l.wait(l.submit(`result $how`, resume(never.SessionID)).ID)
	if want(t, run, stromboli.Completed, ""); run.Outcome.Output != "new" {
		t.Errorf("output %q", run.Outcome.Output)
	}
}

// What can't be started leaves nothing behind and nobody waiting.
func TestStartFailures(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"Create", "Start"} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			l := w.start(options{max: 1})
			l.wait(l.submit(`result warm`).ID) // the image is known now
			w.breakEngine(method)
			first := l.submit(`result x`)
			second := l.submit(`result y`)
			want(t, l.wait(first.ID), stromboli.Failed, stromboli.ReasonEngine)
			want(t, l.wait(second.ID), stromboli.Failed, stromboli.ReasonEngine)
			w.mendEngine()
			l.empty()
			want(t, l.wait(l.submit(`result x`, resume(first.SessionID)).ID), stromboli.Completed, "")
		})
	}
}

func TestSubmitChecks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{})
	w.unready.Store(true)
	if _, err := l.Submit(t.Context(), me(), submission("x")); !errors.Is(err, stromboli.NotConfigured) {
		t.Errorf("without a credential: %v", err)
	}
	w.unready.Store(false)
	w.breakEngine("")
	if _, err := l.Submit(t.Context(), me(), submission("x")); !errors.Is(err, stromboli.EngineDown) {
		t.Errorf("without an engine: %v", err)
	}
	w.mendEngine()
	for _, prompt := range []string{strings.Repeat("x", shim.MaxStdin), strings.Repeat("\x01", shim.MaxStdin/5)} {
		long := submission("x")
		long.Spec.Prompt = prompt
		if _, err := l.Submit(t.Context(), me(), long); !errors.Is(err, stromboli.Invalid) {
			t.Errorf("a prompt that is too long as a message: %v", err)
		}
	}
	long := submission("x")
	long.Spec.Content = []stromboli.ContentBlock{{Type: "text", Text: strings.Repeat("x", shim.MaxStdin)}}
	if _, err := l.Submit(t.Context(), me(), long); !errors.Is(err, stromboli.Invalid) || !strings.Contains(err.Error(), "content: ") {
		t.Errorf("content that is too long as a message: %v", err)
	}
	for _, kind := range []stromboli.Kind{stromboli.KindSync, stromboli.KindStream} {
		told := submission("x", func(s *stromboli.RunSpec) { s.WebhookURL = "https://hooks.example.com/" })
		told.Kind = kind
		if _, err := l.Submit(t.Context(), me(), told); !errors.Is(err, stromboli.Invalid) || !strings.Contains(err.Error(), "webhook_url: ") {
			t.Errorf("a webhook for a %s run: %v", kind, err)
		}
	}
	if runs, _, err := l.List(t.Context(), me(), stromboli.RunFilter{}); err != nil || len(runs) > 0 {
		t.Errorf("%d runs, %v", len(runs), err)
	}
	if err := l.Drain(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := l.Submit(t.Context(), me(), submission("x")); !errors.Is(err, stromboli.Draining) {
		t.Errorf("while draining: %v", err)
	}
}

func TestStopLeavesNoGoroutine(t *testing.T) {
	w := newWorld(t)
	before := goleak.IgnoreCurrent()
	l := w.start(options{max: 2})
	l.wait(l.submit(`result x`).ID)
	run := l.submit(`say here; sleep 60`)
	l.said(run.ID, "here")
	l.submit(`result making`)
	l.stop()
	w.engine.Close()
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
}
