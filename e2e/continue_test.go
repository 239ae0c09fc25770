package e2e_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/client"
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

// TestForkSurvives: the server is killed while it makes a fork. The source
// stays as it was, and the next server brings the fork to its end.
func TestForkSurvives(t *testing.T) {
	s := start(t)
	first := s.do(t, spec(bash("for i in $(seq 400); do head -c 50000 /dev/urandom > f$i; done; echo made"), text("the word is plugh")))
	first.want(t, stromboli.Completed, "")
	before := s.sessionTree(t, first.SessionID)
	for i := range 3 {
		key := "fork-killed-" + string(rune('a'+i))
		id := s.submit(t, forked(first.SessionID, keyed(key, bash("ls | wc -l; echo changed > f1"), text("forked"))))
		waitFor(t, "the copy to be in work", func() bool {
			copies, _ := filepath.Glob(filepath.Join(s.data, "sb", "*", "copy", "workspace", "f*"))
			sessions, _ := os.ReadDir(filepath.Join(s.data, "sessions"))
			return len(copies) > 50*i || len(sessions) > i+1
		})
		s.kill()
		if after := s.sessionTree(t, first.SessionID); after != before {
			t.Fatalf("the source changed: %s is %s", before, after)
		}
		s.up()
		r := s.await(t, id)
		r.want(t, stromboli.Completed, "")
		all := s.requests(t, key)
		if got, failed := all[len(all)-1].toolResult(); failed || !strings.Contains(got, "400") || !strings.Contains(all[0].raw, "plugh") {
			t.Errorf("the fork's agent saw %q", got)
		}
	}
	if after := s.sessionTree(t, first.SessionID); after != before {
		t.Errorf("the source changed: %s is %s", before, after)
	}
}

func forked(id string, in stromboli.RunSpec) stromboli.RunSpec {
	in = inSession(id, in)
	in.Claude.ForkSession = true
	return in
}

