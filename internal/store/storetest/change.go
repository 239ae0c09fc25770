package storetest

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/store"
)

func ptr[T any](v T) *T { return &v }

func testUpdate(t *testing.T, f *fixture) {
	run := f.running(t)
	f.clock.add(time.Second)
	evs, err := f.UpdateRun(t.Context(), run.ID, 1, stromboli.RunUpdate{
		Phase: ptr(stromboli.PhaseStarting), SandboxID: ptr("sb"), AgentStarted: ptr(true), ImageDigest: ptr("sha256:1"),
		Warnings: []stromboli.Warning{{Code: "a"}},
		Events:   []stromboli.Event{event(stromboli.EventPhase, `{"phase":"starting"}`)},
	})
	if err != nil || len(evs) != 1 || evs[0].Seq != 2 {
		t.Fatalf("events %v, %v", evs, err)
	}
	want := run
	want.Phase, want.SandboxID, want.AgentStarted, want.ImageDigest = stromboli.PhaseStarting, "sb", true, "sha256:1"
	want.Warnings, want.UpdatedAt, want.LastSeq = []stromboli.Warning{{Code: "a"}}, f.clock.Now(), 2
	if d := cmp.Diff(want, f.get(t, run.ID)); d != "" {
		t.Errorf("updated (-want +got):\n%s", d)
	}
	_, err = f.UpdateRun(t.Context(), run.ID, 1, stromboli.RunUpdate{Warnings: []stromboli.Warning{{Code: "b"}}})
	want.Warnings = append(want.Warnings, stromboli.Warning{Code: "b"})
	if d := cmp.Diff(want, f.get(t, run.ID)); d != "" || err != nil {
		t.Errorf("only warnings, %v (-want +got):\n%s", err, d)
	}
	_, err = f.UpdateRun(t.Context(), "run-missing", 1, stromboli.RunUpdate{})
	wantErr(t, "missing", err, stromboli.NotFound)
	f.finish(t, run, stromboli.Failed)
	_, err = f.UpdateRun(t.Context(), run.ID, 1, stromboli.RunUpdate{Phase: ptr(stromboli.PhaseCreating)})
	wantErr(t, "after the end", err, stromboli.Conflict)
	_, err = f.AppendEvents(t.Context(), run.ID, 1, []stromboli.Event{event("late", `{}`)})
	wantErr(t, "append after the end", err, stromboli.Conflict)
}

func testCancelPending(t *testing.T, f *fixture) {
	run := f.create(t, f.newRun(stromboli.KindAsync))
	_, err := f.RequestCancel(t.Context(), stromboli.CancelRequest{Tenant: "other", RunID: run.ID, Reason: stromboli.ReasonRequest})
	wantErr(t, "another tenant", err, stromboli.NotFound)
	got, err := f.RequestCancel(t.Context(), stromboli.CancelRequest{Tenant: run.Tenant, RunID: run.ID, Reason: stromboli.ReasonRequest})
	if err != nil || got.Status != stromboli.Cancelled || got.Outcome.Reason != stromboli.ReasonRequest || got.Phase != "" ||
		got.FinishedAt.IsZero() || got.Outcome.SessionID != run.SessionID {
		t.Fatalf("cancelled: %+v, %v", got, err)
	}
	evs := f.log(t, run.ID)
	last := evs[len(evs)-1]
	var outcome stromboli.Outcome
	if err := json.Unmarshal(last.Data, &outcome); err != nil || last.Type != stromboli.EventRunFinished || outcome.Status != stromboli.Cancelled {
		t.Errorf("last event %+v, %v", last, err)
	}
	if s, _ := f.GetSession(t.Context(), run.Tenant, run.SessionID); s.ActiveRun != "" {
		t.Error("the session is not free")
	}
	if _, ok, _ := f.ClaimPending(t.Context(), "one"); ok {
		t.Error("a cancelled run was claimed")
	}
	_, err = f.RequestCancel(t.Context(), stromboli.CancelRequest{Tenant: run.Tenant, RunID: run.ID, Reason: stromboli.ReasonRequest})
	wantErr(t, "cancel again", err, stromboli.Conflict)
}

func testCancelRunning(t *testing.T, f *fixture) {
	run := f.running(t)
	wish := stromboli.CancelRequest{Tenant: run.Tenant, RunID: run.ID, Reason: stromboli.ReasonRequest}
	got, err := f.RequestCancel(t.Context(), wish)
	if err != nil || got.Status != stromboli.Running || got.CancelReason != stromboli.ReasonRequest || got.Phase != stromboli.PhaseCancelling {
		t.Fatalf("cancel: %+v, %v", got, err)
	}
	wish.Reason = stromboli.ReasonDisconnect
	again, err := f.RequestCancel(t.Context(), wish)
	if d := cmp.Diff(got, again); d != "" || err != nil {
		t.Errorf("repeated, %v (-first +second):\n%s", err, d)
	}
	evs := f.log(t, run.ID)
	if len(evs) != 2 || evs[1].Type != stromboli.EventPhase || string(evs[1].Data) != `{"phase":"cancelling"}` {
		t.Errorf("events %+v", evs)
	}
	// What the executor does without knowing of the wish.
	_, err = f.UpdateRun(t.Context(), run.ID, 1, stromboli.RunUpdate{
		Phase:  ptr(stromboli.PhaseGenerating),
		Events: []stromboli.Event{event(stromboli.EventPhase, `{"phase":"generating"}`), event("x", `{}`)},
	})
	got = f.get(t, run.ID)
	if err != nil || got.Phase != stromboli.PhaseCancelling || got.CancelReason == "" || got.LastSeq != 3 {
		t.Errorf("update: %+v, %v", got, err)
	}
	_, err = f.FinishRun(t.Context(), run.ID, 1, ended(stromboli.Completed))
	wantErr(t, "completed in spite of the wish", err, store.ErrCancelWanted)
	if got := f.finish(t, run, stromboli.Cancelled); got.Status != stromboli.Cancelled {
		t.Errorf("finished %+v", got)
	}
	_, err = f.RequestCancel(t.Context(), wish)
	wantErr(t, "cancel what has ended", err, stromboli.Conflict)
	wish.RunID = "run-missing"
	_, err = f.RequestCancel(t.Context(), wish)
	wantErr(t, "cancel nothing", err, stromboli.NotFound)
}

