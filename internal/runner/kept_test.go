package runner_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine"
)

// kept is the sandbox that a session keeps, and the state of its container.
func (l *life) kept(session string) (id string, state engine.State) {
	l.w.t.Helper()
	s, err := l.store.GetSession(l.w.t.Context(), "default", session)
	must(l.w.t, err)
	if s.Kept.ID == "" {
		return "", ""
	}
	c, err := l.w.engine.Inspect(l.w.t.Context(), "stromboli-"+s.Kept.ID)
	if errors.Is(err, engine.ErrNotFound) {
		return s.Kept.ID, ""
	}
	must(l.w.t, err)
	return s.Kept.ID, c.State
}

// keeping makes a session that keeps its sandbox, which is stopped on return.
func (l *life) keeping() (session, sandbox string) {
	l.w.t.Helper()
	run := l.wait(l.submit(`result first`, hooked(threeHooks())).ID)
	want(l.w.t, run, stromboli.Completed, "")
	l.stopped(run.SessionID)
	sandbox, _ = l.kept(run.SessionID)
	return run.SessionID, sandbox
}

func (l *life) stopped(session string) {
	l.w.t.Helper()
	l.eventually("the kept sandbox is stopped", func() bool {
		_, state := l.kept(session)
		return state == engine.StateExited
	})
}

func repeated(run stromboli.Run) bool {
	return slices.ContainsFunc(run.Warnings, func(w stromboli.Warning) bool { return w.Code == "hooks_repeated" })
}

// The server dies at each write of a run in a kept sandbox: the next one goes on
// in the same sandbox, whose create hooks have run once, and keeps it again.
func TestKeptSandboxDeathAtEachWrite(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.keep = time.Hour
	l := w.start(options{})
	session, sandbox := l.keeping()
	l.stop()
	ran, starts := "create post post2 start", 1
	for at, more := 1, true; more; at++ {
		for _, before := range []bool{true, false} {
			var id string
			id, more = w.dies(at, before, `result hello`, resume(session), hooked(stromboli.Lifecycle{PostStart: []string{"echo started >> ~/hooks"}}))
			l := w.start(options{})
			run := l.wait(id)
			what := fmt.Sprintf("write %d, before %v", at, before)
			ran, starts = ran+" started", starts+1
			if want(t, run, stromboli.Completed, ""); w.starts(run) != starts || repeated(run) || w.ran(run) != ran {
				t.Errorf("%s: %d starts, hooks %q, warnings %v", what, w.starts(run), w.ran(run), run.Warnings)
			}
			l.stopped(session)
			if again, _ := l.kept(session); again != sandbox || run.SandboxID != sandbox {
				t.Errorf("%s: sandbox %s, run in %s, kept %s", what, sandbox, run.SandboxID, again)
			}
			if left, err := l.boxes.Left(t.Context()); left != 1 || err != nil {
				t.Errorf("%s: %d containers, %v", what, left, err)
			}
			l.stop()
		}
		if at > 30 {
			t.Fatal("a run has no end of writes")
		}
	}
	l = w.start(options{})
	_, err := l.DeleteSession(t.Context(), me(), session)
	must(t, err)
	l.empty()
}

// The server dies while a kept sandbox is found unusable and replaced.
func TestKeptSandboxReplacedDeathAtEachWrite(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.keep = time.Hour
	l := w.start(options{})
	session, sandbox := l.keeping()
	l.stop()
	ran, memory := "create post post2 start", 70
	for at := 1; at < 6; at++ { // beyond that it is a run like others
		for _, before := range []bool{true, false} {
			memory++
			id, _ := w.dies(at, before, `result hello`, resume(session), func(s *stromboli.RunSpec) { s.Podman.Memory = fmt.Sprintf("%dm", memory) })
			l := w.start(options{})
			run := l.wait(id)
			ran += " create post post2"
			if want(t, run, stromboli.Completed, ""); !repeated(run) || w.ran(run) != ran {
				t.Errorf("write %d, before %v: hooks %q, warnings %v", at, before, w.ran(run), run.Warnings)
			}
			l.stopped(session)
			again, _ := l.kept(session)
			if again == sandbox {
				t.Errorf("write %d, before %v: it is the same sandbox", at, before)
			}
			sandbox = again
			l.eventually("one sandbox is left", func() bool {
				left, err := l.boxes.Left(t.Context())
				return err == nil && left == 1
			})
			l.stop()
		}
	}
}

