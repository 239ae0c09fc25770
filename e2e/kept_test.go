package e2e_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine"
)

// keptHooks write into the root file system that they ran, and leave a service.
var keptHooks = stromboli.Lifecycle{ //nolint:gochecknoglobals // never changed
	OnCreateCommand: []string{"echo made >> /var/tmp/made"},
	PostCreate:      []string{stayCommand("kept-service") + " & echo post >> /var/tmp/made"},
	PostStart:       []string{"echo started >> /var/tmp/made"},
}

// startOf is how a run's sandbox came to be, and its name.
func (r endedRun) startOf(t *testing.T) (how, sandbox string) {
	t.Helper()
	var d stromboli.StartedData
	if !r.first(t, stromboli.EventRunStarted, &d) {
		t.Fatalf("the run was not started: %s", r.Error)
	}
	return d.Start, d.Sandbox
}

// container is the state of a sandbox's container; empty where there is none.
func (s *server) container(t *testing.T, sandbox string) engine.State {
	t.Helper()
	c, err := suite.engine.Inspect(s.ctx(), "stromboli-"+sandbox)
	if errors.Is(err, engine.ErrNotFound) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return c.State
}

// keptUntil is what GET /sessions/{id} says of the session's sandbox.
func (s *server) keptUntil(t *testing.T, session string) string {
	t.Helper()
	until, _ := s.send(t, "GET", "/sessions/"+session, "").want(t, 200).object(t)["sandbox_kept_until"].(string)
	return until
}

// TestKeptSandbox: a session with create hooks goes on in its sandbox, whose
// root file system is as it was; its hooks run once. Where the sandbox is gone,
// or is not what the run asks for, they run again, and a warning says so.
func TestKeptSandbox(t *testing.T) {
	s := start(t)
	look := func(key string) stromboli.RunSpec {
		return withHooks(keyed(key, bash("cat /var/tmp/made; ls /opt/stromboli/trust"), text("done")), keptHooks)
	}
	first := s.do(t, look("first"))
	first.want(t, stromboli.Completed, "")
	how, sandbox := first.startOf(t)
	if got := s.heard(t, "first"); how != "cold" || !strings.HasPrefix(got, "made\npost\nstarted") {
		t.Errorf("%s start, the agent heard %q", how, got)
	}
	waitFor(t, "the sandbox to be stopped", func() bool { return s.container(t, sandbox) == engine.StateExited })
	if n := processesLike("kept-service"); n != 0 || s.keptUntil(t, first.SessionID) == "" {
		t.Errorf("%d processes are left; kept until %q", n, s.keptUntil(t, first.SessionID))
	}

	next := func(key string, change ...func(*stromboli.RunSpec)) endedRun {
		t.Helper()
		in := inSession(first.SessionID, look(key))
		for _, c := range change {
			c(&in)
		}
		r := s.do(t, in)
		r.want(t, stromboli.Completed, "")
		return r
	}
	goesOn := func(key string, r endedRun, started int) {
		t.Helper()
		want := []string{"hook.started post_start[0]", "hook.finished post_start[0] 0", "agent"}
		if got := r.hookStory(t); !slices.Equal(got, want) || r.warned("hooks_repeated") {
			t.Errorf("%s: hooks %q, warnings %v", key, got, r.Warnings)
		}
		if got := s.heard(t, key); !strings.HasPrefix(got, "made\npost"+strings.Repeat("\nstarted", started)) || strings.Count(got, "started") != started {
			t.Errorf("%s: the agent heard %q", key, got)
		}
		if h, box := r.startOf(t); h != "kept" || box != sandbox {
			t.Errorf("%s: %s start in %s, not in %s", key, h, box, sandbox)
		}
		if a, err := s.c.Attestation(s.ctx(), r.ID); err != nil || a.Sandbox != sandbox || a.ReadOnly {
			t.Errorf("%s: attested %+v, %v", key, a, err)
		}
	}
	goesOn("second", next("second"), 2)
	if err := s.c.CreateSecret(s.ctx(), "token", "sk-"+canary+"-kept"); err != nil {
		t.Fatal(err)
	}
	trusts := func(key string, r endedRun, bound bool) {
		t.Helper()
		a, err := s.c.Attestation(s.ctx(), r.ID)
		if trust := strings.Contains(s.heard(t, key), "authority.pem"); err != nil || trust != bound || (len(a.Bindings) == 1) != bound {
			t.Errorf("%s: the sandbox has an authority for bound hosts: %t; attested %v, %v", key, trust, a.Bindings, err)
		}
	}
	bound := next("bound", func(in *stromboli.RunSpec) {
		in.Bindings = []stromboli.Binding{{Host: "git.example", Secret: "token", Scheme: "bearer"}}
	})
	goesOn("bound", bound, 3)
	trusts("bound", bound, true)
	s.kill()
	s.up()
	unbound := next("after a kill")
	goesOn("after a kill", unbound, 4)
	trusts("after a kill", unbound, false)

	anew := func(key, says string, r endedRun) {
		t.Helper()
		h, box := r.startOf(t)
		if h != "cold" || box == sandbox || len(r.hookStory(t)) != 7 {
			t.Errorf("%s: %s start in %s, hooks %q", key, h, box, r.hookStory(t))
		}
		if !r.warnedOf("hooks_repeated", says) || r.count(stromboli.EventWarning) == 0 {
			t.Errorf("%s: warnings %v", key, r.Warnings)
		}
		if got := s.heard(t, key); strings.Count(got, "made") != 1 {
			t.Errorf("%s: the agent heard %q", key, got)
		}
		waitFor(t, "the sandbox before to be gone", func() bool { return s.container(t, sandbox) == "" && len(s.sandboxes()) == 1 })
		sandbox = box
	}
	anew("less memory", "other limits", next("less memory", func(in *stromboli.RunSpec) { in.Podman.Memory = "600m" }))
	waitFor(t, "the sandbox to be stopped", func() bool { return s.container(t, sandbox) == engine.StateExited })
	if err := suite.engine.Remove(s.ctx(), "stromboli-"+sandbox); err != nil {
		t.Fatal(err)
	}
	anew("removed", "was removed by others", next("removed", func(in *stromboli.RunSpec) { in.Podman.Memory = "600m" }))

	s.send(t, "DELETE", "/sessions/"+first.SessionID, "").want(t, 200)
	if left := s.sandboxes(); s.container(t, sandbox) != "" || len(left) != 0 {
		t.Errorf("after the deletion %v are left", left)
	}
}