func testFinish(t *testing.T, f *fixture) {
	run := f.running(t)
	f.clock.add(time.Minute)
	outcome := stromboli.Outcome{
		Status: stromboli.Crashed, Reason: stromboli.ReasonOOM, Error: "e", Output: "o", StructuredOutput: json.RawMessage(`{"a":1}`),
		CrashInfo: &stromboli.CrashInfo{ExitCode: 137, Signal: "SIGKILL"}, Usage: &stromboli.Usage{InputTokens: 5},
		Warnings: []stromboli.Warning{{Code: "w"}},
	}
	evs, err := f.FinishRun(t.Context(), run.ID, 1, stromboli.RunFinish{
		Outcome: outcome, Events: []stromboli.Event{line(1, 0, `{}`)},
		Session: stromboli.SessionSave{TranscriptKey: "t1", ExpectVersion: 0, CLISessionID: "cli", UID: 7, GID: 8},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := run
	want.Status, want.Phase, want.FinishedAt, want.UpdatedAt = stromboli.Crashed, "", f.clock.Now(), f.clock.Now()
	want.LastSeq, want.LastLine, want.Outcome = 3, 1, outcome
	want.Outcome.SessionID = run.SessionID
	if d := cmp.Diff(want, f.get(t, run.ID)); d != "" {
		t.Errorf("finished (-want +got):\n%s", d)
	}
	if d := cmp.Diff(f.log(t, run.ID)[1:], evs); d != "" {
		t.Errorf("what was returned is not what is stored (-stored +returned):\n%s", d)
	}
	var told stromboli.Outcome
	last := evs[len(evs)-1]
	if err := json.Unmarshal(last.Data, &told); err != nil || last.Type != stromboli.EventRunFinished {
		t.Errorf("last event %+v, %v", last, err)
	}
	if d := cmp.Diff(want.Outcome, told); d != "" {
		t.Errorf("run.finished tells of another outcome (-want +got):\n%s", d)
	}
	if _, ended, err := f.LastEvent(t.Context(), run.ID); !ended || err != nil {
		t.Errorf("ended %v, %v", ended, err)
	}
	s, err := f.GetSession(t.Context(), run.Tenant, run.SessionID)
	wantSession := stromboli.Session{
		ID: run.SessionID, Tenant: run.Tenant, CreatedBy: "test", CLISessionID: "cli", TranscriptVersion: 1, TranscriptKey: "t1",
		RunCount: 1, UID: 7, GID: 8, CreatedAt: run.CreatedAt, UpdatedAt: f.clock.Now(),
	}
	if d := cmp.Diff(wantSession, s); d != "" || err != nil {
		t.Errorf("session, %v (-want +got):\n%s", err, d)
	}
	if active, err := f.ActiveRuns(t.Context()); err != nil || len(active) != 0 {
		t.Errorf("active %v, %v", active, err)
	}
	pending := f.create(t, f.newRun(stromboli.KindAsync))
	f.finish(t, pending, stromboli.Failed) // could not be executed
}

func testFinishRefused(t *testing.T, f *fixture) {
	run := f.running(t)
	finish := func(fin stromboli.RunFinish) error {
		_, err := f.FinishRun(t.Context(), run.ID, 1, fin)
		return err
	}
	done, stale := ended(stromboli.Completed), ended(stromboli.Completed)
	stale.Session = stromboli.SessionSave{TranscriptKey: "x", ExpectVersion: 3}
	wantErr(t, "not terminal", finish(ended(stromboli.Running)), stromboli.Conflict)
	wantErr(t, "stale transcript", finish(stale), store.ErrStale)
	if now := f.get(t, run.ID); now.Status != stromboli.Running || now.LastSeq != 1 {
		t.Errorf("a refused finish left %+v", now)
	}
	if s, _ := f.GetSession(t.Context(), run.Tenant, run.SessionID); s.ActiveRun != run.ID || s.TranscriptVersion != 0 {
		t.Errorf("a refused finish left the session %+v", s)
	}
	if err := finish(done); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "twice", finish(done), stromboli.Conflict)
	pending := f.create(t, f.newRun(stromboli.KindAsync))
	_, err := f.FinishRun(t.Context(), pending.ID, 0, done)
	wantErr(t, "pending to completed", err, stromboli.Conflict)
}

func testTranscript(t *testing.T, f *fixture) {
	run := f.running(t)
	if err := f.SaveTranscript(t.Context(), run.SessionID, 0, "k1"); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "old version", f.SaveTranscript(t.Context(), run.SessionID, 0, "k2"), store.ErrStale)
	if err := f.SaveTranscript(t.Context(), run.SessionID, 1, "k3"); err != nil {
		t.Fatal(err)
	}
	s, err := f.GetSession(t.Context(), run.Tenant, run.SessionID)
	if err != nil || s.TranscriptVersion != 2 || s.TranscriptKey != "k3" {
		t.Errorf("session %+v, %v", s, err)
	}
	wantErr(t, "missing", f.SaveTranscript(t.Context(), "nobody", 0, "k"), stromboli.NotFound)
}
