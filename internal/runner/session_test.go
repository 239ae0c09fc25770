package runner_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/tomblancdev/stromboli"
)

func fork(session string) func(*stromboli.RunSpec) {
	return func(s *stromboli.RunSpec) { resume(session)(s); s.Claude.ForkSession = true }
}

func noPersistence(s *stromboli.RunSpec) { s.Claude.NoPersistence = true }

func goOn(s *stromboli.RunSpec) { s.Claude.Continue = true }

func (w *world) sessionPath(id string) string { return filepath.Join(w.data, "sessions", id) }

// tree is what a directory holds: names, rights, owners, times and content.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var all strings.Builder
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		must(t, err)
		st := info.Sys().(*syscall.Stat_t)
		fmt.Fprintf(&all, "%s %s %d:%d %s", strings.TrimPrefix(path, dir), info.Mode(), st.Uid, st.Gid, info.ModTime())
		if info.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			must(t, err)
			fmt.Fprintf(&all, " %q", b)
		}
		all.WriteByte('\n')
		return nil
	}))
	return all.String()
}

// saved is the session's stored transcripts, by name and content.
func (w *world) saved(t *testing.T, id string) string {
	t.Helper()
	if _, err := os.Stat(filepath.Join(w.data, "blobs", "transcripts", id)); errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	return tree(t, filepath.Join(w.data, "blobs", "transcripts", id))
}

func TestFork(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{max: 4})
	source := l.wait(l.submit(`echo source > "$HOME/file"; echo ws > made; ln made other; ln -s /etc/passwd link; result one`).ID).SessionID
	before, blobs := tree(t, w.sessionPath(source)), w.saved(t, source)

	// Several at once, each a session of its own.
	const script = `cat "$HOME/file" made > /dev/null || exit 9; echo fork > "$HOME/file"; echo fork > made; result "$how $(wc -l < "$log") $id"`
	var forks []stromboli.Run
	for range 3 {
		forks = append(forks, l.submit(script, fork(source)))
	}
	for _, f := range forks {
		run := l.wait(f.ID)
		want(t, run, stromboli.Completed, "")
		if run.Outcome.Output != "fork 2 "+run.SessionID || run.SessionID == source {
			t.Errorf("output %q in session %s", run.Outcome.Output, run.SessionID)
		}
		other, err := os.ReadFile(filepath.Join(w.sessionPath(run.SessionID), "workspace", "other"))
		if err != nil || string(other) != "fork\n" {
			t.Errorf("the copy's hard link holds %q, %v", other, err)
		}
	}
	if after := tree(t, w.sessionPath(source)); after != before {
		t.Errorf("the source was\n%sis\n%s", before, after)
	}
	if after := w.saved(t, source); after != blobs {
		t.Errorf("the source's transcript was\n%sis\n%s", blobs, after)
	}

	// The fork goes on by itself, whatever becomes of its home and its source.
	first := forks[0].SessionID
	must(t, os.RemoveAll(filepath.Join(w.sessionPath(first), "home")))
	must(t, os.RemoveAll(w.sessionPath(source)))
	if run := l.wait(l.submit(`result "$how $(wc -l < "$log")"`, resume(first)).ID); run.Outcome.Output != "resume 3" {
		t.Errorf("resumed: %s, %q", run.Status, run.Outcome.Output)
	}
	// A fork of a fork, by continue: the newest conversation here.
	if run := l.wait(l.submit(`result "$how $(wc -l < "$log")"`, goOn, func(s *stromboli.RunSpec) { s.Claude.ForkSession = true }).ID); run.Outcome.Output != "fork 4" {
		t.Errorf("fork of the newest: %s, %q, %s", run.Status, run.Outcome.Output, run.Outcome.Error)
	}
	if _, err := l.Submit(t.Context(), me(), submission("x", fork("0b9e1c1e-6f0c-4e39-9d5c-2f6f3f1f8a10"))); !errors.Is(err, stromboli.NotFound) {
		t.Errorf("fork of nothing: %v", err)
	}
}

