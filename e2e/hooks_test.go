package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
)

// withHooks gives a run hooks.
func withHooks(in stromboli.RunSpec, l stromboli.Lifecycle) stromboli.RunSpec {
	in.Podman.Lifecycle = l
	return in
}

// hookStory is what a run's events tell of its hooks.
func (r endedRun) hookStory(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, ev := range r.events {
		var d struct {
			Hook         string
			Index        int
			Stream, Text string
			ExitCode     int    `json:"exit_code"`
			DurationMS   *int64 `json:"duration_ms"`
		}
		if err := json.Unmarshal(ev.Data, &d); err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("%s %s[%d]", ev.Type, d.Hook, d.Index)
		switch string(ev.Type) {
		case string(stromboli.EventHookStarted):
			all = append(all, name)
		case string(stromboli.EventHookOutput):
			all = append(all, name+" "+d.Stream+": "+d.Text)
		case string(stromboli.EventHookFinished):
			all = append(all, fmt.Sprintf("%s %d", name, d.ExitCode))
			if d.DurationMS == nil {
				t.Errorf("%s: no duration", name)
			}
		case string(stromboli.EventRunStarted):
			all = append(all, "agent")
		}
	}
	return all
}

// TestLifecycleHooks: hooks run as the agent in its sandbox, before it and in their order; what they
// say are events; what they leave running serves the agent; the first that
// fails, or doesn't end in time, ends the run before there is an agent.
func TestLifecycleHooks(t *testing.T) {
	s := start(t)
	type life = stromboli.Lifecycle
	all := keyed("all", bash("cat /workspace/made; curl -s --noproxy '*' http://127.0.0.1:8123/made"), text("done"))
	all.Env = map[string]string{"GREETING": "hello"}
	fails := func(says string) func(*testing.T, endedRun) {
		return func(t *testing.T, r endedRun) {
			r.want(t, stromboli.Failed, stromboli.ReasonHook)
			if !strings.Contains(r.Error, says) || slices.Contains(r.hookStory(t), "agent") {
				t.Errorf("%q, %q", r.Error, r.hookStory(t))
			}
		}
	}
	endless := life{PostStart: []string{"trap '' TERM; setsid " + stayCommand("hook-for-ever") + " & sleep 600"}, HooksTimeout: stromboli.Duration(time.Second)}
	s.fleet(t, []fleetRun{
		{"all", withHooks(all, life{
			OnCreateCommand: []string{"id -u; id -u > /workspace/made"}, PostCreate: []string{`echo "$GREETING" >&2; pwd`},
			PostStart: []string{"cd /workspace; python3 -m http.server --bind 127.0.0.1 8123 & until curl -s --noproxy '*' -o /dev/null http://127.0.0.1:8123/; do sleep 0.05; done"},
		}), func(t *testing.T, r endedRun) {
			r.want(t, stromboli.Completed, "")
			story := slices.DeleteFunc(r.hookStory(t), func(s string) bool { return strings.HasPrefix(s, "hook.output post_start") }) // the service's log
			want := []string{
				"hook.started on_create_command[0]", "hook.output on_create_command[0] stdout: 1000", "hook.finished on_create_command[0] 0",
				"hook.started post_create[0]", "hook.output post_create[0] stderr: hello", "hook.output post_create[0] stdout: /workspace", "hook.finished post_create[0] 0",
				"hook.started post_start[0]", "hook.finished post_start[0] 0", "agent",
			}
			slices.Sort(story[4:6]) // two streams have no order
			if !slices.Equal(story, want) {
				t.Errorf("events %q", story)
			}
			if got := s.heard(t, "all"); !strings.HasPrefix(got, "1000\n1000") {
				t.Errorf("the agent heard %q", got)
			}
			a, err := s.c.Attestation(s.ctx(), r.ID)
			if err != nil || a.ReadOnly || len(a.Agent.Capabilities["effective"]) != 0 {
				t.Errorf("attested: root read-only %v, %v, %v", a.ReadOnly, a.Agent.Capabilities, err)
			}
		}},
		{"one fails", withHooks(spec(text("never")), life{OnCreateCommand: []string{"true", "echo bad >&2; exit 3"}, PostStart: []string{"true"}}), fails("hook on_create_command[1] failed with exit code 3")},
		{"one never ends", withHooks(spec(text("never")), endless), func(t *testing.T, r endedRun) {
			fails("hook post_start[0] did not end in time and was ended: all hooks together have 1s")(t, r)
			if n := processesLike("hook-for-ever"); n != 0 {
				t.Errorf("%d processes are left", n)
			}
		}},
		{"without create hooks the root stays", withHooks(keyed("ro", bash("true"), text("done")), life{PostStart: []string{"true"}}), func(t *testing.T, r endedRun) {
			r.want(t, stromboli.Completed, "")
			if a, err := s.c.Attestation(s.ctx(), r.ID); err != nil || !a.ReadOnly {
				t.Errorf("root read-only %v, %v", a.ReadOnly, err)
			}
		}},
	})
	in := withHooks(spec(text("never")), life{PostStart: []string{"exit 4"}})
	a := s.send(t, "POST", "/run", specJSON(t, in)).want(t, 500).object(t)
	if a["code"] != "hook" || a["reason"] != "hook" || a["status"] != "error" {
		t.Errorf("answered %v", a)
	}
}

