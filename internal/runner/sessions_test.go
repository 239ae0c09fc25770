package runner_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/tomblancdev/stromboli"
)

// gone checks that nothing of a session is left.
func (l *life) gone(id string, runs ...string) {
	l.w.t.Helper()
	t := l.w.t
	if _, err := os.Stat(l.w.sessionPath(id)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the session's directory: %v", err)
	}
	if left := l.w.saved(t, id); left != "" {
		t.Errorf("transcripts are left:\n%s", left)
	}
	if _, err := l.Session(t.Context(), me(), id); !errors.Is(err, stromboli.NotFound) {
		t.Errorf("the session: %v", err)
	}
	for _, run := range runs {
		if _, err := l.store.GetRun(t.Context(), "default", run); !errors.Is(err, stromboli.NotFound) {
			t.Errorf("the run: %v", err)
		}
		if events, err := l.store.Events(t.Context(), run, 0, 10); len(events) > 0 {
			t.Errorf("%d events, %v", len(events), err)
		}
	}
}

func TestDeleteSession(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{max: 2})
	first := l.wait(l.submit(`echo x > made; result one`).ID)
	id := first.SessionID
	second := l.submit(`read -r x`, resume(id))
	if _, err := l.DeleteSession(t.Context(), me(), id); !errors.Is(err, stromboli.SessionBusy) {
		t.Errorf("in use: %v", err)
	}
	l.until(second.ID, stromboli.PhaseGenerating)
	l.cancel(second.ID)
	l.wait(second.ID)
	if s, err := l.Session(t.Context(), me(), id); err != nil || s.RunCount != 2 || s.Title == "" {
		t.Errorf("%+v, %v", s, err)
	}
	other := stromboli.Principal{Tenant: "other"}
	if _, err := l.DeleteSession(t.Context(), other, id); !errors.Is(err, stromboli.NotFound) {
		t.Errorf("another tenant's: %v", err)
	}
	for _, name := range []string{"", "a/b", "..", strings.Repeat("x", 65)} {
		if _, err := l.DeleteSession(t.Context(), me(), name); !errors.Is(err, stromboli.Invalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	s, err := l.DeleteSession(t.Context(), me(), strings.ToUpper(id))
	if err != nil || s.ID != id {
		t.Fatal(s, err)
	}
	l.gone(id, first.ID, second.ID)
	if _, err := l.DeleteSession(t.Context(), me(), id); !errors.Is(err, stromboli.NotFound) {
		t.Errorf("again: %v", err)
	}
	// The id is free again, and begins with nothing.
	again := l.wait(l.submit(`ls; result "$how"`, func(s *stromboli.RunSpec) { s.Claude.SessionID = id }).ID)
	if want(t, again, stromboli.Completed, ""); again.SessionID != id || again.Outcome.Output != "new" {
		t.Errorf("%s %q", again.SessionID, again.Outcome.Output)
	}
}

// The server dies at each write of a deletion: afterwards the session is as it
// was, or gone for everybody and soon removed.
func TestDeleteSessionDeathAtEachWrite(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range []struct {
		dieAt        int
		before, kept bool
	}{{1, true, true}, {1, false, false}, {2, true, false}, {2, false, false}} {
		l := w.start(options{})
		run := l.wait(l.submit(`echo x > made; result one`).ID)
		l.empty()
		l.stop()
		l = w.start(options{faults: &faults{dieAt: c.dieAt, before: c.before}})
		if _, err := l.DeleteSession(t.Context(), me(), run.SessionID); err == nil {
			t.Errorf("%+v: no error", c)
		}
		l.stop()

		l = w.start(options{})
		if c.kept {
			if got := l.wait(l.submit(`result "$how"`, resume(run.SessionID)).ID); got.Outcome.Output != "resume" {
				t.Errorf("%+v: %q", c, got.Outcome.Output)
			}
			l.stop()
			continue
		}
		if _, err := l.Session(t.Context(), me(), run.SessionID); !errors.Is(err, stromboli.NotFound) {
			t.Errorf("%+v: %v", c, err)
		}
		l.eventually("the session is removed", func() bool {
			list, err := l.store.DeletedSessions(t.Context())
			return err == nil && len(list) == 0
		})
		l.gone(run.SessionID, run.ID)
		l.stop()
	}
}

func TestImportSession(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{})
	const id = "0b9e1c1e-6f0c-4e39-9d5c-2f6f3f1f8a10"
	const text = `{"type":"user","uuid":"u1","sessionId":"` + id + `","message":{"role":"user","content":"What was it?"}}` + "\n" +
		`{"type":"assistant","uuid":"a1","message":{"role":"assistant","content":[{"type":"text","text":"That."}]}}` + "\n"
	leftovers := func() string {
		entries, _ := os.ReadDir(filepath.Join(w.data, "blobs", "imports"))
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return strings.Join(names, " ")
	}
	for _, c := range []struct {
		name string
		in   io.Reader
		want error
	}{
		{"a b", strings.NewReader(text), stromboli.Invalid},
		{"", strings.NewReader(""), stromboli.Invalid},
		{"", strings.NewReader(text + "no JSON\n{}"), stromboli.Invalid},
		{"x", strings.NewReader("no JSON\n{}"), stromboli.Invalid},
		{"", io.MultiReader(strings.NewReader(text), iotest.ErrReader(io.ErrUnexpectedEOF)), io.ErrUnexpectedEOF},
		{id, io.MultiReader(strings.NewReader(text), strings.NewReader(strings.Repeat(text, 9000)), iotest.ErrReader(io.ErrUnexpectedEOF)), io.ErrUnexpectedEOF},
	} {
		if s, err := l.ImportSession(t.Context(), me(), c.name, c.in); !errors.Is(err, c.want) {
			t.Errorf("%q: %+v, %v", c.name, s, err)
		}
	}
	if left := leftovers(); left != "" {
		t.Errorf("refused transcripts are left: %s", left)
	}

	s, err := l.ImportSession(t.Context(), me(), "", strings.NewReader(text))
	if err != nil || s.ID != id || s.Title != "What was it?" {
		t.Fatal(s, err)
	}
	if _, err := l.ImportSession(t.Context(), me(), "", strings.NewReader(text)); !errors.Is(err, stromboli.SessionExists) {
		t.Errorf("again: %v", err)
	}
	aliased, err := l.ImportSession(t.Context(), me(), "nightly", strings.NewReader(`{"type":"user"}`))
	if err != nil || aliased.Alias != "nightly" || aliased.ID == "" {
		t.Fatal(aliased, err)
	}
	if _, err := l.ImportSession(t.Context(), me(), "nightly", strings.NewReader(`{"type":"user"}`)); !errors.Is(err, stromboli.SessionExists) {
		t.Errorf("the alias again: %v", err)
	}
	if left := leftovers(); strings.Count(left, " ") != 1 {
		t.Errorf("transcripts: %s", left)
	}
	page, err := l.Messages(t.Context(), me(), id, 1, 10)
	if err != nil || page.Total != 2 || page.Messages[0].Content.Content[0].Text != "That." {
		t.Errorf("%+v, %v", page, err)
	}
	run := l.wait(l.submit(`result "$how $(wc -l < "$log")"`, resume(id)).ID)
	if want(t, run, stromboli.Completed, ""); run.Outcome.Output != "resume 3" {
		t.Errorf("resumed: %q", run.Outcome.Output)
	}
	if _, err := l.DeleteSession(t.Context(), me(), id); err != nil {
		t.Fatal(err)
	}
	l.gone(id, run.ID)
	if _, err := l.DeleteSession(t.Context(), me(), "nightly"); err != nil || leftovers() != "" {
		t.Errorf("%v; transcripts: %s", err, leftovers())
	}
}

// Who comes late to a deletion leaves the session alone that has the id by then.
func TestDeleteSessionTwiceAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := &faults{}
	l := w.start(options{faults: f})
	id := l.wait(l.submit(`echo old > made; result one`).ID).SessionID
	var inner atomic.Bool
	f.mu.Lock()
	f.after = func(op string) {
		if op != "delete session" || inner.Swap(true) {
			return
		}
		if _, err := l.DeleteSession(t.Context(), me(), id); err != nil {
			t.Error(err)
		}
		l.wait(l.submit(`echo new > made; result two`, func(s *stromboli.RunSpec) { s.Claude.SessionID = id }).ID)
	}
	f.mu.Unlock()
	if _, err := l.DeleteSession(t.Context(), me(), id); err != nil {
		t.Fatal(err)
	}
	if run := l.wait(l.submit(`result "$how $(cat made)"`, resume(id)).ID); run.Outcome.Output != "resume new" {
		t.Errorf("the new session answers %q: %s", run.Outcome.Output, run.Outcome.Error)
	}
}
