package storetest

import (
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
)

// deleteFinished deletes the runs that have finished by now, as retention does.
func (f *fixture) deleteFinished(t *testing.T) (int, error) {
	t.Helper()
	runs, err := f.FinishedRuns(t.Context(), f.clock.Now(), stromboli.FinishedRun{}, 10)
	for _, run := range runs {
		if err := f.DeleteRun(t.Context(), run.ID); err != nil {
			return 0, err
		}
	}
	return len(runs), err
}

func testArchive(t *testing.T, f *fixture) {
	ctx := t.Context()
	run := f.running(t)
	arch := stromboli.Archive{RunID: run.ID, Place: "local", Key: "events/a", Bytes: 7, Frames: []stromboli.ArchiveFrame{{First: 1, Bytes: 7}}}
	wantErr(t, "an archive of a run that goes on", f.BeginArchive(ctx, arch), stromboli.Conflict)
	wantErr(t, "the deletion of a run that goes on", f.DeleteRun(ctx, run.ID), stromboli.Conflict)
	run = f.finish(t, run, stromboli.Completed)
	f.clock.add(time.Hour)
	due := func(list func() ([]stromboli.FinishedRun, error), want ...string) []stromboli.FinishedRun {
		t.Helper()
		got, err := list()
		if err != nil || len(got) != len(want) {
			t.Fatalf("%d runs, %v; want %v", len(got), err, want)
		}
		for i := range want {
			if got[i].ID != want[i] {
				t.Errorf("run %d is %s", i, got[i].ID)
			}
		}
		return got
	}
	toArchive := func() ([]stromboli.FinishedRun, error) {
		return f.RunsToArchive(ctx, f.clock.Now(), stromboli.FinishedRun{}, 10)
	}
	archived := func() ([]stromboli.FinishedRun, error) {
		return f.RunsWithArchive(ctx, f.clock.Now(), stromboli.FinishedRun{}, 10)
	}

	wantErr(t, "an archive that was not begun", f.EndArchive(ctx, arch), stromboli.Conflict)
	wantErr(t, "deleting rows without an archive", f.DeleteArchivedEvents(ctx, run.ID), stromboli.Conflict)
	if err := f.BeginArchive(ctx, arch); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "deleting rows of half an archive", f.DeleteArchivedEvents(ctx, run.ID), stromboli.Conflict)
	_, err := f.GetArchive(ctx, run.ID)
	wantErr(t, "half an archive", err, stromboli.NotFound)
	if err := f.BeginArchive(ctx, arch); err != nil { // the next server
		t.Fatal(err)
	}
	if got := due(toArchive, run.ID)[0]; got.ArchiveKey != "events/a" || got.ArchivePlace != "local" || got.Archived {
		t.Errorf("half an archive is told as %+v", got)
	}
	due(archived)
	if err := f.EndArchive(ctx, arch); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "a second archive", f.BeginArchive(ctx, arch), stromboli.Conflict)
	if got, err := f.GetArchive(ctx, run.ID); err != nil || got.Key != arch.Key || got.Bytes != 7 || len(got.Frames) != 1 {
		t.Errorf("GetArchive: %+v, %v", got, err)
	}
	if len(f.log(t, run.ID)) == 0 {
		t.Error("the rows went before they were asked to")
	}
	due(toArchive, run.ID) // until its rows are gone
	if err := f.DeleteArchivedEvents(ctx, run.ID); err != nil {
		t.Fatal(err)
	}
	if evs, err := f.Events(ctx, run.ID, 0, 10); len(evs) != 0 || err != nil {
		t.Errorf("%d rows are left, %v", len(evs), err)
	}
	due(toArchive)
	if got := due(archived, run.ID)[0]; !got.Archived || got.ArchiveBytes != 7 {
		t.Errorf("an archive is told as %+v", got)
	}
	if err := f.ForgetArchive(ctx, run.ID); err != nil {
		t.Fatal(err)
	}
	due(archived)
	due(toArchive)

	other := f.finish(t, f.running(t), stromboli.Completed)
	arch.RunID = other.ID
	if err := f.BeginArchive(ctx, arch); err != nil {
		t.Fatal(err)
	}
	if _, err := f.DeleteSession(ctx, other.Tenant, other.SessionID); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "an archive of what is being deleted", f.EndArchive(ctx, arch), stromboli.NotFound)
	if got, err := f.ArchivesOfSession(ctx, other.SessionID); err != nil || len(got) != 1 {
		t.Errorf("archives of the session: %v, %v", got, err)
	}
	if err := f.DeleteRun(ctx, other.ID); err != nil {
		t.Fatal(err)
	}
	if got, err := f.ArchivesOfSession(ctx, other.SessionID); err != nil || len(got) != 0 {
		t.Errorf("a deleted run's archive is left: %v, %v", got, err)
	}
}

func testIdleSessions(t *testing.T, f *fixture) {
	ctx := t.Context()
	busy := f.running(t)
	remembered := f.finish(t, f.running(t), stromboli.Completed)
	gone := f.finish(t, f.running(t), stromboli.Completed)
	if err := f.DeleteRun(ctx, gone.ID); err != nil {
		t.Fatal(err)
	}
	idle := func() []stromboli.Session {
		t.Helper()
		list, err := f.IdleSessions(ctx, f.clock.Now(), stromboli.Session{}, 10)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if list := idle(); len(list) != 0 {
		t.Errorf("sessions that were just used are idle: %v", list)
	}
	before := f.clock.Now()
	f.clock.add(time.Hour)
	if list := idle(); len(list) != 1 || list[0].ID != gone.SessionID {
		t.Fatalf("idle: %v", list)
	}
	for _, id := range []string{busy.SessionID, remembered.SessionID} {
		_, err := f.DeleteIdleSession(ctx, id, f.clock.Now())
		wantErr(t, "a session that is needed", err, stromboli.NotFound)
	}
	_, err := f.DeleteIdleSession(ctx, gone.SessionID, before)
	wantErr(t, "a session that was used since", err, stromboli.NotFound)
	if _, err := f.DeleteIdleSession(ctx, gone.SessionID, f.clock.Now()); err != nil {
		t.Fatal(err)
	}
	if list, err := f.DeletedSessions(ctx); err != nil || len(list) != 1 || list[0].ID != gone.SessionID {
		t.Errorf("being deleted: %v, %v", list, err)
	}
}