// What is not the sandbox's fault leaves it to the next run.
func TestKeptSandboxStays(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.keep = time.Hour
	l := w.start(options{})
	session, sandbox := l.keeping()
	w.breakEngine("Start")
	run := l.wait(l.submit(`result no`, resume(session)).ID)
	want(t, run, stromboli.Failed, stromboli.ReasonEngine)
	w.mendEngine()
	run = l.submit(`say here; read -r x; sleep 60`, resume(session))
	l.said(run.ID, "here")
	l.cancel(run.ID)
	want(t, l.wait(run.ID), stromboli.Cancelled, stromboli.ReasonRequest)
	failed := l.wait(l.submit(`result no`, resume(session), hooked(stromboli.Lifecycle{PostStart: []string{"exit 1"}})).ID)
	want(t, failed, stromboli.Failed, stromboli.ReasonHook)
	run = l.wait(l.submit(`result yes`, resume(session)).ID)
	want(t, run, stromboli.Completed, "")
	if again, _ := l.kept(session); again != sandbox || repeated(run) || w.ran(run) != "create post post2 start" {
		t.Errorf("kept %s, then %s; hooks %q, warnings %v", sandbox, again, w.ran(run), run.Warnings)
	}
	// One whose create hooks have not all succeeded is not kept.
	broken := l.wait(l.submit(`result no`, hooked(stromboli.Lifecycle{OnCreateCommand: []string{"true", "exit 1"}})).ID)
	if id, _ := l.kept(broken.SessionID); id != "" {
		t.Errorf("%s is kept", id)
	}
}

// Kept sandboxes go when their time is over, when there are too many, and before
// a run is refused for want of space; never under a run.
func TestKeptSandboxesGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.keep, w.most = time.Hour, 2
	l := w.start(options{})
	var sessions []string
	for range 3 {
		session, _ := l.keeping()
		sessions = append(sessions, session)
	}
	held := func() string {
		var all []string
		for i, s := range sessions {
			if id, _ := l.kept(s); id != "" {
				all = append(all, fmt.Sprint(i))
			}
		}
		return strings.Join(all, " ")
	}
	l.eventually("the oldest is gone", func() bool { return held() == "1 2" })
	active := l.submit(`say here; read -r x; result late; sleep 0.2`, resume(sessions[1]))
	l.said(active.ID, "here")
	w.full.Store(true)
	if _, err := l.Submit(t.Context(), me(), submission(`result no`)); !errors.Is(err, stromboli.StorageFull) {
		t.Errorf("a full disk: %v", err)
	}
	if got := held(); got != "1" {
		t.Errorf("kept: %q", got)
	}
	l.cancel(active.ID)
	l.wait(active.ID)
	l.eventually("the last one is gone", func() bool { return held() == "" })
	l.empty()
	w.full.Store(false)
	l.stop()

	w.keep = 200 * time.Millisecond
	l = w.start(options{})
	run := l.wait(l.submit(`result short`, hooked(threeHooks())).ID)
	l.eventually("its time is over", func() bool { id, _ := l.kept(run.SessionID); return id == "" })
	l.empty()
	l.stop()

	w.keep = time.Hour
	l = w.start(options{now: func() time.Time { return time.Now().Add(24 * time.Hour) }})
	ahead, _ := l.keeping()
	l.stop()
	l = w.start(options{})
	l.eventually("it is gone once the clock was set back", func() bool { id, _ := l.kept(ahead); return id == "" })
	l.empty()
}