// TestHooksSurviveTheServer: the server is killed while a hook works; it goes
// on, is run once, and the next server goes on with what comes after it.
func TestHooksSurviveTheServer(t *testing.T) {
	s := start(t)
	in := withHooks(keyed("survives", bash("cat ~/ran"), text("done")), stromboli.Lifecycle{
		OnCreateCommand: []string{"echo one; echo one >> ~/ran; until [ -e /workspace/go ]; do sleep 0.05; done; echo two"}, PostCreate: []string{"echo three >> ~/ran"},
	})
	id := s.submit(t, in)
	s.waitEvent(t, id, "the hook's output", func(e stromboli.Event) bool { return e.Type == stromboli.EventHookOutput })
	job, err := s.c.Job(s.ctx(), id)
	if err != nil || job.Phase != stromboli.PhaseHooks {
		t.Fatalf("phase %s, %v", job.Phase, err)
	}
	s.kill()
	s.up()
	s.letGo(id, "go")
	r := s.await(t, id)
	r.want(t, stromboli.Completed, "")
	want := []string{
		"hook.started on_create_command[0]", "hook.output on_create_command[0] stdout: one", "hook.output on_create_command[0] stdout: two", "hook.finished on_create_command[0] 0",
		"hook.started post_create[0]", "hook.finished post_create[0] 0", "agent",
	}
	if got := r.hookStory(t); !slices.Equal(got, want) {
		t.Errorf("events %q", got)
	}
	if got := s.heard(t, "survives"); !strings.HasPrefix(got, "one\nthree") || strings.Count(got, "one") != 1 {
		t.Errorf("the hooks left %q", got)
	}
	if a, err := s.c.Attestation(s.ctx(), id); err != nil || a.Sandbox == "" {
		t.Errorf("attested: %+v, %v", a, err)
	}
	again := inSession(r.SessionID, keyed("again", bash("cat ~/ran"), text("done")))
	next := s.do(t, again)
	next.want(t, stromboli.Completed, "")
	if got := s.heard(t, "again"); !strings.HasPrefix(got, "one\nthree") || strings.Count(got, "one") != 1 || next.warned("hooks_repeated") {
		t.Errorf("the hooks left %q; warnings %v", got, next.Warnings)
	}
}

