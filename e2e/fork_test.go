package e2e_test

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
)

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

// sessionFork: a fork begins as a copy, and from then on neither sees the other.
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
