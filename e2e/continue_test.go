package e2e_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/setup"
)

// TestSessionForms: every way to go on with a session, by the real CLI: what
// the model is told shows which conversation it was.
func TestSessionForms(t *testing.T) {
	s := start(t, "STROMBOLI_RUNS_MAX=4")
	t.Run("group", func(t *testing.T) { // they share the machine's waiting times
		for name, test := range map[string]func(*testing.T, *server){
			"continue": sessionContinue, "fork": sessionFork, "no persistence": sessionNoPersistence, "alias": sessionAlias,
			"other workdir and image": sessionMoves, "cut": sessionCut, "two at once": sessionTwoAtOnce,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, s)
			})
		}
	})
	waitFor(t, "the sandboxes to be discarded", func() bool { return len(s.sandboxes()) == 0 })
}

// told reports whether the model was told a text in a run's first request.
func (s *server) told(t *testing.T, key, text string) bool {
	t.Helper()
	return strings.Contains(s.requests(t, key)[0].raw, text)
}

// sessionContinue: what is gone on with is the newest conversation of the place.
func sessionContinue(t *testing.T, s *server) {
	owner := max(os.Geteuid(), 1000)
	one, two := s.volumeOf(t, "continue-one", owner), s.volumeOf(t, "continue-two", owner)
	at := func(dir, workdir string, in stromboli.RunSpec) stromboli.RunSpec {
		in.Workdir = workdir
		if dir != "" {
			in.Podman.Volumes = []string{dir + ":/repo"}
		}
		return in
	}
	goOn := func(in stromboli.RunSpec) stromboli.RunSpec {
		in.Claude.Continue, in.Claude.SessionID = true, "ignored, whatever it says"
		return in
	}
	s.send(t, "POST", "/run", specJSON(t, at(one, "/repo", goOn(spec(text("x")))))).refused(t, 404, "not_found", "")
	old := s.do(t, at(one, "/repo", spec(text("the word is old"))))
	newest := s.do(t, at(one, "/repo", spec(text("the word is newest"))))
	other := s.do(t, at(two, "/repo", spec(text("the word is other"))))
	bare := s.do(t, at("", "/continue/bare", spec(text("the word is bare"))))
	for _, c := range []struct {
		key, dir, workdir string
		want              endedRun
		word              string
	}{
		{"continue-volume", one, "/repo/", newest, "the word is newest"},
		{"continue-other", two, "/repo", other, "the word is other"},
		{"continue-bare", "", "/continue/bare", bare, "the word is bare"},
	} {
		r := s.do(t, at(c.dir, c.workdir, goOn(keyed(c.key, text("going on")))))
		r.want(t, stromboli.Completed, "")
		if r.SessionID != c.want.SessionID || !s.told(t, c.key, c.word) {
			t.Errorf("%s continued %s, want %s; told the word: %v", c.key, r.SessionID, c.want.SessionID, s.told(t, c.key, c.word))
		}
	}
	s.send(t, "POST", "/run", specJSON(t, at(one, "/repo/sub", goOn(spec(text("x")))))).refused(t, 404, "not_found", "")
	// The old one, once it is gone on with, is the most recent again.
	s.do(t, inSession(old.SessionID, at(one, "/repo", spec(text("once more"))))).want(t, stromboli.Completed, "")
	if r := s.do(t, at(one, "/repo", goOn(spec(text("x"))))); r.SessionID != old.SessionID {
		t.Errorf("continued %s, want %s", r.SessionID, old.SessionID)
	}
}