// A fork waits in the queue: its source can't change meanwhile, and a fork
// that is cancelled leaves nothing.
func TestForkHoldsItsSource(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{max: 1})
	source := l.wait(l.submit(`result one`).ID).SessionID
	blocker := l.submit(`read -r x; exit`)
	first, second := l.submit(`result "$how"`, fork(source)), l.submit(`result never`, fork(source))
	if _, err := l.Submit(t.Context(), me(), submission("x", resume(source))); !errors.Is(err, stromboli.SessionBusy) || !strings.Contains(err.Error(), "to be copied by run-") {
		t.Errorf("resumed: %v", err)
	}
	l.cancel(second.ID)
	if _, err := l.store.GetSession(t.Context(), "default", second.SessionID); !errors.Is(err, stromboli.NotFound) {
		t.Errorf("the session of the fork that was cancelled: %v", err)
	}
	l.until(blocker.ID, stromboli.PhaseGenerating)
	l.cancel(blocker.ID)
	if run := l.wait(first.ID); run.Outcome.Output != "fork" {
		t.Errorf("%s %q", run.Status, run.Outcome.Error)
	}
	want(t, l.wait(l.submit(`result two`, resume(source)).ID), stromboli.Completed, "")

	// A source that never spoke has nothing to fork but its files.
	never := l.wait(l.submit(`rm "$log"; exit 1`).ID)
	if run := l.wait(l.submit(`result "$how"`, fork(never.SessionID)).ID); run.Outcome.Output != "new" {
		t.Errorf("%s %q %s", run.Status, run.Outcome.Output, run.Outcome.Error)
	}
}

// The server dies at each of its writes while it makes a fork: the source
// stays as it was, and the next server brings the fork to its end.
func TestForkDeathAtEachWrite(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{})
	source := l.wait(l.submit(`echo source > made; result one`).ID).SessionID
	l.stop()
	before, blobs := tree(t, w.sessionPath(source)), w.saved(t, source)
	for at, more := 1, true; more; at++ {
		for _, first := range []bool{true, false} {
			var id string
			id, more = w.dies(at, first, `cat made; echo fork > made; result "$how $(wc -l < "$log")"`, fork(source))
			l := w.start(options{})
			run := l.wait(id)
			want(t, run, stromboli.Completed, "")
			if n := w.starts(run); n != 2 || run.Outcome.Output != "fork 2" { // the source's start is in the copy
				t.Errorf("write %d, before %v: %d starts, output %q", at, first, n, run.Outcome.Output)
			}
			if after := tree(t, w.sessionPath(source)) + w.saved(t, source); after != before+blobs {
				t.Errorf("write %d, before %v: the source was\n%sis\n%s", at, first, before+blobs, after)
			}
			if session, err := l.store.GetSession(t.Context(), "default", run.SessionID); err != nil || session.TranscriptVersion != 1 || session.ForkOf != "" {
				t.Errorf("write %d, before %v: session %+v, %v", at, first, session, err)
			}
			l.empty()
			l.stop()
		}
		if at > 30 {
			t.Fatal("a run has no end of writes")
		}
	}
}

func TestNoPersistence(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{})
	run := l.submit(`echo x > made; result "$how"`, noPersistence)
	l.ended(run.ID)
	if got := l.get(run.ID); got.Outcome.Output != "new" || len(got.Outcome.Warnings) > 0 {
		t.Errorf("%s %q %v", got.Status, got.Outcome.Output, got.Outcome.Warnings)
	}
	if _, err := l.Submit(t.Context(), me(), submission("x", resume(run.SessionID))); !errors.Is(err, stromboli.NotFound) {
		t.Errorf("resumed: %v", err)
	}
	if _, err := l.Submit(t.Context(), me(), submission("x", goOn)); !errors.Is(err, stromboli.NotFound) {
		t.Errorf("continued: %v", err)
	}
	l.empty()
	if _, err := os.Stat(w.sessionPath(run.SessionID)); !errors.Is(err, fs.ErrNotExist) || w.saved(t, run.SessionID) != "" {
		t.Errorf("the session's files are left: %v", err)
	}

	// In a session that exists, files stay and the conversation doesn't grow.
	kept := l.wait(l.submit(`result one`).ID).SessionID
	blobs := w.saved(t, kept)
	aside := l.wait(l.submit(`echo aside > made; result "$how $(wc -l < "$log")"`, resume(kept), noPersistence).ID)
	if want(t, aside, stromboli.Completed, ""); aside.Outcome.Output != "resume 2" || w.saved(t, kept) != blobs {
		t.Errorf("output %q; the transcript was\n%sis\n%s", aside.Outcome.Output, blobs, w.saved(t, kept))
	}
	if run := l.wait(l.submit(`result "$(wc -l < "$log") $(cat made)"`, resume(kept)).ID); run.Outcome.Output != "2 aside" {
		t.Errorf("afterwards: %q", run.Outcome.Output)
	}
	// A fork that isn't kept: nothing but its answer is left.
	before := tree(t, w.sessionPath(kept))
	gone := l.submit(`echo fork > made; result "$how $(wc -l < "$log")"`, fork(kept), noPersistence)
	l.ended(gone.ID)
	if out := l.get(gone.ID).Outcome; out.Output != "fork 3" || tree(t, w.sessionPath(kept)) != before {
		t.Errorf("%q %q", out.Output, out.Error)
	}
	l.empty()
	if _, err := os.Stat(w.sessionPath(gone.SessionID)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the fork's files are left: %v", err)
	}
}

