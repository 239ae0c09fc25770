package storetest

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/tomblancdev/stromboli"
)

// named is a run in the session of an alias, which is made if there is none.
func (f *fixture) named(alias string) stromboli.NewRun {
	in := f.newRun(stromboli.KindAsync)
	in.SessionAlias = alias
	return in
}

func (f *fixture) session(t *testing.T, name string) stromboli.Session {
	t.Helper()
	s, err := f.GetSession(t.Context(), stromboli.DefaultTenant, name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// done ends a run that was pending, with a transcript.
func (f *fixture) done(t *testing.T, run stromboli.Run) {
	t.Helper()
	claimed, ok, err := f.ClaimPending(t.Context(), "one")
	if err != nil || !ok || claimed.ID != run.ID {
		t.Fatalf("claimed %s, %v, %v; want %s", claimed.ID, ok, err, run.ID)
	}
	s := f.session(t, run.SessionID)
	end := ended(stromboli.Completed)
	end.Session = stromboli.SessionSave{TranscriptKey: "key-" + run.ID, ExpectVersion: s.TranscriptVersion}
	if _, err := f.FinishRun(t.Context(), run.ID, claimed.Epoch, end); err != nil {
		t.Fatal(err)
	}
}

func testAliases(t *testing.T, f *fixture) {
	first := f.create(t, f.named("nightly"))
	if first.SessionAlias != "nightly" || f.get(t, first.ID).SessionAlias != "nightly" || f.session(t, "nightly").ID != first.SessionID {
		t.Errorf("run %+v", first)
	}
	resume := f.named("nightly")
	resume.Run.SessionID, resume.CreateSession, resume.Resume = "", nil, true
	_, _, err := f.CreateRun(t.Context(), resume)
	wantErr(t, "resume busy", err, stromboli.SessionBusy)
	_, _, err = f.CreateRun(t.Context(), f.named("nightly"))
	wantErr(t, "create what exists", err, stromboli.SessionExists)
	f.done(t, first)

	again := f.create(t, resume)
	if again.SessionID != first.SessionID || again.SessionAlias != "nightly" || !again.Spec.Claude.Resume {
		t.Errorf("resumed by alias: %+v", again)
	}
	f.done(t, again)
	byID := f.newRun(stromboli.KindAsync)
	byID.Run.SessionID, byID.ResumeSession, byID.CreateSession = first.SessionID, first.SessionID, nil
	if run := f.create(t, byID); run.SessionAlias != "nightly" {
		t.Errorf("resumed by id the alias is %q", run.SessionAlias)
	}

	// Case counts, and every tenant has aliases of its own.
	if run := f.create(t, f.named("Nightly")); run.SessionID == first.SessionID {
		t.Error("the case of an alias makes no difference")
	}
	repeated := f.named("once")
	repeated.Idempotency = &stromboli.Idempotency{Endpoint: "e", Key: "k", Hash: "h"}
	made := f.create(t, repeated)
	repeated.Run.ID, repeated.Run.SessionID = stromboli.NewRunID(f.clock.Now()), uuid.NewString()
	if run, existing, err := f.CreateRun(t.Context(), repeated); err != nil || !existing || run.ID != made.ID || run.SessionAlias != "once" {
		t.Errorf("repeated: %+v, %v, %v", run, existing, err)
	}
	theirs := f.named("nightly")
	theirs.Run.Tenant = "other"
	if run := f.create(t, theirs); run.SessionID == first.SessionID {
		t.Error("two tenants share an alias")
	}
	missing := resume
	missing.SessionAlias = "never"
	_, _, err = f.CreateRun(t.Context(), missing)
	wantErr(t, "resume missing", err, stromboli.NotFound)
	_, err = f.GetSession(t.Context(), "other", first.SessionID)
	wantErr(t, "another tenant's", err, stromboli.NotFound)
}

// testAliasRace: of many who open one alias at once, one gets it and the
// others learn that it is busy.
func testAliasRace(t *testing.T, f *fixture) {
	var won, busy atomic.Int32
	var wg sync.WaitGroup
	for range 20 {
		in := f.named("shared")
		in.Resume = true
		wg.Go(func() {
			switch _, _, err := f.CreateRun(t.Context(), in); {
			case err == nil:
				won.Add(1)
			case errors.Is(err, stromboli.SessionBusy):
				busy.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 || busy.Load() != 19 {
		t.Errorf("%d have it, %d are told that it is busy", won.Load(), busy.Load())
	}
}

func testContinue(t *testing.T, f *fixture) {
	at := func(workspace string) stromboli.Run {
		in := f.newRun(stromboli.KindAsync)
		in.Workspace = workspace
		return f.create(t, in)
	}
	next := func(workspace string) stromboli.NewRun {
		in := f.newRun(stromboli.KindAsync)
		in.Run.SessionID, in.CreateSession = "", nil
		in.Continue, in.Workspace = workspace, workspace
		return in
	}
	_, _, err := f.CreateRun(t.Context(), next("a"))
	wantErr(t, "nothing there", err, stromboli.NotFound)

	old, newer, elsewhere := at("a"), at("a"), at("b")
	for _, run := range []stromboli.Run{old, newer, elsewhere} {
		f.done(t, run)
	}
	f.clock.add(-1000) // a clock that was set back changes nothing
	mute := at("a")
	f.finish(t, func() stromboli.Run { r, _, _ := f.ClaimPending(t.Context(), "one"); return r }(), stromboli.Failed)
	if mute.SessionID == newer.SessionID {
		t.Fatal("two runs share a session")
	}
	in := next("a")
	in.FirstEvents = func(run stromboli.Run) []stromboli.Event {
		return []stromboli.Event{event(stromboli.EventRunCreated, `"`+run.SessionID+`"`)}
	}
	run := f.create(t, in)
	if run.SessionID != newer.SessionID || !run.Spec.Claude.Resume {
		t.Errorf("continued %s, want %s", run.SessionID, newer.SessionID)
	}
	if evs := f.log(t, run.ID); string(evs[0].Data) != `"`+newer.SessionID+`"` {
		t.Errorf("the first event is %s", evs[0].Data)
	}
	_, _, err = f.CreateRun(t.Context(), next("a"))
	wantErr(t, "continue twice at once", err, stromboli.SessionBusy)
	f.done(t, run)

	// A conversation is found wherever it went on.
	moved := f.newRun(stromboli.KindAsync)
	moved.Run.SessionID, moved.ResumeSession, moved.CreateSession, moved.Workspace = old.SessionID, old.SessionID, nil, "b"
	f.done(t, f.create(t, moved))
	for workspace, want := range map[string]string{"a": newer.SessionID, "b": old.SessionID} {
		run := f.create(t, next(workspace))
		if run.SessionID != want {
			t.Errorf("in %s continued %s, want %s", workspace, run.SessionID, want)
		}
		f.done(t, run)
	}
	theirs := next("a")
	theirs.Run.Tenant = "other"
	_, _, err = f.CreateRun(t.Context(), theirs)
	wantErr(t, "another tenant's", err, stromboli.NotFound)
}

func testFork(t *testing.T, f *fixture) {
	source := f.running(t)
	fork := func() stromboli.NewRun {
		in := f.newRun(stromboli.KindAsync)
		in.Run.SessionID, in.ResumeSession, in.Fork = uuid.NewString(), source.SessionID, true
		return in
	}
	resume := f.newRun(stromboli.KindAsync)
	resume.Run.SessionID, resume.ResumeSession, resume.CreateSession = source.SessionID, source.SessionID, nil

	_, _, err := f.CreateRun(t.Context(), fork())
	wantErr(t, "fork busy", err, stromboli.SessionBusy)
	end := ended(stromboli.Completed)
	end.Session = stromboli.SessionSave{UID: 7, GID: 8, TranscriptKey: "k"}
	if _, err := f.FinishRun(t.Context(), source.ID, source.Epoch, end); err != nil {
		t.Fatal(err)
	}
	before := f.session(t, source.SessionID)

	one, two := f.create(t, fork()), f.create(t, fork()) // many may copy at once
	got := f.session(t, one.SessionID)
	want := stromboli.Session{
		ID: one.SessionID, Tenant: one.Tenant, CreatedBy: "test", CLISessionID: one.SessionID, ForkedFrom: source.SessionID, ForkPending: true,
		ActiveRun: one.ID, RunCount: 1, UID: 7, GID: 8, CreatedAt: f.clock.Now(), UpdatedAt: f.clock.Now(),
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("fork (-want +got):\n%s", d)
	}
	if d := cmp.Diff(before, f.session(t, source.SessionID)); d != "" {
		t.Errorf("the source changed:\n%s", d)
	}
	_, _, err = f.CreateRun(t.Context(), resume)
	wantErr(t, "resume while copies are to be made", err, stromboli.SessionBusy)

	// One is cancelled: a fork that was never made leaves no session.
	if _, err := f.RequestCancel(t.Context(), stromboli.CancelRequest{Tenant: two.Tenant, RunID: two.ID, Reason: stromboli.ReasonRequest}); err != nil {
		t.Fatal(err)
	}
	_, err = f.GetSession(t.Context(), two.Tenant, two.SessionID)
	wantErr(t, "fork that was never made", err, stromboli.NotFound)
	_, _, err = f.CreateRun(t.Context(), resume)
	wantErr(t, "resume while a copy is to be made", err, stromboli.SessionBusy)

	claimed, _, err := f.ClaimPending(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	conversation := "cli"
	if _, err := f.UpdateRun(t.Context(), one.ID, claimed.Epoch, stromboli.RunUpdate{Forked: &conversation}); err != nil {
		t.Fatal(err)
	}
	if s := f.session(t, one.SessionID); s.ForkPending || s.ForkOf != "cli" {
		t.Errorf("session %+v after its copy", s)
	}
	run := f.create(t, resume)
	end.Session = stromboli.SessionSave{TranscriptKey: "mine"}
	if _, err := f.FinishRun(t.Context(), one.ID, claimed.Epoch, end); err != nil {
		t.Fatal(err)
	}
	if s := f.session(t, one.SessionID); s.ForkOf != "" || s.TranscriptKey != "mine" || s.ActiveRun != "" {
		t.Errorf("session %+v after its run", s)
	}
	f.done(t, run)

	missing := fork()
	missing.ResumeSession = uuid.NewString()
	_, _, err = f.CreateRun(t.Context(), missing)
	wantErr(t, "fork of nothing", err, stromboli.NotFound)
	theirs := fork()
	theirs.Run.Tenant = "other"
	_, _, err = f.CreateRun(t.Context(), theirs)
	wantErr(t, "fork of another tenant's", err, stromboli.NotFound)
}

func testEphemeral(t *testing.T, f *fixture) {
	in := f.named("brief")
	in.CreateSession.Ephemeral, in.Workspace = true, "w"
	run := f.create(t, in)
	if s := f.session(t, "brief"); !s.Ephemeral {
		t.Errorf("session %+v", s)
	}
	next := f.newRun(stromboli.KindAsync)
	next.Run.SessionID, next.CreateSession, next.Continue = "", nil, "w"
	_, _, err := f.CreateRun(t.Context(), next)
	wantErr(t, "continue what goes", err, stromboli.NotFound)
	claimed, _, _ := f.ClaimPending(t.Context(), "one")
	f.finish(t, claimed, stromboli.Completed)
	_, err = f.GetSession(t.Context(), run.Tenant, run.SessionID)
	wantErr(t, "session after its run", err, stromboli.NotFound)
	f.create(t, f.named("brief")) // the name is free again
}