// volumeOf is volume, for tests that share a server.
func (s *server) volumeOf(t *testing.T, name string, owner int) string {
	t.Helper()
	dir := filepath.Join(s.volumes, name)
	err := os.Mkdir(dir, 0o755)
	if os.Geteuid() == 0 {
		err = errors.Join(err, os.Chown(dir, owner, owner))
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// sessionNoPersistence: nothing is left but the answer.
func sessionNoPersistence(t *testing.T, s *server) {
	const word = "evanescent-secret"
	in := keyed("gone", bash("echo "+word+" | tee ~/mine made; ls ~/.claude/projects/*/*.jsonl || echo no transcript"), text("the word is "+word))
	in.Claude.NoPersistence = true
	r := s.do(t, in)
	r.want(t, stromboli.Completed, "")
	all := s.requests(t, "gone")
	if got, _ := all[len(all)-1].toolResult(); !strings.Contains(got, "no transcript") || r.warned("transcript_not_saved") {
		t.Errorf("the agent saw %s; warnings %v", got, r.Warnings)
	}
	s.send(t, "POST", "/run", specJSON(t, inSession(r.SessionID, spec(text("x"))))).refused(t, 404, "not_found", "")
	s.send(t, "POST", "/run", specJSON(t, forked(r.SessionID, spec(text("x"))))).refused(t, 404, "not_found", "")
	waitFor(t, "every file of it to be gone", func() bool {
		return !contains(t, filepath.Join(s.data, "sb"), word) && !contains(t, filepath.Join(s.data, "sessions"), word) &&
			!contains(t, filepath.Join(s.data, "blobs"), word)
	})

	// An aside in a conversation that is kept.
	kept := s.do(t, spec(text("the word is kept")))
	blob, err := os.ReadFile(s.transcripts(t, kept.SessionID)[0])
	if err != nil {
		t.Fatal(err)
	}
	in = inSession(kept.SessionID, keyed("aside", bash("echo aside > made"), text("the word is aside")))
	in.Claude.NoPersistence = true
	r = s.do(t, in)
	if r.want(t, stromboli.Completed, ""); r.SessionID != kept.SessionID || !s.told(t, "aside", "the word is kept") {
		t.Errorf("the aside's session is %s", r.SessionID)
	}
	if after, err := os.ReadFile(s.transcripts(t, kept.SessionID)[0]); err != nil || string(after) != string(blob) {
		t.Errorf("the saved transcript changed, %v", err)
	}
	if contains(t, filepath.Join(s.data, "sessions", kept.SessionID), "the word is aside") {
		t.Error("the home keeps what was said aside")
	}
	s.do(t, inSession(kept.SessionID, keyed("after-aside", bash("cat made"), text("x")))).want(t, stromboli.Completed, "")
	all = s.requests(t, "after-aside")
	if got, _ := all[len(all)-1].toolResult(); s.told(t, "after-aside", "the word is aside") || !strings.Contains(got, "aside") {
		t.Errorf("after the aside the agent saw %s", got)
	}
	in = forked(kept.SessionID, keyed("gone-fork", text("x")))
	in.Claude.NoPersistence = true
	r = s.do(t, in)
	if r.want(t, stromboli.Completed, ""); !s.told(t, "gone-fork", "the word is kept") || r.SessionID == kept.SessionID {
		t.Errorf("the fork's session is %s", r.SessionID)
	}
	s.send(t, "POST", "/run", specJSON(t, inSession(r.SessionID, spec(text("x"))))).refused(t, 404, "not_found", "")
}

// contains reports whether a file below dir holds a text.
func contains(t *testing.T, dir, text string) bool {
	t.Helper()
	found := false
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() { // files come and go
			b, _ := os.ReadFile(path)
			found = found || strings.Contains(string(b), text)
		}
		return nil
	})
	return found
}