// ended waits for the end of a run whose session goes with it.
func (l *life) ended(id string) {
	l.w.t.Helper()
	l.eventually("the run has ended", func() bool { return l.get(id).Status.Terminal() })
}

func TestContinue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{})
	at := func(dir string) func(*stromboli.RunSpec) { return func(s *stromboli.RunSpec) { s.Workdir = dir } }
	old := l.wait(l.submit(`result one`, at("/srv/a")).ID)
	elsewhere := l.wait(l.submit(`result two`, at("/srv/b")).ID)
	// Whatever the id says, even nonsense.
	run := l.wait(l.submit(`result "$how"`, at("/srv/a"), goOn, func(s *stromboli.RunSpec) { s.Claude.SessionID = "../x" }).ID)
	if run.SessionID != old.SessionID || run.Outcome.Output != "resume" {
		t.Errorf("continued %s, %q; want %s", run.SessionID, run.Outcome.Output, old.SessionID)
	}
	if run := l.wait(l.submit(`result "$how"`, at("/srv/./b/"), goOn).ID); run.SessionID != elsewhere.SessionID {
		t.Errorf("continued %s, want %s", run.SessionID, elsewhere.SessionID)
	}
	// Two at once: one has it.
	var won, busy atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			switch _, err := l.Submit(t.Context(), me(), submission(`read -r x; exit`, at("/srv/a"), goOn)); {
			case err == nil:
				won.Add(1)
			case errors.Is(err, stromboli.SessionBusy):
				busy.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	if wg.Wait(); won.Load() != 1 || busy.Load() != 7 {
		t.Errorf("%d have the session, %d are told that it is busy", won.Load(), busy.Load())
	}
}

// What the session's files became between two runs is met with an answer.
func TestSessionDeletedUnderneath(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{})
	id := l.wait(l.submit(`result one`).ID).SessionID
	must(t, os.RemoveAll(filepath.Join(w.data, "blobs", "transcripts", id)))
	if run := l.wait(l.submit(`result "$how"`, resume(id)).ID); run.Outcome.Output != "resume" {
		t.Errorf("from the home's copy: %s %q %q", run.Status, run.Outcome.Output, run.Outcome.Error)
	}
	must(t, os.RemoveAll(filepath.Join(w.data, "blobs", "transcripts", id)))
	must(t, os.RemoveAll(w.sessionPath(id)))
	run := l.wait(l.submit(`result x`, resume(id)).ID)
	if want(t, run, stromboli.Failed, stromboli.ReasonSession); !strings.Contains(run.Outcome.Error, "transcript is gone") {
		t.Errorf("error %q", run.Outcome.Error)
	}
	run = l.submit(`result x`, fork(id))
	l.ended(run.ID)
	want(t, l.get(run.ID), stromboli.Failed, stromboli.ReasonSession)
	if _, err := l.store.GetSession(t.Context(), "default", run.SessionID); !errors.Is(err, stromboli.NotFound) {
		t.Errorf("a fork that could not be made: %v", err)
	}
	if entries, err := os.ReadDir(filepath.Join(w.data, "sessions")); err != nil || len(entries) != 1 {
		t.Errorf("%d sessions are left, %v", len(entries), err)
	}
	l.empty()
}

// The server dies around the write that ends a run: of its session's transcripts
// one is left.
func TestDeathLeavesOneTranscript(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.start(options{})
	session := l.wait(l.submit(`result first`).ID).SessionID
	l.empty()
	l.stop()
	for _, before := range []bool{true, false} {
		f := &faults{}
		l := w.start(options{faults: f})
		f.mu.Lock()
		f.fail = func(op string) error { // f.mu is held: the next write is this one
			if op == "finish" {
				f.dieAt, f.before = f.writes, before
				if before {
					f.dead = true
					f.cancel()
					return errInjected
				}
			}
			return nil
		}
		f.mu.Unlock()
		id := l.submit(`result more`, resume(session)).ID
		l.eventually("the server died", func() bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.dead
		})
		l.stop()
		if saved := w.saved(t, session); strings.Count(saved, ".jsonl") != 2 {
			t.Errorf("before %v: the death left\n%s", before, saved)
		}
		l = w.start(options{})
		l.wait(id)
		l.eventually("one transcript is left", func() bool { return strings.Count(w.saved(t, session), ".jsonl") == 1 })
		run := l.wait(l.submit(`result "$how"`, resume(session)).ID)
		if want(t, run, stromboli.Completed, ""); run.Outcome.Output != "resume" {
			t.Errorf("before %v: output %q", before, run.Outcome.Output)
		}
		l.empty()
		l.stop()
	}
}
