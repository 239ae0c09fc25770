package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/modelstub"
)

// TestDrill breaks what docs/operations.md has a section for, looks for what the
// section says can be seen, executes its commands as they stand there, and waits
// for what the section calls its end.
func TestDrill(t *testing.T) {
	engine := newRelay(t)
	s := prepare(t, "STROMBOLI_RUNS_MAX=1", "STROMBOLI_QUEUE_MAX=1", "STROMBOLI_QUEUE_STUCK_AFTER=1s", "CONTAINER_HOST=unix://"+engine.path)
	token := filepath.Join(s.dir, "token")
	if err := os.WriteFile(token, []byte(modelKey+"-old\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, kv := range s.env {
		if strings.HasPrefix(kv, "ANTHROPIC_API_KEY=") {
			s.env[i] = "STROMBOLI_AGENT_SECRETS_FILE=" + token
		}
	}
	if !suite.rootless {
		s.smallDisk(t, "160m")
	}
	s.up()
	r := openRunbook(t, s)

	t.Run("engine down", func(t *testing.T) { r.on(t).engineDown(engine) })
	if !suite.rootless { // mounting a small disk needs root
		t.Run("disk full", func(t *testing.T) { r.on(t).diskFull() })
	}
	t.Run("credentials expired", func(t *testing.T) { r.on(t).credentialsExpired() })
	t.Run("runaway agent, stuck queue", func(t *testing.T) { r.on(t).runaway() })
	waitFor(t, "nothing to be left", func() bool { return len(s.sandboxes()) == 0 && len(s.survContainers()) == 0 })
}

// TestDrillDatabase is the part of the drill that takes a backup.
func TestDrillDatabase(t *testing.T) {
	t.Parallel()
	s := start(t)
	r := openRunbook(t, s)
	r.env["BACKUP"] = filepath.Join(s.dir, "backup")
	first := s.do(t, spec(text("before")))
	first.want(t, stromboli.Completed, "")
	r.run("", 2)
	s.stop()
	s.overwrite(t, "secrets")
	s.up()

	const it = "Database corrupt"
	r.unready("store")
	r.metric(it, false)
	if out, _ := r.try("", 1); !strings.Contains(out, "store: the database is damaged") || !strings.Contains(out, "failed  database") {
		t.Errorf("where to look first: %s", out)
	}
	s.send(t, "POST", "/run/async", `{"prompt":"x"}`).refused(t, 503, "storage_damaged", "")
	r.says(it, "storage_damaged", "store")
	if !strings.Contains(s.log.tail(1<<20), "the database is damaged: stop the server, keep a copy of "+filepath.Join(s.data, "stromboli.db")) {
		t.Error("the log doesn't say what to do")
	}
	if out := r.run(it, 0); !strings.Contains(out, "the database is damaged") || !strings.Contains(out, "restore a backup") {
		t.Errorf("the doctor: %s", out)
	}
	r.units["stop stromboli"], r.units["start stromboli"] = s.stop, s.up
	r.run(it, 1)
	r.metric(it, true)
	r.over(it)
	if run, err := s.c.Job(s.ctx(), first.ID); err != nil || run.Status != stromboli.Completed {
		t.Errorf("the run of before: %+v, %v", run, err)
	}
	s.do(t, inSession(first.SessionID, spec(text("after")))).want(t, stromboli.Completed, "")
	if _, err := os.Stat(filepath.Join(s.data+".damaged", "stromboli.db")); err != nil {
		t.Errorf("the damaged database: %v", err)
	}
	r.complete("", it)
}

// on is the runbook in a subtest.
func (r *runbook) on(t *testing.T) *runbook {
	t.Helper()
	r.t = t
	return r
}

func (r *runbook) engineDown(engine *relay) {
	const it = "Engine down"
	engine.down()
	r.unready("engine")
	r.metric(it, false)
	r.s.send(r.t, "POST", "/run/async", specJSON(r.t, spec(text("x")))).refused(r.t, 503, "engine_down", "")
	r.says(it, "engine_down", "engine")
	if out, _ := r.try("", 1); !strings.Contains(out, "engine: ") || !strings.Contains(out, "failed  engine ") {
		r.t.Errorf("where to look first: %s", out)
	}
	r.units["restart podman.socket"] = func() { engine.up(r.t) }
	r.run(it, 0)
	r.metric(it, true)
	r.over(it)
	r.s.do(r.t, spec(text("back"))).want(r.t, stromboli.Completed, "")
	r.complete(it)
}

func (r *runbook) diskFull() {
	const it = "Disk full"
	large := r.s.do(r.t, spec(bash("head -c 125000000 /dev/zero > /workspace/large"), text("done")))
	large.want(r.t, stromboli.Completed, "")
	filler := filepath.Join(r.s.data, "filler")
	fill(r.t, filler)
	info, err := os.Stat(filler)
	if err == nil {
		err = os.Truncate(filler, info.Size()-1<<20) // below the reserve, and writable
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.unready("disk")
	r.metric(it, false)
	r.s.send(r.t, "POST", "/run/async", `{"prompt":"x"}`).refused(r.t, 503, "storage_full", "")
	r.says(it, "storage_full", "disk")
	if out := r.run(it, 0); !strings.Contains(out, "stromboli_disk_free_bytes") || !strings.HasSuffix(strings.TrimSpace(out), large.SessionID) {
		r.t.Errorf("what takes the space: %s", out)
	}
	r.env["SESSION"] = large.SessionID
	r.run(it, 1)
	r.metric(it, true)
	r.over(it)
	r.s.do(r.t, spec(text("room"))).want(r.t, stromboli.Completed, "")
	r.complete(it)
	if err := os.Remove(filler); err != nil {
		r.t.Error(err)
	}
}

func (r *runbook) credentialsExpired() {
	const it = "Credentials expired"
	refused := spec(modelstub.Step{Text: "never said", Status: 401})
	r.s.do(r.t, refused).want(r.t, stromboli.Failed, stromboli.ReasonAuth)
	r.says(it, "auth", "credentials")
	r.metric(it, false)
	if why := r.reasons(); why != "" { // a run could start: that is how it is found out that it has passed
		r.t.Errorf("readyz: %s", why)
	}
	if out := r.run(it, 0); !strings.Contains(out, "STROMBOLI_AGENT_SECRETS_FILE") && !strings.Contains(out, filepath.Join(r.s.dir, "token")) {
		r.t.Errorf("which credential: %s", out)
	}
	r.env["NEW_TOKEN"] = modelKey + "-new"
	r.run(it, 1)
	r.metric(it, true)
	r.over(it)
	r.s.do(r.t, keyed("renewed", text("let in"))).want(r.t, stromboli.Completed, "")
	for _, q := range r.s.stub.Requests("renewed") {
		if key := q.Header.Get("X-Api-Key"); !strings.HasSuffix(key, "-new") {
			r.t.Error("the old token is still used")
		}
	}
	r.complete(it)
}

func (r *runbook) runaway() {
	const it, queue = "Runaway agent", "Stuck queue"
	id := r.s.submit(r.t, spec(bash("while :; do :; done"), text("never said")))
	r.s.inTool(r.t, id)
	waits := r.s.submit(r.t, spec(text("waited")))

	r.metric(queue, false)
	if out := r.run(queue, 0); !strings.Contains(out, "all 1 slots are in use") || !strings.Contains(out, id) || strings.Contains(out, waits) {
		r.t.Errorf("what the queue waits for: %s", out)
	}
	r.unready("queue") // it is full
	r.s.send(r.t, "POST", "/run/async", specJSON(r.t, spec(text("x")))).refused(r.t, 429, "queue_full", "")
	r.says(queue, "queue_full", "queue")

	r.env["JOB"] = id
	waitFor(r.t, "what the agent used", func() bool {
		return sum(r.t, scrape(r.t, r.s.url+"/metrics"), `stromboli_egress_tokens_total\{.*\}`) > 0
	})
	r.says(it, "stromboli_egress_tokens_total")
	var tokens int
	out := r.run(it, 0)
	if _, err := fmt.Sscan(out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:], &tokens); err != nil || tokens == 0 || !strings.Contains(out, id) {
		r.t.Errorf("what runs: %s", out)
	}
	r.run(it, 1)
	if j, err := r.s.c.Job(r.s.ctx(), id); err != nil || j.Status != stromboli.Running {
		r.t.Errorf("cut off: %+v, %v", j, err)
	}
	r.run(it, 2)
	r.over(it)
	r.complete(it)
	r.s.await(r.t, id).want(r.t, stromboli.Cancelled, stromboli.ReasonRequest)
	r.s.await(r.t, waits).want(r.t, stromboli.Completed, "")
	r.metric(queue, true)
	r.over(queue)
	r.complete(queue)
}