// sessionMoves resumes a session under another workdir, for another owner, and
// in an image of another world.
func sessionMoves(t *testing.T, s *server) {
	bashStatic := imageProgram(t, "bash-static", "bash-static")
	busybox := imageProgram(t, "busybox-static", "busybox")
	cfg := setup.Config{CacheDir: suite.cache, Env: os.Environ(), Libc: setup.Musl}
	if _, err := setup.CLI(s.ctx(), cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := setup.MuslLoader(s.ctx(), cfg); err != nil {
		t.Fatal(err)
	}
	image := imageLoad(t, imageRoot(bashStatic, busybox))

	first := s.do(t, spec(bash("echo kept > ~/mine; echo kept > made"), text("the word is moving")))
	first.want(t, stromboli.Completed, "")
	owner := os.Geteuid()
	if owner == 0 {
		owner = 4243
	}
	repo := s.volumeOf(t, "moves", owner)
	for _, c := range []struct {
		key, command, want string
		change             func(*stromboli.RunSpec)
	}{
		{"workdir", "pwd; cat ~/mine made", `/somewhere/else\nkept\nkept`, func(in *stromboli.RunSpec) { in.Workdir = "/somewhere/else" }},
		{"volume", "pwd; cat ~/mine; echo new > ~/mine; ls", `/repo\nkept`, func(in *stromboli.RunSpec) {
			in.Workdir, in.Podman.Volumes = "/repo", []string{repo + ":/repo"}
		}},
		{"musl", "cat ~/mine made; ls /lib", `new\nkept\nld-musl`, func(in *stromboli.RunSpec) { in.Podman.Image = image }},
		{"glibc", "cat ~/mine made; echo $NODE_VERSION", `new\nkept`, func(*stromboli.RunSpec) {}},
	} {
		in := inSession(first.SessionID, keyed("moves-"+c.key, bash(c.command), text("seen "+c.key)))
		c.change(&in)
		r := s.do(t, in)
		r.want(t, stromboli.Completed, "")
		all := s.requests(t, "moves-"+c.key)
		if got, failed := all[len(all)-1].toolResult(); failed || !strings.Contains(got, c.want) || !strings.Contains(all[0].raw, "the word is moving") {
			t.Errorf("%s: the agent saw %s", c.key, got)
		}
	}
	if !s.told(t, "moves-glibc", "seen musl") || !s.told(t, "moves-glibc", "seen volume") {
		t.Error("a part of the conversation was lost on the way")
	}
}

// sessionCut resumes a transcript whose last line is cut, as a machine's
// crash leaves it, and goes on twice.
func sessionCut(t *testing.T, s *server) {
	first := s.do(t, spec(text("the word is whole")))
	blob := s.transcripts(t, first.SessionID)[0]
	b, err := os.ReadFile(blob)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(blob, b[:len(b)-37], 0o600); err != nil {
		t.Fatal(err)
	}
	s.do(t, inSession(first.SessionID, keyed("cut-1", text("the next is here")))).want(t, stromboli.Completed, "")
	s.do(t, inSession(first.SessionID, keyed("cut-2", text("x")))).want(t, stromboli.Completed, "")
	if !s.told(t, "cut-1", "the word is whole") || !s.told(t, "cut-2", "the word is whole") || !s.told(t, "cut-2", "the next is here") {
		t.Error("a part of the conversation is lost")
	}
	// The answer itself is cut: what came before it counts.
	blob = s.transcripts(t, first.SessionID)[0]
	if b, err = os.ReadFile(blob); err != nil {
		t.Fatal(err)
	}
	at := strings.LastIndex(string(b), `"type":"assistant"`)
	if err := os.WriteFile(blob, b[:at], 0o600); err != nil {
		t.Fatal(err)
	}
	s.do(t, inSession(first.SessionID, keyed("cut-3", text("three")))).want(t, stromboli.Completed, "")
	s.do(t, inSession(first.SessionID, keyed("cut-4", text("x")))).want(t, stromboli.Completed, "")
	if !s.told(t, "cut-4", "the word is whole") || !s.told(t, "cut-4", "three") {
		t.Error("a part of the conversation is lost after its last answer was cut")
	}
}

// sessionTwoAtOnce: of several that resume one session at once, one has it.
func sessionTwoAtOnce(t *testing.T, s *server) {
	first := s.do(t, spec(text("one")))
	type answer struct {
		id  string
		err error
	}
	answers := make(chan answer)
	for range 5 {
		go func() {
			sub, err := s.c.RunAsync(s.ctx(), inSession(first.SessionID, spec(bash("sleep 0.3"), text("mine"))))
			answers <- answer{sub.JobID, err}
		}()
	}
	var won []string
	for range 5 {
		switch a := <-answers; {
		case a.err == nil:
			won = append(won, a.id)
		case !errors.Is(a.err, stromboli.SessionBusy):
			t.Error(a.err)
		}
	}
	if len(won) != 1 {
		t.Fatalf("%d have the session", len(won))
	}
	s.await(t, won[0]).want(t, stromboli.Completed, "")
	s.do(t, inSession(first.SessionID, spec(text("free again")))).want(t, stromboli.Completed, "")
}
