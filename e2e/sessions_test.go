package e2e_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/modelstub"
)

// inSession is a run that goes on with a session.
func inSession(id string, in stromboli.RunSpec) stromboli.RunSpec {
	in.Claude.SessionID, in.Claude.Resume = id, true
	return in
}

// transcripts are the session's saved transcripts.
func (s *server) transcripts(t *testing.T, session string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.data, "blobs", "transcripts", session, "*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestSessions: every run has a session, which keeps its conversation and its
// files; resuming works in a fresh sandbox, after a restart of the server, and
// when nothing but the saved transcript is left.
func TestSessions(t *testing.T) {
	s := start(t)
	first := s.do(t, keyed("first", bash("echo kept > $HOME/mine; echo kept > made; echo lost > /tmp/gone"), text("the magic word is xyzzy")))
	first.want(t, stromboli.Completed, "")
	id := first.SessionID
	if len(id) != 36 || len(s.transcripts(t, id)) != 1 {
		t.Fatalf("session %q, transcripts %v", id, s.transcripts(t, id))
	}

	second := s.do(t, inSession(id, keyed("second", bash("cat $HOME/mine made; test ! -e /tmp/gone && echo no tmp"), text("plugh"))))
	second.want(t, stromboli.Completed, "")
	all := s.requests(t, "second")
	if !strings.Contains(all[0].raw, "the magic word is xyzzy") {
		t.Error("the model didn't see the conversation so far")
	}
	if got, failed := all[len(all)-1].toolResult(); failed || !strings.Contains(got, `kept\nkept\nno tmp`) {
		t.Errorf("the files of the run before: %s", got)
	}
	if second.SessionID != id {
		t.Errorf("the session became %s", second.SessionID)
	}
	if u := second.Usage; u == nil || u.OutputTokens > first.Usage.OutputTokens+50 || u.InputTokens == 0 {
		t.Errorf("usage is not this run's alone: %+v after %+v", u, first.Usage)
	}
	if n := len(s.transcripts(t, id)); n != 1 {
		t.Errorf("%d versions of the transcript are kept", n)
	}

	// Another server, and a home that is gone: the saved transcript is the truth.
	s.kill()
	if err := os.RemoveAll(filepath.Join(s.data, "sessions", id, "home")); err != nil {
		t.Fatal(err)
	}
	s.up()
	s.do(t, inSession(id, keyed("third", text("still here")))).want(t, stromboli.Completed, "")
	if q := s.requests(t, "third")[0]; !strings.Contains(q.raw, "xyzzy") || !strings.Contains(q.raw, "plugh") {
		t.Error("the conversation didn't survive the loss of the home")
	}

	t.Run("sandbox killed", func(t *testing.T) { sessionSandboxKilled(t, s, id) })
	t.Run("conflicts", func(t *testing.T) { sessionConflicts(t, s, id) })
	t.Run("chosen id", func(t *testing.T) {
		const mine = "0b9e1c1e-6f0c-4e39-9d5c-2f6f3f1f8a10"
		in := spec(text("named"))
		in.Claude.SessionID = mine
		if r := s.do(t, in); r.SessionID != mine || r.Status != stromboli.Completed {
			t.Errorf("%s %q in %s", r.Status, r.Error, r.SessionID)
		}
		s.send(t, "POST", "/run", specJSON(t, in)).refused(t, 409, "session_exists", "")
	})
	t.Run("never began", func(t *testing.T) {
		// A session whose only run was cancelled before the agent said anything
		// has no conversation; resuming it begins one.
		gone := s.submit(t, spec(text("never said")))
		if err := s.c.Cancel(s.ctx(), gone); err != nil {
			t.Fatal(err)
		}
		r := s.await(t, gone)
		r.want(t, stromboli.Cancelled, stromboli.ReasonRequest)
		r = s.do(t, inSession(r.SessionID, spec(text("begun at last"))))
		r.want(t, stromboli.Completed, "")
		if r.Output != "begun at last" {
			t.Errorf("the output is %q", r.Output)
		}
	})
}

// sessionSandboxKilled removes a sandbox in mid-run by the engine's own means:
// the run is over, and what it had said is not lost.
func sessionSandboxKilled(t *testing.T, s *server, id string) {
	run := s.submit(t, inSession(id, keyed("killed", modelstub.Step{
		Text: "last words before the axe", ToolUse: bash("echo axe; " + stayCommand("session-killed")).ToolUse,
	})))
	box := s.sandboxOf(t, run)
	waitFor(t, "the tool", func() bool { return processesLike("session-killed") > 0 })
	home := filepath.Join(s.data, "sessions", id, "home")
	waitFor(t, "the CLI to write its transcript", func() bool { return strings.Contains(readAll(t, home, id), "before the axe") })
	if err := suite.engine.Remove(s.ctx(), "stromboli-"+box); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	r := s.await(t, run)
	r.want(t, stromboli.Crashed, stromboli.ReasonLost)
	if d := time.Since(begin); d > 20*time.Second {
		t.Errorf("it took %s to notice", d)
	}
	if r.CrashInfo == nil || !strings.Contains(r.CrashInfo.PartialOutput, "before the axe") {
		t.Errorf("crash_info is %+v", r.CrashInfo)
	}
	if err := os.RemoveAll(home); err != nil {
		t.Fatal(err)
	}
	s.do(t, inSession(id, keyed("after", text("back again")))).want(t, stromboli.Completed, "")
	if q := s.requests(t, "after")[0]; !strings.Contains(q.raw, "before the axe") || !strings.Contains(q.raw, "xyzzy") {
		t.Error("the killed run's part of the conversation is lost")
	}
}

// readAll joins the session's transcripts in a home; parts that come and go
// are left out.
func readAll(t *testing.T, home, id string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(home, ".claude", "projects", "*", id+".jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, f := range files {
		b, _ := os.ReadFile(f)
		all.Write(b)
	}
	return all.String()
}

func sessionConflicts(t *testing.T, s *server, id string) {
	run := s.submit(t, inSession(id, spec(bash(stayCommand("session-busy")))))
	again := specJSON(t, inSession(id, spec(text("me too"))))
	for _, path := range []string{"/run", "/run/async", "/run/stream"} {
		s.send(t, "POST", path, again).refused(t, 409, "session_busy", "")
	}
	s.send(t, "GET", "/run/stream?prompt=x&session_id="+id, "").refused(t, 409, "session_busy", "")
	if err := s.c.Cancel(s.ctx(), run); err != nil {
		t.Fatal(err)
	}
	s.await(t, run).want(t, stromboli.Cancelled, stromboli.ReasonRequest)
	s.send(t, "POST", "/run", specJSON(t, inSession("00000000-0000-4000-8000-000000000000", spec(text("x"))))).refused(t, 404, "not_found", "")
	in := spec(text("x"))
	in.Claude.SessionID = id
	s.send(t, "POST", "/run", specJSON(t, in)).refused(t, 409, "session_exists", "")
}

// TestSessionHomeTampered: the agent owns its home and may make anything of it.
// The server is not led out of it, every run ends, and the session goes on.
func TestSessionHomeTampered(t *testing.T) {
	s := start(t, "STROMBOLI_RUNS_MAX=4")
	secret := filepath.Join(s.dir, "secret.jsonl") // stands for any file of the host
	if err := os.WriteFile(secret, []byte(`{"type":"user","secret":"of the host"}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := etc(t)
	// The CLI may be writing there at the same time.
	const mine = `until f=$(ls $HOME/.claude/projects/*/$CLAUDE_CODE_SESSION_ID.jsonl); do sleep 0.05; done; d=$(dirname $f); `
	var tampered []fleetRun
	sessions := map[string]string{}
	for _, c := range []struct {
		name, command string
		saved         bool
	}{
		{"projects is a link to /etc", `until rm -rf $HOME/.claude/projects && ln -sT /etc $HOME/.claude/projects; do :; done`, false},
		{".claude is a link to /", `until rm -rf $HOME/.claude && ln -sT / $HOME/.claude; do :; done`, false},
		{"the project is a link to /etc", mine + `until mv -T $d $HOME/away && ln -sT /etc $d; do :; done`, false},
		{"the transcript is a link", mine + `ln -sfT ` + secret + ` $f`, false},
		{"a fifo with the transcript's name", mine + `mkdir $HOME/.claude/projects/0 && mkfifo $HOME/.claude/projects/0/$CLAUDE_CODE_SESSION_ID.jsonl`, true},
		{"a directory with its name", mine + `rm $f && mkdir -p $f/x && chmod 0 $f`, false},
		{"links in the place of what is put", `ln -s /etc/passwd $HOME/.claude/.stromboli-transcript; mkdir -p $HOME/.claude/projects/stromboli/$CLAUDE_CODE_SESSION_ID.jsonl/x`, true},
		{"a home that is closed", `until rm -rf $HOME/.claude $HOME/.claude.json; do :; done; touch $HOME/.claude; chmod 0 $HOME`, false},
	} {
		in := spec(bash(c.command+"; echo rc=$?"), text("tampered"))
		in.Claude.Timeout = stromboli.Duration(45 * time.Second)
		tampered = append(tampered, fleetRun{c.name, in, func(t *testing.T, r endedRun) {
			if r.Status != stromboli.Completed || r.Output != "tampered" {
				t.Errorf("%s %s: %s", r.Status, r.Reason, r.Error)
			}
			if r.warned("transcript_not_saved") == c.saved {
				t.Errorf("warnings: %v", r.Warnings)
			}
			sessions[c.name] = r.SessionID
		}})
	}
	s.fleet(t, tampered)
	var resumed []fleetRun
	for name, id := range sessions {
		resumed = append(resumed, fleetRun{"resume: " + name, inSession(id, spec(text("goes on"))), func(t *testing.T, r endedRun) {
			if r.Status != stromboli.Completed || r.Output != "goes on" {
				t.Errorf("%s %s: %s", r.Status, r.Reason, r.Error)
			}
		}})
	}
	s.fleet(t, resumed)
	if after := etc(t); after != before {
		t.Errorf("/etc of the host was %s, is %s", before, after)
	}
	err := filepath.WalkDir(filepath.Join(s.data, "blobs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if b, err := os.ReadFile(path); err != nil || strings.Contains(string(b), "of the host") || strings.Contains(string(b), "root:x:0") {
			t.Errorf("%s holds a file of the host's, or: %v", path, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// etc is what would change in the host's /etc if the server wrote there.
func etc(t *testing.T) string {
	t.Helper()
	var names []string
	entries, err := os.ReadDir("/etc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	info, err := os.Stat("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(names, " ") + info.ModTime().String()
}
