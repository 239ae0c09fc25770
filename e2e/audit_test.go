package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/tomblancdev/stromboli"
)

// auditPage asks for a page of the audit log.
func (s *server) auditPage(query string) []stromboli.AuditRecord {
	s.t.Helper()
	var list struct {
		Records []stromboli.AuditRecord `json:"records"`
	}
	if err := json.Unmarshal(s.send(s.t, http.MethodGet, "/audit?"+query, "").want(s.t, 200).body, &list); err != nil {
		s.t.Fatal(err)
	}
	return list.Records
}

func (s *server) verifyAudit(args ...string) (string, error) {
	cmd := exec.Command(suite.bin, append([]string{"audit", "verify"}, args...)...)
	cmd.Env = s.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestAudit: what is done through the API is in the log by the time of its
// answer, the program finds what is changed in it, and refuses to go on from there.
func TestAudit(t *testing.T) {
	s := start(t)
	run := s.do(t, spec(text("done")))
	if err := s.c.CreateSecret(s.ctx(), "token", "sk-"+canary+"-in-no-log"); err != nil {
		t.Fatal(err)
	}
	s.send(t, http.MethodDelete, "/sessions/"+run.SessionID, "").want(t, 200)
	s.send(t, http.MethodDelete, "/jobs/run-nothing", "").want(t, 404)
	id, _ := stromboli.ParseRunID(run.ID)
	for _, want := range []stromboli.AuditRecord{
		{Action: "run.submit", Object: id, Outcome: stromboli.AuditOK},
		{Action: "secret.create", Object: "token", Outcome: stromboli.AuditOK},
		{Action: "session.delete", Object: run.SessionID, Outcome: stromboli.AuditOK},
		{Action: "run.cancel", Object: "run-nothing", Outcome: stromboli.AuditRefused, Code: stromboli.NotFound},
	} {
		found := s.auditPage("action=" + want.Action + "&object=" + want.Object)
		if len(found) == 0 {
			t.Errorf("%s %s is not in the log", want.Action, want.Object)
			continue
		}
		got := found[len(found)-1]
		if got.Stage != stromboli.AuditOutcome || got.Outcome != want.Outcome || got.Code != want.Code || got.From != "127.0.0.1" || got.Intent == 0 {
			t.Errorf("got %+v", got)
		}
	}
	if out, err := s.verifyAudit(); err != nil || !strings.Contains(out, "are whole") {
		t.Errorf("while the server runs: %v, %s", err, out)
	}
	s.stop()
	s.up()
	if found := s.auditPage("action=server."); len(found) != 3 || found[1].Action != "server.stop" || found[2].Detail["version"] == "" {
		t.Errorf("the server's doings: %+v", found)
	}
	s.stop()

	path := filepath.Join(s.data, "audit", "audit.jsonl")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(whole), `"secret.create"`, `"secret.delete"`, 1)
	if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := s.verifyAudit(); err == nil || !strings.Contains(out, "changed") {
		t.Errorf("a changed record: %v, %s", err, out)
	}
	if err := s.tryUp(); err == nil || !strings.Contains(err.Error(), "audit log is damaged") {
		t.Errorf("a server goes on with a changed log: %v", err)
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	s.up()
}

// TestAuditSurvivesKills: a server that is killed while it is asked for many things
// leaves a log that is whole, and every run that it answered for is in it.
func TestAuditSurvivesKills(t *testing.T) {
	s := start(t, "STROMBOLI_RUNS_MAX=1", "STROMBOLI_AUDIT_MAX_FILE_SIZE=20000")
	var mu sync.Mutex
	answered := map[string]bool{}
	for round := range 3 {
		var wg sync.WaitGroup
		var dead atomic.Bool
		for i := range 6 {
			wg.Go(func() {
				for n := 0; !dead.Load(); n++ {
					req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+"/run/async", strings.NewReader(specJSON(t, keyed(fmt.Sprint(round, i, n), text("ok")))))
					if err != nil {
						t.Error(err)
						return
					}
					req.Header.Set("Content-Type", "application/json")
					resp, err := http.DefaultClient.Do(req) //nolint:forbidigo // of a test
					if err != nil {
						return // killed
					}
					var job struct {
						ID string `json:"job_id"`
					}
					err = json.NewDecoder(resp.Body).Decode(&job)
					_ = resp.Body.Close()
					if err == nil && resp.StatusCode == http.StatusAccepted {
						mu.Lock()
						id, _ := stromboli.ParseRunID(job.ID)
						answered[id] = true
						mu.Unlock()
					}
				}
			})
		}
		waitFor(t, "answers", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(answered) > 25*(round+1)
		})
		s.kill()
		dead.Store(true)
		wg.Wait()
		if out, err := s.verifyAudit(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		s.up()
	}
	recorded := map[string]bool{}
	for _, r := range s.auditPage("action=run.submit") {
		if r.Outcome == stromboli.AuditOK {
			recorded[r.Object] = true
		}
	}
	for id := range answered {
		if !recorded[id] {
			t.Errorf("%s was answered for and isn't in the log", id)
		}
		s.send(t, http.MethodDelete, "/jobs/"+id, "")
	}
	t.Logf("%d runs were answered for, %d are in the log", len(answered), len(recorded))
}