// sessionTree is a digest of a session's directories and saved transcript:
// names, rights, owners, times and content.
func (s *server) sessionTree(t *testing.T, id string) string {
	t.Helper()
	h := sha256.New()
	for _, dir := range []string{filepath.Join(s.data, "sessions", id), filepath.Join(s.data, "blobs", "transcripts", id)} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			_, _ = io.WriteString(h, path+info.Mode().String()+info.ModTime().String()+"\x00")
			if info.Mode().IsRegular() {
				b, err := os.ReadFile(path)
				_, _ = h.Write(b)
				return err
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// told reports whether the model was told a text in a run's first request.
func (s *server) told(t *testing.T, key, text string) bool {
	t.Helper()
	return strings.Contains(s.requests(t, key)[0].raw, text)
}

func sessionContinue(t *testing.T, s *server) {
	t.Helper()
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

func sessionFork(t *testing.T, s *server) {
	source := s.do(t, spec(bash("echo source > ~/mine; echo source > made; ln made linked"), text("the word is xyzzy")))
	source.want(t, stromboli.Completed, "")
	id := source.SessionID
	before := s.sessionTree(t, id)

	// Two forks at once, with answers of their own.
	ids := map[string]string{}
	for _, key := range []string{"fork-a", "fork-b"} {
		ids[key] = s.submit(t, forked(id, keyed(key, bash("cat ~/mine made; echo "+key+" | tee ~/mine made"), text("the fork is "+key))))
	}
	sessions := map[string]string{}
	for key, run := range ids {
		r := s.await(t, run)
		r.want(t, stromboli.Completed, "")
		sessions[key] = r.SessionID
		all := s.requests(t, key)
		if got, failed := all[len(all)-1].toolResult(); failed || !strings.Contains(got, `source\nsource\n`+key) {
			t.Errorf("the fork's agent saw %s", got)
		}
		if r.SessionID == id || !s.told(t, key, "the word is xyzzy") || len(s.transcripts(t, r.SessionID)) != 1 {
			t.Errorf("session %s, %d transcripts", r.SessionID, len(s.transcripts(t, r.SessionID)))
		}
		for _, e := range r.events {
			if e.Type == stromboli.EventOutput && strings.Contains(string(e.Data), id) {
				t.Errorf("the CLI still names the source: %s", e.Data)
			}
		}
	}
	if after := s.sessionTree(t, id); after != before {
		t.Error("the source changed")
	}
	// Each goes on by itself, the fork from its saved transcript alone.
	if err := os.RemoveAll(filepath.Join(s.data, "sessions", sessions["fork-a"], "home")); err != nil {
		t.Fatal(err)
	}
	s.do(t, inSession(sessions["fork-a"], keyed("fork-next", text("x")))).want(t, stromboli.Completed, "")
	if !s.told(t, "fork-next", "the word is xyzzy") || !s.told(t, "fork-next", "the fork is fork-a") || s.told(t, "fork-next", "the fork is fork-b") {
		t.Error("the fork's conversation is not its own")
	}
	r := s.do(t, inSession(id, keyed("fork-source", bash("cat ~/mine made linked"), text("x"))))
	r.want(t, stromboli.Completed, "")
	all := s.requests(t, "fork-source")
	if got, _ := all[len(all)-1].toolResult(); !strings.Contains(got, `source\nsource\nsource`) || s.told(t, "fork-source", "the fork is") {
		t.Errorf("the source's agent saw %s", got)
	}
	s.send(t, "POST", "/run", `{"prompt":"x","claude":{"fork_session":true}}`).refused(t, 400, "invalid_request", "claude.fork_session")
}

func sessionNoPersistence(t *testing.T, s *server) {
	const word = "evanescent-secret"
	in := keyed("gone", bash("echo "+word+" | tee ~/mine made; ls ~/.claude/projects/*/*.jsonl || echo no transcript"), text("the word is "+word))
	in.Claude.NoPersistence = true
	r := s.do(t, in)
	r.want(t, stromboli.Completed, "")
	all := s.requests(t, "gone")
	if got, _ := all[len(all)-1].toolResult(); !strings.Contains(got, "no transcript") || len(r.Warnings) > 0 {
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

func sessionAlias(t *testing.T, s *server) {
	const alias = "Nightly.build_7"
	in := keyed("alias-first", text("the word is alias"))
	in.Claude.SessionID = alias
	sub, err := s.c.RunAsync(s.ctx(), in)
	if err != nil || sub.SessionAlias != alias || len(sub.SessionID) != 36 {
		t.Fatalf("%+v, %v", sub, err)
	}
	first := s.await(t, sub.JobID)
	if first.want(t, stromboli.Completed, ""); first.SessionID != sub.SessionID || first.SessionAlias != alias {
		t.Errorf("%s, %s", first.SessionID, first.SessionAlias)
	}
	s.send(t, "POST", "/run", specJSON(t, in)).refused(t, 409, "session_exists", "")

	o := s.send(t, "POST", "/run", specJSON(t, inSession(alias, keyed("alias-second", text("x"))))).want(t, 200).object(t)
	if o["session_id"] != first.SessionID || o["session_alias"] != alias || !s.told(t, "alias-second", "the word is alias") {
		t.Errorf("resumed by alias: %v", o)
	}
	// By the id, in whatever case; the case of an alias counts.
	r := s.do(t, inSession(strings.ToUpper(first.SessionID), spec(text("x"))))
	if r.SessionID != first.SessionID || r.SessionAlias != alias {
		t.Errorf("resumed by id: %s, %q", r.SessionID, r.SessionAlias)
	}
	s.send(t, "POST", "/run", specJSON(t, inSession(strings.ToLower(alias), spec(text("x"))))).refused(t, 404, "not_found", "")

	// The form for an EventSource makes a session or goes on with it.
	q := url.Values{"session_id": {"stream-alias"}, "prompt": {keyed("alias-stream-1", text("the word is streamed")).Prompt}}
	var done struct {
		SessionID    string `json:"session_id"`
		SessionAlias string `json:"session_alias"`
	}
	var ids []string
	for range 2 {
		blocks := sseBlocks(t, s.send(t, "GET", "/run/stream?"+q.Encode(), "").want(t, 200).body)
		if err := json.Unmarshal([]byte(blocks[len(blocks)-1].data), &done); err != nil || done.SessionAlias != "stream-alias" {
			t.Errorf("done is %+v, %v", blocks[len(blocks)-1], err)
		}
		ids = append(ids, done.SessionID)
		q.Set("prompt", keyed("alias-stream-2", text("x")).Prompt)
	}
	if ids[0] != ids[1] || !s.told(t, "alias-stream-2", "the word is streamed") {
		t.Errorf("two sessions have one alias: %v", ids)
	}
	page, err := s.c.Jobs(s.ctx(), client.Filter{Kind: "all", SessionID: "stream-alias"})
	if err != nil || len(page.Jobs) != 2 {
		t.Errorf("%d runs of the alias, %v", len(page.Jobs), err)
	}
	// A fork has no alias: it is the source's.
	if r := s.do(t, forked(alias, spec(text("x")))); r.SessionAlias != "" || r.SessionID == first.SessionID || r.Status != stromboli.Completed {
		t.Errorf("fork: %s %q %s", r.SessionID, r.SessionAlias, r.Status)
	}

	// Many at once: one makes it.
	in = spec(text("x"))
	in.Claude.SessionID = "raced"
	var mu sync.Mutex
	codes := map[string]int{}
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			_, err := s.c.RunAsync(s.ctx(), in)
			mu.Lock()
			defer mu.Unlock()
			codes[string(stromboli.CodeOf(err))]++
		})
	}
	wg.Wait()
	if codes["session_exists"] != 5 {
		t.Errorf("answers: %v", codes)
	}
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