// TestKeptSandboxDeaths: the server is killed where a sandbox is being stopped or
// started again; it is neither lost nor left over.
func TestKeptSandboxDeaths(t *testing.T) {
	s := start(t)
	in := withHooks(keyed("deaths", bash("cat /var/tmp/made"), text("done")), keptHooks)
	r := s.do(t, in)
	_, sandbox := r.startOf(t)
	s.kill() // it may be at work, being stopped, or stopped
	s.up()
	for i, wait := range []time.Duration{20 * time.Millisecond, 150 * time.Millisecond} {
		id := s.submit(t, inSession(r.SessionID, in))
		<-time.After(wait) // somewhere in the start
		s.kill()
		s.up()
		again := s.await(t, id)
		again.want(t, stromboli.Completed, "")
		if how, box := again.startOf(t); how != "kept" || box != sandbox || again.warned("hooks_repeated") {
			t.Errorf("kill %d: %s start in %s, not %s; warnings %v", i, how, box, sandbox, again.Warnings)
		}
		if got := s.heard(t, "deaths"); strings.Count(got, "made") != 1 {
			t.Errorf("kill %d: the agent heard %q", i, got)
		}
	}
	s.kill() // the newest run has just ended
	s.up()
	waitFor(t, "the sandbox to be stopped", func() bool { return s.container(t, sandbox) == engine.StateExited })
	// A row that names nothing any more, and a directory without one.
	if err := suite.engine.Remove(s.ctx(), "stromboli-"+sandbox); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(s.data, "sb", sandbox)); err != nil {
		t.Fatal(err)
	}
	again := s.do(t, inSession(r.SessionID, in))
	if !again.warnedOf("hooks_repeated", "is gone") {
		t.Errorf("warnings %v", again.Warnings)
	}
}

// TestKeptSandboxesGo: when their time is over, when there are too many, and with a
// server that keeps none.
func TestKeptSandboxesGo(t *testing.T) {
	s := start(t, "STROMBOLI_SANDBOX_KEEP=3s", "STROMBOLI_SANDBOX_KEEP_MAX=1")
	make1 := func() (session, sandbox string) {
		r := s.do(t, withHooks(keyed("go", text("done")), keptHooks))
		_, box := r.startOf(t)
		return r.SessionID, box
	}
	one, boxOne := make1()
	_, boxTwo := make1()
	waitFor(t, "the oldest to go", func() bool { return s.container(t, boxOne) == "" && s.keptUntil(t, one) == "" })
	waitFor(t, "the newest to go as well", func() bool { return s.container(t, boxTwo) == "" && len(s.sandboxes()) == 0 })
	again := s.do(t, inSession(one, withHooks(keyed("go", text("done")), keptHooks)))
	if !again.warnedOf("hooks_repeated", "is gone") {
		t.Errorf("warnings %v", again.Warnings)
	}
	s.stop()
	s.env = append(s.env, "STROMBOLI_SANDBOX_KEEP=0")
	s.up()
	waitFor(t, "nothing to be kept", func() bool { return len(s.sandboxes()) == 0 })
	again = s.do(t, inSession(one, withHooks(keyed("go", text("done")), keptHooks)))
	if s.keptUntil(t, one) != "" || !again.warned("hooks_repeated") {
		t.Errorf("kept until %q, warnings %v", s.keptUntil(t, one), again.Warnings)
	}
	failing := s.do(t, withHooks(spec(text("never")), stromboli.Lifecycle{OnCreateCommand: []string{"exit 3"}}))
	if until := s.keptUntil(t, failing.SessionID); until != "" {
		t.Errorf("a sandbox whose hooks have failed is kept until %s", until)
	}
}

// warnedOf reports whether a run has a warning that says so.
func (r endedRun) warnedOf(code, says string) bool {
	return slices.ContainsFunc(r.Warnings, func(w stromboli.Warning) bool { return w.Code == code && strings.Contains(w.Message, says) })
}