// TestRootHooks: where the server lets them, create hooks install packages, as
// the sandbox's root; the agent is nobody all the same, and a sandbox that
// would hand them the host's root doesn't.
func TestRootHooks(t *testing.T) {
	s := start(t, "STROMBOLI_AGENT_ROOT_HOOKS=true", "STROMBOLI_RESOURCES_DISK=300m")
	const install = `id -u; cd $(mktemp -d); mkdir -p p/DEBIAN p/usr/bin; printf '#!/bin/sh\necho from a package\n' > p/usr/bin/packaged; chmod 755 p p/DEBIAN p/usr p/usr/bin p/usr/bin/packaged
printf 'Package: packaged\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.com>\nDescription: x\n' > p/DEBIAN/control
dpkg-deb --root-owner-group -b p p.deb && dpkg -i p.deb && mkdir -p /workspace/roots/deep && touch /workspace/roots/deep/file && chmod 700 /workspace/roots`
	in := withHooks(keyed("root", bash("packaged; id -u; grep CapEff /proc/self/status; touch /usr/bin/mine || echo not root"), text("done")),
		stromboli.Lifecycle{OnCreateCommand: []string{install}, PostStart: []string{"id -u > /workspace/who"}})
	in.Podman.Volumes = []string{s.volume("mine", 1000) + ":/mnt/v"}
	r := s.do(t, in)
	a, err := s.c.Attestation(s.ctx(), r.ID)
	if err != nil {
		t.Fatal(err)
	}
	bounding := strings.Join(a.Shim.Capabilities["bounding"], " ")
	if a.UserNamespace == "none" { // the host's ids and a volume
		r.want(t, stromboli.Failed, stromboli.ReasonHook)
		if !r.warned("hooks_as_agent") || strings.Contains(bounding, "CHOWN") {
			t.Errorf("warnings %v, bounding set %s", r.Warnings, bounding)
		}
		return
	}
	r.want(t, stromboli.Completed, "")
	if story := strings.Join(r.hookStory(t), "\n"); !strings.Contains(story, "on_create_command[0] stdout: 0\n") || r.warned("hooks_as_agent") {
		t.Errorf("hooks: %s; warnings %v", story, r.Warnings)
	}
	got := s.heard(t, "root")
	if !strings.HasPrefix(got, "from a package\n1000\nCapEff:\t0000000000000000\n") || !strings.Contains(got, "not root") {
		t.Errorf("the agent heard %q", got)
	}
	who, err := os.ReadFile(filepath.Join(s.data, "sessions", r.SessionID, "workspace", "who"))
	if err != nil || string(who) != "1000\n" {
		t.Errorf("post_start ran as %q, %v", who, err)
	}
	if bounding != "CHOWN DAC_OVERRIDE FOWNER KILL SETGID SETUID SETFCAP" || len(a.Agent.Capabilities["effective"]) != 0 {
		t.Errorf("the bounding set is %s, the agent's capabilities %v", bounding, a.Agent.Capabilities)
	}
	next := inSession(r.SessionID, keyed("again", bash("packaged"), text("done")))
	next.Podman.Volumes = in.Podman.Volumes
	again := s.do(t, next)
	if how, _ := again.startOf(t); how != "kept" || !strings.HasPrefix(s.heard(t, "again"), "from a package") || again.warned("hooks_repeated") {
		t.Errorf("%s start, the agent heard %q; warnings %v", how, s.heard(t, "again"), again.Warnings)
	}
	s.send(t, "DELETE", "/sessions/"+r.SessionID, "").want(t, 200)
	if _, err := os.Lstat(filepath.Join(s.data, "sessions", r.SessionID)); !errors.Is(err, fs.ErrNotExist) || len(s.sandboxes()) != 0 {
		t.Errorf("what root has left: %v, sandboxes %v", err, s.sandboxes())
	}
	plain := s.do(t, spec(bash("true"), text("done")))
	if a, err := s.c.Attestation(s.ctx(), plain.ID); err != nil || len(a.Shim.Capabilities["bounding"]) != 3 {
		t.Errorf("without hooks: %v, %v", a.Shim.Capabilities, err)
	}

	if suite.rootless { // whose containers' files this server can't see
		return
	}
	// What hooks write into the root counts as what they write elsewhere does.
	full := s.do(t, withHooks(spec(text("never")), stromboli.Lifecycle{OnCreateCommand: []string{"head -c 400M /dev/zero > /var/tmp/much; sleep 60"}}))
	full.want(t, stromboli.Failed, stromboli.ReasonDisk)
	if !strings.Contains(full.Error, "STROMBOLI_RESOURCES_DISK") {
		t.Errorf("error %q", full.Error)
	}
}
