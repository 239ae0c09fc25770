package storetest

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/store"
)

func wantErr(t *testing.T, doing string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want %v", doing, err, want)
	}
}

func testCreate(t *testing.T, f *fixture) {
	in := f.newRun(stromboli.KindAsync)
	turns := 3
	in.Run.Spec = stromboli.RunSpec{
		Prompt: "p\x00\n\u2028", Metadata: map[string]string{"a": "b"},
		Claude: stromboli.ClaudeOptions{MaxTurns: &turns, Timeout: stromboli.Duration(time.Minute)},
	}
	in.Run.Warnings = []stromboli.Warning{{Code: "c", Message: "m"}}
	got := f.create(t, in)

	want := in.Run
	want.CreatedAt, want.UpdatedAt = f.clock.Now(), f.clock.Now()
	want.LastSeq = 1
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("created (-want +got):\n%s", d)
	}
	if d := cmp.Diff(want, f.get(t, in.Run.ID)); d != "" {
		t.Errorf("read back (-want +got):\n%s", d)
	}
	s, err := f.GetSession(t.Context(), in.Run.Tenant, in.Run.SessionID)
	if err != nil {
		t.Fatal(err)
	}
	wantSession := stromboli.Session{
		ID: in.Run.SessionID, Tenant: in.Run.Tenant, CreatedBy: "test", CLISessionID: in.Run.SessionID,
		ActiveRun: in.Run.ID, RunCount: 1, CreatedAt: f.clock.Now(), UpdatedAt: f.clock.Now(),
	}
	if d := cmp.Diff(wantSession, s); d != "" {
		t.Errorf("session (-want +got):\n%s", d)
	}
	if evs := f.log(t, in.Run.ID); len(evs) != 1 || evs[0].Type != stromboli.EventRunCreated || string(evs[0].Data) != `{"a":1}` {
		t.Errorf("events %v", evs)
	}

	again := f.newRun(stromboli.KindAsync)
	again.Run.ID = in.Run.ID
	_, _, err = f.CreateRun(t.Context(), again)
	wantErr(t, "same id", err, stromboli.Conflict)
	_, err = f.GetSession(t.Context(), in.Run.Tenant, again.Run.SessionID)
	wantErr(t, "session of a refused run", err, stromboli.NotFound)
	_, err = f.GetRun(t.Context(), stromboli.DefaultTenant, "run-missing")
	wantErr(t, "missing run", err, stromboli.NotFound)
}

func testCreateRunning(t *testing.T, f *fixture) {
	run := f.running(t)
	if run.Status != stromboli.Running || run.Owner != "one" || run.Epoch != 1 || !run.StartedAt.Equal(f.clock.Now()) {
		t.Errorf("run %+v", run)
	}
	in := f.newRun(stromboli.KindSync)
	in.Run.Status = stromboli.Running
	if _, _, err := f.CreateRun(t.Context(), in); err == nil {
		t.Error("a running run without an owner was stored")
	}
	in = f.newRun(stromboli.KindSync)
	in.Run.Status = stromboli.Completed
	if _, _, err := f.CreateRun(t.Context(), in); err == nil {
		t.Error("a run began as completed")
	}
}

func testSessions(t *testing.T, f *fixture) {
	first := f.running(t)
	resume := func(tenant string, make bool) error {
		in := f.newRun(stromboli.KindSync)
		in.Run.SessionID, in.Run.Tenant, in.ResumeSession = first.SessionID, tenant, first.SessionID
		if !make {
			in.CreateSession = nil
		}
		_, _, err := f.CreateRun(t.Context(), in)
		return err
	}
	create := f.newRun(stromboli.KindSync)
	create.Run.SessionID = first.SessionID
	_, _, err := f.CreateRun(t.Context(), create)
	wantErr(t, "create what exists", err, stromboli.SessionExists)
	wantErr(t, "resume busy", resume(stromboli.DefaultTenant, false), stromboli.SessionBusy)
	wantErr(t, "open busy", resume(stromboli.DefaultTenant, true), stromboli.SessionBusy)
	wantErr(t, "resume another tenant's", resume("other", false), stromboli.NotFound)

	f.finish(t, first, stromboli.Completed)
	if s, err := f.GetSession(t.Context(), first.Tenant, first.SessionID); err != nil || s.ActiveRun != "" {
		t.Errorf("session after the end: %+v, %v", s, err)
	}
	if err := resume(stromboli.DefaultTenant, false); err != nil {
		t.Errorf("resume free session: %v", err)
	}
	missing := f.newRun(stromboli.KindSync)
	missing.CreateSession, missing.ResumeSession = nil, missing.Run.SessionID
	_, _, err = f.CreateRun(t.Context(), missing)
	wantErr(t, "resume missing", err, stromboli.NotFound)
	missing.CreateSession = &stromboli.Session{CLISessionID: "cli"}
	f.create(t, missing)
	if s, err := f.GetSession(t.Context(), stromboli.DefaultTenant, missing.Run.SessionID); err != nil || s.CLISessionID != "cli" {
		t.Errorf("opened session: %+v, %v", s, err)
	}
}

func testQueue(t *testing.T, f *fixture) {
	for range 2 {
		in := f.newRun(stromboli.KindAsync)
		in.MaxQueued = 2
		f.create(t, in)
	}
	in := f.newRun(stromboli.KindAsync)
	in.MaxQueued = 2
	_, _, err := f.CreateRun(t.Context(), in)
	wantErr(t, "third", err, stromboli.QueueFull)
	other := f.newRun(stromboli.KindAsync)
	other.MaxQueued, other.Run.Tenant = 2, "other"
	f.create(t, other)
	in.MaxQueued = 0
	_, _, err = f.CreateRun(t.Context(), in)
	wantErr(t, "no queue at all", err, stromboli.QueueFull)
	in.Run.Status, in.Run.Owner = stromboli.Running, "one"
	f.create(t, in) // a run that needs no queue is not refused for it
}

