package storetest

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/tomblancdev/stromboli"
)

// testHooks: a session keeps the create hooks of its first run, a fork those of its
// source unless it has its own.
func testHooks(t *testing.T, f *fixture) {
	hooks := stromboli.Lifecycle{OnCreateCommand: []string{"a", "b"}, PostCreate: []string{"c"}}
	in := f.newRun(stromboli.KindAsync)
	in.CreateSession.Hooks = hooks
	in.CreateSession.Hooks.PostStart, in.CreateSession.Hooks.HooksTimeout = []string{"the run's"}, 1
	source := f.create(t, in)
	f.done(t, source)
	is := func(what, session string, want stromboli.Lifecycle) {
		t.Helper()
		if d := cmp.Diff(want, f.session(t, session).Hooks); d != "" {
			t.Errorf("%s (-want +got):\n%s", what, d)
		}
	}
	is("a session", source.SessionID, hooks)

	resume := f.newRun(stromboli.KindAsync)
	resume.Run.SessionID, resume.ResumeSession, resume.CreateSession = source.SessionID, source.SessionID, nil
	f.done(t, f.create(t, resume))
	is("after another run", source.SessionID, hooks)

	for _, own := range []stromboli.Lifecycle{{}, {PostCreate: []string{"own"}}} {
		fork := f.newRun(stromboli.KindAsync)
		fork.Run.SessionID, fork.ResumeSession, fork.Fork = uuid.NewString(), source.SessionID, true
		fork.CreateSession.Hooks = own
		want := own
		if !own.Creates() {
			want = hooks
		}
		is("a fork", f.create(t, fork).SessionID, want)
	}
	plain := f.create(t, f.newRun(stromboli.KindAsync))
	is("a session without", plain.SessionID, stromboli.Lifecycle{})
}
