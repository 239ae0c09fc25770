package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/client"
)

// program runs the program with the server's environment.
func (s *server) program(args ...string) (string, error) {
	cmd := exec.CommandContext(s.t.Context(), suite.bin, args...)
	cmd.Env = s.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (s *server) mustProgram(args ...string) string {
	s.t.Helper()
	out, err := s.program(args...)
	if err != nil {
		s.t.Fatalf("%v: %v: %s", args, err, out)
	}
	return out
}

// restored is another server with a backup's data.
func restored(t *testing.T, src string, env ...string) *server {
	t.Helper()
	s := prepare(t, env...)
	s.mustProgram("restore", src, "--data-dir", s.data)
	return s
}

// TestBackup: while runs begin, go on and end, and conversations get new transcripts in place
// of old ones, backups are made. A server with one of them answers for every run that there was, ends those that
// had not ended, and leaves the first server's sandboxes alone.
func TestBackup(t *testing.T) {
	s := start(t, "STROMBOLI_RUNS_MAX=4", "STROMBOLI_QUEUE_MAX=50")
	value := "sk-" + canary + "-kept"
	if err := s.c.CreateSecret(s.ctx(), "token", value); err != nil {
		t.Fatal(err)
	}
	stay := spec(bash(`touch /workspace/here; until [ -e /workspace/go ]; do sleep 0.05; done`), text("stayed"))
	staying := s.submit(t, stay)
	box := s.sandboxOf(t, staying)
	s.inTool(t, staying)

	// Two conversations that go on and on.
	var mu sync.Mutex
	ended := map[string]endedRun{}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			session := ""
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				in := keyed(fmt.Sprint(i, n), text(fmt.Sprintf("answer %d of %d", n, i)))
				if in.Claude.SessionID = session; session != "" {
					in.Claude.Resume = true
				}
				run := s.do(t, in)
				session = run.SessionID
				mu.Lock()
				ended[run.ID] = run
				mu.Unlock()
			}
		})
	}
	known := func() map[string]endedRun {
		mu.Lock()
		defer mu.Unlock()
		out := map[string]endedRun{}
		for id, run := range ended {
			out[id] = run
		}
		return out
	}
	var last string
	var before map[string]endedRun
	for i := range 3 {
		waitFor(t, "runs that ended", func() bool { return len(known()) >= i+1 })
		last = filepath.Join(s.dir, fmt.Sprint("backup", i))
		before = known()
		s.mustProgram("backup", last, "--secrets-key", "--sessions")
	}
	waiting := s.submit(t, spec(text("made after the backup")))
	close(stop)
	wg.Wait()
	if out, err := s.program("backup", last); err == nil || !strings.Contains(out, "replaces nothing") {
		t.Errorf("a backup was overwritten: %v, %s", err, out)
	}
	if left, err := filepath.Glob(filepath.Join(s.dir, "*.partial-*")); err != nil || len(left) > 0 {
		t.Errorf("%v, left: %v", err, left)
	}

	other := restored(t, last)
	other.up()
	for id, want := range before {
		got, err := other.c.Job(other.ctx(), id)
		if err != nil {
			t.Errorf("%s: %v", id, err)
			continue
		}
		if got.Status != want.Status || got.Output != want.Output || got.SessionID != want.SessionID {
			t.Errorf("%s: %+v, want %+v", id, got, want.Job)
		}
		if events := other.events(id); len(events) != len(want.events) {
			t.Errorf("%s: %d events of %d", id, len(events), len(want.events))
		}
		if messages := sessionMessages(t, other, want.SessionID); len(messages) == 0 {
			t.Errorf("%s: its session says nothing", id)
		}
	}
	lost := other.await(t, staying)
	lost.want(t, stromboli.Crashed, stromboli.ReasonLost)
	if _, err := other.c.Job(other.ctx(), waiting); err == nil {
		t.Error("a run is there that was made after the backup")
	}
	if _, running := s.survContainer(box); !running {
		t.Error("the first server's sandbox was touched")
	}
	// A conversation goes on in the restored server, with its secret.
	for _, want := range before {
		in := spec(bash(`[ -n "$TOKEN" ] && echo has it`), text("and on"))
		in.Claude.SessionID, in.Claude.Resume = want.SessionID, true
		in.Podman.SecretsEnv = map[string]string{"TOKEN": "token"}
		other.do(t, in).want(t, stromboli.Completed, "")
		break
	}
	first, err := s.c.Job(s.ctx(), staying)
	if err != nil {
		t.Fatal(err)
	}
	here := filepath.Join("sessions", first.SessionID, "workspace", "here")
	if _, err := os.Stat(filepath.Join(other.data, here)); err != nil {
		t.Errorf("the workspace is not restored: %v", err)
	}
	if err := os.WriteFile(filepath.Join(s.data, filepath.Dir(here), "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s.await(t, staying).want(t, stromboli.Completed, "")
	t.Logf("%d runs had ended before the last backup", len(before))
}

// TestRestoreRefuses what would lose something, or what isn't whole.
func TestRestoreRefuses(t *testing.T) {
	s := start(t)
	done := s.do(t, spec(text("done")))
	src := filepath.Join(s.dir, "b")
	s.mustProgram("backup", src)
	refused := func(what, want string, args ...string) {
		t.Helper()
		if out, err := s.program(append([]string{"restore", src}, args...)...); err == nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v, %s", what, err, out)
		}
	}
	refused("a running server's directory", "another stromboli server")
	s.stop()
	refused("a directory with data", "not empty")
	empty := filepath.Join(s.dir, "e")

	var m struct {
		Files []struct {
			Path string `json:"path"`
		} `json:"files"`
	}
	b, err := os.ReadFile(filepath.Join(src, "manifest.json"))
	if err != nil || json.Unmarshal(b, &m) != nil || len(m.Files) < 2 {
		t.Fatalf("%v: %s", err, b)
	}
	for _, f := range m.Files {
		path := filepath.Join(src, f.Path)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		changed := append([]byte{}, whole...)
		changed[len(changed)/2] ^= 1
		if err := os.WriteFile(path, changed, 0o600); err != nil {
			t.Fatal(err)
		}
		refused("a changed "+f.Path, "damaged", "--data-dir", empty)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		refused("without "+f.Path, "damaged", "--data-dir", empty)
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(empty); err == nil {
		t.Error("something was made of a damaged backup")
	}
	out := s.mustProgram("restore", src, "--data-dir", empty)
	if !strings.Contains(out, "no key of callers' secrets") {
		t.Errorf("the missing key isn't told: %s", out)
	}
	if err := os.WriteFile(filepath.Join(empty, "restoring"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	other := prepare(t)
	other.data = empty
	other.env = append(other.env, "STROMBOLI_DATA_DIR="+empty)
	if err := other.tryUp(); err == nil || !strings.Contains(err.Error(), "cut short") {
		t.Errorf("a server starts with half a restore: %v", err)
	}
	if err := os.Remove(filepath.Join(empty, "restoring")); err != nil {
		t.Fatal(err)
	}
	other.up()
	var job client.Job
	if job, err = other.c.Job(other.ctx(), done.ID); err != nil || job.Output != done.Output {
		t.Errorf("%v, %+v", err, job)
	}
}