func testIdempotency(t *testing.T, f *fixture) {
	request := func(tenant, endpoint, hash string) stromboli.NewRun {
		in := f.newRun(stromboli.KindAsync)
		in.Run.Tenant = tenant
		in.Idempotency = &stromboli.Idempotency{Tenant: tenant, Endpoint: endpoint, Key: "k", Hash: hash}
		return in
	}
	first := f.create(t, request("default", "POST /run", "h"))
	again, existing, err := f.CreateRun(t.Context(), request("default", "POST /run", "h"))
	if err != nil || !existing || again.ID != first.ID {
		t.Errorf("repeated: %s, existing %v, %v; want %s", again.ID, existing, err, first.ID)
	}
	_, _, err = f.CreateRun(t.Context(), request("default", "POST /run", "other"))
	wantErr(t, "another body", err, stromboli.KeyReused)
	f.create(t, request("default", "POST /run/async", "other"))
	f.create(t, request("other", "POST /run", "other"))

	refused := request("default", "POST /run/stream", "h")
	refused.CreateSession, refused.ResumeSession = nil, refused.Run.SessionID
	_, _, err = f.CreateRun(t.Context(), refused)
	wantErr(t, "refused", err, stromboli.NotFound)
	f.create(t, request("default", "POST /run/stream", "h2")) // a refused request used no key

	f.clock.add(24*time.Hour - time.Millisecond)
	if n, err := f.DeleteExpiredIdempotency(t.Context()); n != 0 || err != nil {
		t.Errorf("deleted %d, %v before 24 h", n, err)
	}
	if _, existing, _ := f.CreateRun(t.Context(), request("default", "POST /run", "h")); !existing {
		t.Error("forgotten before 24 h")
	}
	f.clock.add(time.Millisecond)
	f.create(t, request("default", "POST /run", "other"))
	if n, err := f.DeleteExpiredIdempotency(t.Context()); n != 3 || err != nil {
		t.Errorf("deleted %d, %v after 24 h; want 3", n, err)
	}
	if _, existing, err := f.CreateRun(t.Context(), request("default", "POST /run", "other")); !existing || err != nil {
		t.Errorf("the renewed key is gone: %v, %v", existing, err)
	}
}

func testClaim(t *testing.T, f *fixture) {
	if run, ok, err := f.ClaimPending(t.Context(), "one"); ok || err != nil {
		t.Fatalf("claimed %q from nothing, %v", run.ID, err)
	}
	var ids []string
	for range 3 {
		ids = append(ids, f.create(t, f.newRun(stromboli.KindAsync)).ID)
	}
	f.clock.add(time.Second)
	for _, id := range ids {
		run, ok, err := f.ClaimPending(t.Context(), "one")
		if err != nil || !ok || run.ID != id {
			t.Fatalf("claimed %s, %v, %v; want %s", run.ID, ok, err, id)
		}
		if run.Status != stromboli.Running || run.Epoch != 1 || run.Owner != "one" || !run.StartedAt.Equal(f.clock.Now()) {
			t.Errorf("claimed %+v", run)
		}
	}
	if _, ok, _ := f.ClaimPending(t.Context(), "one"); ok {
		t.Error("claimed a fourth")
	}
	active, err := f.ActiveRuns(t.Context())
	if err != nil || len(active) != 3 || active[0].ID != ids[0] || active[2].ID != ids[2] {
		t.Errorf("active %v, %v", active, err)
	}
}

func testClaimRace(t *testing.T, f *fixture) {
	const runs, workers = 40, 8
	for range runs {
		f.create(t, f.newRun(stromboli.KindAsync))
	}
	var mu sync.Mutex
	claimed := map[string]int{}
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for {
				run, ok, err := f.ClaimPending(t.Context(), "w")
				if err != nil {
					t.Error(err)
				}
				if !ok {
					return
				}
				mu.Lock()
				claimed[run.ID]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(claimed) != runs {
		t.Errorf("%d runs claimed, want %d", len(claimed), runs)
	}
	for id, n := range claimed {
		if n != 1 {
			t.Errorf("%s was claimed %d times", id, n)
		}
	}
}

func testTakeover(t *testing.T, f *fixture) {
	run := f.running(t)
	epoch, err := f.Takeover(t.Context(), run.ID, "two")
	mine := f.get(t, run.ID)
	if err != nil || epoch != 2 || mine.Epoch != 2 || mine.Owner != "two" {
		t.Fatalf("Takeover: %d, %+v, %v", epoch, mine, err)
	}
	_, err = f.AppendEvents(t.Context(), run.ID, 1, []stromboli.Event{line(1, 0, `{}`)})
	wantErr(t, "append", err, store.ErrFenced)
	_, err = f.UpdateRun(t.Context(), run.ID, 1, stromboli.RunUpdate{Events: []stromboli.Event{event("x", `{}`)}})
	wantErr(t, "update", err, store.ErrFenced)
	_, err = f.FinishRun(t.Context(), run.ID, 1, ended(stromboli.Failed))
	wantErr(t, "finish", err, store.ErrFenced)
	if evs := f.log(t, run.ID); len(evs) != 1 {
		t.Errorf("a fenced write left %d events", len(evs))
	}
	f.finish(t, mine, stromboli.Completed)
	_, err = f.Takeover(t.Context(), run.ID, "three")
	wantErr(t, "take over what has ended", err, stromboli.Conflict)
	_, err = f.Takeover(t.Context(), "run-missing", "three")
	wantErr(t, "take over nothing", err, stromboli.NotFound)
}
