package storetest

import (
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/tomblancdev/stromboli"
)

// imported is a session that no run has made.
func (f *fixture) imported(t *testing.T, tenant, alias string) stromboli.Session {
	t.Helper()
	id := uuid.NewString()
	s := stromboli.Session{
		ID: id, Tenant: tenant, CreatedBy: "me", CLISessionID: "cli-" + id, Alias: alias, Title: "Title", TranscriptKey: "key-" + id, CreatedAt: f.clock.Now(),
	}
	if err := f.CreateSession(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	return s
}

func testSessionList(t *testing.T, f *fixture) {
	var all []string // newest first
	for i := range 7 {
		if i%2 == 0 { // pairs of one time
			f.clock.add(time.Second)
		}
		all = append(all, f.imported(t, stromboli.DefaultTenant, "").ID)
	}
	f.imported(t, "other", "")
	ephemeral := f.newRun(stromboli.KindAsync)
	ephemeral.CreateSession.Ephemeral = true
	f.create(t, ephemeral)
	f.clock.add(time.Second)
	run := f.create(t, f.named("nightly"))

	list := func(filter stromboli.SessionFilter) (ids []string) {
		t.Helper()
		filter.Tenant = stromboli.DefaultTenant
		for {
			page, next, err := f.ListSessions(t.Context(), filter)
			if err != nil || filter.Limit > 0 && len(page) > filter.Limit {
				t.Fatal(len(page), err)
			}
			for _, s := range page {
				ids = append(ids, s.ID)
			}
			if next == "" {
				return ids
			}
			filter.Cursor = next
		}
	}
	whole := list(stromboli.SessionFilter{})
	if len(whole) != 8 || whole[0] != run.SessionID || !slices.Equal(slices.Sorted(slices.Values(whole[1:])), slices.Sorted(slices.Values(all))) {
		t.Fatalf("%v, want %v and before them %s", whole, all, run.SessionID)
	}
	for limit := 1; limit < 9; limit++ {
		if got := list(stromboli.SessionFilter{Limit: limit}); !slices.Equal(got, whole) {
			t.Errorf("in pages of %d: %v", limit, got)
		}
	}
	yes, no := true, false
	for name, c := range map[string]struct {
		filter stromboli.SessionFilter
		want   []string
	}{
		"alias":     {stromboli.SessionFilter{Alias: "nightly"}, whole[:1]},
		"no alias":  {stromboli.SessionFilter{Alias: "Nightly"}, nil},
		"active":    {stromboli.SessionFilter{Active: &yes}, whole[:1]},
		"idle":      {stromboli.SessionFilter{Active: &no, Limit: 3}, whole[1:]},
		"since":     {stromboli.SessionFilter{Since: f.clock.Now()}, whole[:1]},
		"since all": {stromboli.SessionFilter{Since: f.clock.Now().Add(-time.Hour)}, whole},
	} {
		if got := list(c.filter); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	for _, cursor := range []string{"x", ".", "1.", "!.y"} {
		_, _, err := f.ListSessions(t.Context(), stromboli.SessionFilter{Tenant: stromboli.DefaultTenant, Cursor: cursor})
		wantErr(t, "cursor "+cursor, err, stromboli.Invalid)
	}

	// What lists show of a session.
	first := f.session(t, "nightly")
	if first.RunCount != 1 || first.CostUSD != 0 || first.ActiveRun != run.ID {
		t.Errorf("%+v", first)
	}
	claimed := f.claimUntil(t, run.ID)
	end := ended(stromboli.Completed)
	end.Outcome.Usage = &stromboli.Usage{EstimatedCostUSD: 0.25}
	if _, err := f.FinishRun(t.Context(), run.ID, claimed.Epoch, end); err != nil {
		t.Fatal(err)
	}
	resume := f.newRun(stromboli.KindAsync)
	resume.Run.SessionID, resume.ResumeSession, resume.CreateSession = first.ID, first.ID, nil
	f.create(t, resume)
	if s := f.session(t, "nightly"); s.RunCount != 2 || s.CostUSD != 0.25 {
		t.Errorf("after two runs: %+v", s)
	}
}

// claimUntil claims pending runs up to one.
func (f *fixture) claimUntil(t *testing.T, id string) stromboli.Run {
	t.Helper()
	for {
		run, ok, err := f.ClaimPending(t.Context(), "one")
		if err != nil || !ok {
			t.Fatalf("%s is not to be claimed: %v", id, err)
		}
		if run.ID == id {
			return run
		}
	}
}

func testSessionCreate(t *testing.T, f *fixture) {
	in := f.imported(t, stromboli.DefaultTenant, "mine")
	got := f.session(t, "mine")
	if got.ID != in.ID || got.CLISessionID != in.CLISessionID || got.Title != "Title" || got.TranscriptKey != in.TranscriptKey || got.TranscriptVersion != 1 ||
		got.CreatedBy != "me" || !got.CreatedAt.Equal(in.CreatedAt) || got.RunCount != 0 {
		t.Errorf("%+v", got)
	}
	sameID := in
	sameID.Alias, sameID.Tenant = "", "other"
	wantErr(t, "the id, by another tenant", f.CreateSession(t.Context(), sameID), stromboli.SessionExists)
	sameAlias := in
	sameAlias.ID = uuid.NewString()
	wantErr(t, "the alias", f.CreateSession(t.Context(), sameAlias), stromboli.SessionExists)
	f.imported(t, "other", "mine")
	f.imported(t, stromboli.DefaultTenant, "")
	f.imported(t, stromboli.DefaultTenant, "") // no alias is not one alias
}

func testSessionDelete(t *testing.T, f *fixture) {
	run := f.create(t, f.named("mine"))
	_, err := f.DeleteSession(t.Context(), stromboli.DefaultTenant, "mine")
	wantErr(t, "in use", err, stromboli.SessionBusy)
	f.done(t, run)

	fork := f.newRun(stromboli.KindAsync)
	fork.Fork, fork.ResumeSession = true, run.SessionID
	copied := f.create(t, fork)
	_, err = f.DeleteSession(t.Context(), stromboli.DefaultTenant, run.SessionID)
	wantErr(t, "to be copied", err, stromboli.SessionBusy)
	if _, err := f.RequestCancel(t.Context(), stromboli.CancelRequest{Tenant: stromboli.DefaultTenant, RunID: copied.ID, Reason: stromboli.ReasonRequest}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"nobody", uuid.NewString()} {
		_, err = f.DeleteSession(t.Context(), stromboli.DefaultTenant, name)
		wantErr(t, name, err, stromboli.NotFound)
	}
	_, err = f.DeleteSession(t.Context(), "other", run.SessionID)
	wantErr(t, "another tenant's", err, stromboli.NotFound)

	// Not deleted, so not forgotten.
	if err := f.ForgetSession(t.Context(), run.SessionID); err != nil {
		t.Fatal(err)
	}
	f.get(t, run.ID)
	for range 2 {
		s, err := f.DeleteSession(t.Context(), stromboli.DefaultTenant, "mine")
		if err != nil || s.ID != run.SessionID || s.TranscriptKey == "" || !s.Deleting {
			t.Fatalf("%+v, %v", s, err)
		}
	}
	_, err = f.GetSession(t.Context(), stromboli.DefaultTenant, run.SessionID)
	wantErr(t, "deleted", err, stromboli.NotFound)
	if list, _, err := f.ListSessions(t.Context(), stromboli.SessionFilter{Tenant: stromboli.DefaultTenant}); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	resume := f.newRun(stromboli.KindAsync)
	resume.Run.SessionID, resume.ResumeSession, resume.CreateSession = run.SessionID, run.SessionID, nil
	_, _, err = f.CreateRun(t.Context(), resume)
	wantErr(t, "resumed", err, stromboli.SessionBusy)
	_, _, err = f.CreateRun(t.Context(), f.named("mine"))
	wantErr(t, "the alias", err, stromboli.SessionBusy)

	list, err := f.DeletedSessions(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != run.SessionID {
		t.Fatalf("%+v, %v", list, err)
	}
	for range 2 {
		if err := f.ForgetSession(t.Context(), run.SessionID); err != nil {
			t.Fatal(err)
		}
	}
	_, err = f.GetRun(t.Context(), stromboli.DefaultTenant, run.ID)
	wantErr(t, "its run", err, stromboli.NotFound)
	if list, err := f.DeletedSessions(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	f.create(t, f.named("mine"))
}
