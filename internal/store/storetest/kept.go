package storetest

import (
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
)

// testKept: a run's end says which sandbox its session keeps; it is forgotten by
// whoever has the session, or nobody while another has.
func testKept(t *testing.T, f *fixture) {
	now := f.clock.Now().Truncate(time.Millisecond)
	kept := stromboli.KeptSandbox{ID: "box", Since: now, Until: now.Add(time.Hour)}
	end := func(run stromboli.Run, k *stromboli.KeptSandbox) {
		t.Helper()
		fin := ended(stromboli.Completed)
		fin.Session.Kept = k
		if _, err := f.FinishRun(t.Context(), run.ID, run.Epoch, fin); err != nil {
			t.Fatal(err)
		}
	}
	resume := func(session string) stromboli.Run {
		t.Helper()
		in := f.newRun(stromboli.KindAsync)
		in.Run.SessionID, in.ResumeSession, in.CreateSession = session, session, nil
		in.Run.Status, in.Run.Owner = stromboli.Running, "one"
		return f.create(t, in)
	}
	is := func(what, session string, want stromboli.KeptSandbox) {
		t.Helper()
		if got := f.session(t, session).Kept; got != want {
			t.Errorf("%s: kept %+v, not %+v", what, got, want)
		}
	}
	forget := func(session, sandbox, run string, want bool) {
		t.Helper()
		if ok, err := f.ForgetSandbox(t.Context(), session, sandbox, run); ok != want || err != nil {
			t.Errorf("forget %q of run %q: %v, %v", sandbox, run, ok, err)
		}
	}
	first := f.running(t)
	session := first.SessionID
	is("a new session", session, stromboli.KeptSandbox{})
	end(first, &kept)
	is("at the end", session, kept)

	later := f.running(t)
	laterKept := kept
	laterKept.ID, laterKept.Since = "later", now.Add(time.Minute)
	end(later, &laterKept)
	end(f.running(t), nil)
	list, err := f.KeptSandboxes(t.Context())
	if err != nil || len(list) != 2 || list[0].ID != session || list[1].Kept != laterKept {
		t.Errorf("kept: %+v, %v", list, err)
	}

	run := resume(session)
	forget(session, "box", "", false)
	forget(session, "box", "run-other", false)
	end(run, nil)
	is("a run that says nothing", session, kept)
	forget(session, "another", "", false)
	forget(session, "", "", false)
	run = resume(session)
	forget(session, "box", run.ID, true)
	forget(session, "box", run.ID, false)
	is("forgotten by its run", session, stromboli.KeptSandbox{})
	end(run, &kept)
	forget(session, "box", "", true)
	end(resume(session), &kept)
	end(resume(session), &stromboli.KeptSandbox{})
	is("a run that keeps none", session, stromboli.KeptSandbox{})

	if _, err := f.DeleteSession(t.Context(), stromboli.DefaultTenant, later.SessionID); err != nil {
		t.Fatal(err)
	}
	deleted, err := f.DeletedSessions(t.Context())
	if err != nil || len(deleted) != 1 || deleted[0].Kept != laterKept {
		t.Errorf("being deleted: %+v, %v", deleted, err)
	}
	if list, err := f.KeptSandboxes(t.Context()); len(list) != 1 || err != nil {
		t.Errorf("kept while it is being deleted: %+v, %v", list, err)
	}
}
