package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/modelstub"
)

// evidence shows the effect of one field of a run's spec by a pair of runs
// that differ in it alone: what is seen of the run with it has has, and what
// is seen of the run without it doesn't.
type evidence struct {
	field string // its path in the body of POST /run
	value string // what it is set to, for the table
	where string // the place that differs
	shows string // what stands there

	base  string                      // names the pair's common part: scenes
	set   func(in *stromboli.RunSpec) // makes the difference
	see   func(o observed) string
	has   string // in what is seen with the field, and not without it
	lacks string // the other way round
	// as names the run with the field, where several rows look at one.
	as string
	// refused is the code of a field that is refused instead.
	refused string
	// by is a test that shows it in another way.
	by string
}

// observed is what can be known of a run that is over.
type observed struct {
	endedRun
	asked  []asked
	header []string // the anthropic-beta headers of the model's requests
}

// init is a field of the CLI's init line, as JSON.
func (o observed) init(field string) string {
	for _, e := range o.events {
		var d stromboli.OutputData
		var line map[string]json.RawMessage
		if e.Type == stromboli.EventOutput && json.Unmarshal(e.Data, &d) == nil && json.Unmarshal([]byte(d.Line), &line) == nil && string(line["subtype"]) == `"init"` {
			return string(line[field])
		}
	}
	return "no init event"
}

// request is the first request to the model, last the last one.
func (o observed) request() string {
	if len(o.asked) == 0 {
		return "no request"
	}
	return o.asked[0].raw
}

// tool is what the newest tool said to the model.
func (o observed) tool() string {
	if len(o.asked) == 0 {
		return "no request"
	}
	said, failed := o.asked[len(o.asked)-1].toolResult()
	return fmt.Sprintf("failed=%v %s", failed, said)
}

// stderr is what the CLI said on standard error.
func (o observed) stderr() string {
	var all strings.Builder
	for _, e := range o.events {
		var d stromboli.OutputData
		if e.Type == stromboli.EventOutput && json.Unmarshal(e.Data, &d) == nil && d.Stream == "stderr" {
			all.WriteString(d.Line + "\n")
		}
	}
	return all.String()
}

func (o observed) warnings() string { return fmt.Sprint(o.Warnings) }

// look gathers what is known of a run whose requests carry the key.
func (s *server) look(t *testing.T, id, key string) observed {
	t.Helper()
	o := observed{endedRun: s.await(t, id)}
	for _, r := range s.stub.Requests(key) {
		a := asked{raw: r.Body}
		if err := json.Unmarshal([]byte(r.Body), &a); err != nil {
			t.Fatalf("a request to the model: %v", err)
		}
		o.asked = append(o.asked, a)
		o.header = append(o.header, r.Header.Get("Anthropic-Beta"))
	}
	return o
}

// TestEvidence shows that each field has the effect that docs/API.md says.
func TestEvidence(t *testing.T) {
	s := start(t, "STROMBOLI_RUNS_MAX=4")
	scenes, rows := evidenceScenes(), evidenceRows()
	ids := map[string]string{}
	submit := func(name, scene string, set func(*stromboli.RunSpec)) {
		in := keyed(name, scenes[scene].steps...)
		if scenes[scene].also != nil {
			scenes[scene].also(&in)
		}
		if set != nil {
			set(&in)
		}
		ids[name] = s.submit(t, in)
	}
	name := func(i int) string {
		if rows[i].as != "" {
			return "with " + rows[i].as
		}
		return fmt.Sprintf("with %d %s", i, rows[i].field)
	}
	for i, e := range rows {
		if e.base == "" {
			continue
		}
		if without := "without " + e.base; ids[without] == "" {
			submit(without, e.base, nil)
		}
		if ids[name(i)] == "" {
			submit(name(i), e.base, e.set)
		}
	}
	info, err := suite.engine.Info(s.ctx())
	if err != nil {
		t.Fatal(err)
	}
	bases := map[string]observed{}
	for i, e := range rows {
		t.Run(e.field, func(t *testing.T) {
			switch {
			case e.refused != "":
				in := spec(text("never"))
				e.set(&in)
				s.send(t, "POST", "/run", specJSON(t, in)).refused(t, 400, e.refused, e.field)
				return
			case e.base == "":
				return
			}
			without, ok := bases[e.base]
			if !ok {
				without = s.look(t, ids["without "+e.base], "without "+e.base)
				bases[e.base] = without
			}
			e.compare(t, without, s.look(t, ids[name(i)], name(i)))
		})
	}
	t.Run("what is not there", func(t *testing.T) { evidenceMissing(t, s) })
	t.Run("in the container", func(t *testing.T) {
		if !info.EnforcesLimits {
			t.Skip("this engine enforces no limits")
		}
		evidenceInspected(t, s)
	})
	t.Run("claude.resume", func(t *testing.T) { evidenceResume(t, s, bases["plain"]) })
	t.Run("podman.image", func(t *testing.T) { evidenceImage(t, s) })
	t.Run("podman.volumes", func(t *testing.T) { evidenceVolumes(t, s) })
}

func (e evidence) compare(t *testing.T, without, with observed) {
	t.Helper()
	before, after := e.see(without), e.see(with)
	bad := before == after ||
		e.has != "" && (!strings.Contains(after, e.has) || strings.Contains(before, e.has)) ||
		e.lacks != "" && (strings.Contains(after, e.lacks) || !strings.Contains(before, e.lacks)) ||
		e.has == "" && e.lacks == ""
	if bad {
		t.Errorf("%s shows no effect\nwith    (%s %s %s): %.1500s\nwithout (%s %s %s): %.1500s", e.where,
			with.Status, with.Reason, with.Error, after, without.Status, without.Reason, without.Error, before)
	}
}

// evidenceMissing: what an option names and the sandbox lacks is never passed
// over in silence, as the CLI would do.
func evidenceMissing(t *testing.T, s *server) {
	failing := func(name, says string, set func(*stromboli.ClaudeOptions)) fleetRun {
		in := keyed(name, text("never"))
		set(&in.Claude)
		return fleetRun{name, in, func(t *testing.T, r endedRun) {
			r.want(t, stromboli.Failed, stromboli.ReasonNotEnforced)
			if !strings.Contains(r.Error, says) || len(s.stub.Requests(name)) != 0 {
				t.Errorf("the error is %q, want one with %q; %d requests", r.Error, says, len(s.stub.Requests(name)))
			}
		}}
	}
	warned := func(name, code string, set func(*stromboli.ClaudeOptions)) fleetRun {
		in := keyed(name, text("done"))
		set(&in.Claude)
		return fleetRun{name, in, func(t *testing.T, r endedRun) {
			r.want(t, stromboli.Completed, "")
			if !r.warned(code) {
				t.Errorf("warnings %v", r.Warnings)
			}
		}}
	}
	s.fleet(t, []fleetRun{
		failing("a directory", "claude.add_dirs[0]: /nope", func(o *stromboli.ClaudeOptions) { o.AddDirs = []string{"/nope"} }),
		failing("a file as a directory", "claude.plugin_dirs[0]: /etc/passwd", func(o *stromboli.ClaudeOptions) { o.PluginDirs = []string{"/etc/passwd"} }),
		failing("settings", "claude.settings: /workspace/nope.json", func(o *stromboli.ClaudeOptions) { o.Settings = "nope.json" }),
		failing("settings of a wrong shape", "claude.settings.permissions", func(o *stromboli.ClaudeOptions) {
			o.Files, o.Settings = []string{file("s.json", `{"permissions":7}`)}, "s.json"
		}),
		failing("a place for a file", "claude.files[0]: /etc/evidence", func(o *stromboli.ClaudeOptions) { o.Files = []string{file("/etc/evidence", "x")} }),
		// Settings that come with the workspace can't lead the CLI elsewhere: the
		// address would answer nothing.
		{"a workspace that redirects", func() stromboli.RunSpec {
			in := keyed("a workspace that redirects", bash("ls /workspace"), text("done"))
			in.Claude.Files = []string{file(".claude/settings.json",
				`{"env":{"ANTHROPIC_BASE_URL":"http://127.0.0.1:9/","CLAUDE_CODE_PROVIDER_MANAGED_BY_HOST":""},"apiKeyHelper":"touch /workspace/helped; echo x"}`)}
			return in
		}(), func(t *testing.T, r endedRun) {
			r.want(t, stromboli.Completed, "")
			all := s.requests(t, "a workspace that redirects")
			if said, failed := all[len(all)-1].toolResult(); failed || strings.Contains(said, "helped") {
				t.Errorf("the tool says %s", said)
			}
		}},
		warned("a tool, an agent, a plugin", "option_unused", func(o *stromboli.ClaudeOptions) {
			o.Tools, o.Agent, o.PluginDirs = []string{"Bash", "Bogus"}, "nobody", []string{"/usr/share"}
		}),
		warned("a program of an MCP server", "mcp_failed", func(o *stromboli.ClaudeOptions) { o.MCPConfigs = []string{`{"mcpServers":{"x":{"command":"/nope"}}}`} }),
	})
}

// evidenceInspected reads limits back from the engine while the agents work.
func evidenceInspected(t *testing.T, s *server) {
	shares := 512
	members := []struct {
		field, has string
		set        func(*stromboli.PodmanOptions)
	}{
		{"none", "", func(*stromboli.PodmanOptions) {}},
		{"memory", "memory=734003200 ", func(o *stromboli.PodmanOptions) { o.Memory = "700m" }},
		{"cpus", "cpus=700000000 ", func(o *stromboli.PodmanOptions) { o.CPUs = "0.7" }},
		{"cpu_shares", "shares=512", func(o *stromboli.PodmanOptions) { o.CPUShares = &shares }},
	}
	g := s.gate(t)
	var ids, seen []string
	for _, m := range members {
		in := g.spec(text("done"))
		m.set(&in.Podman)
		ids = append(ids, s.submit(t, in))
	}
	for _, id := range ids {
		c, err := suite.engine.Inspect(s.ctx(), "stromboli-"+s.sandboxOf(t, id))
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, fmt.Sprintf("memory=%d cpus=%d shares=%d", c.InForce.MemoryBytes, c.InForce.NanoCPUs, c.InForce.CPUShares))
	}
	g.open(t)
	for i, m := range members {
		s.await(t, ids[i]).want(t, stromboli.Completed, "")
		if i > 0 && (!strings.Contains(seen[i], m.has) || strings.Contains(seen[0], m.has)) {
			t.Errorf("podman.%s: %s, without it %s", m.field, seen[i], seen[0])
		}
	}
}

// evidenceResume goes on with the conversation of the run that resumes nothing.
func evidenceResume(t *testing.T, s *server, first observed) {
	in := keyed("resumes", text("done"))
	in.Claude.SessionID, in.Claude.Resume = first.SessionID, true
	with := s.look(t, s.submit(t, in), "resumes")
	const said = "without plain"
	if first.SessionID == "" || with.SessionID != first.SessionID || !strings.Contains(with.request(), said) {
		t.Errorf("session %s after %s, the request is %.1000s", with.SessionID, first.SessionID, with.request())
	}
	in = keyed("resumes nothing", text("done"))
	if without := s.look(t, s.submit(t, in), "resumes nothing"); strings.Contains(without.request(), said) {
		t.Error("a run without resume knows what was said before")
	}
}

// evidenceImage works in an image that has what the agent image lacks.
func evidenceImage(t *testing.T, s *server) {
	image := imageLoad(t, imageRoot(imageProgram(t, "bash-static", "bash-static"), imageProgram(t, "busybox-static", "busybox")))
	begin := func(name, image string) string {
		in := keyed(name, bash("ls -d /suid"), text("done"))
		in.Podman.Image = image
		return s.submit(t, in)
	}
	without, with := begin("own image", ""), begin("another image", image)
	e := evidence{where: "tool", see: observed.tool, has: "failed=false"}
	e.compare(t, s.look(t, without, "own image"), s.look(t, with, "another image"))
	waitFor(t, "the image to be free", func() bool { return len(s.sandboxes()) == 0 })
}

// evidenceVolumes reads what only the host's directory holds.
func evidenceVolumes(t *testing.T, s *server) {
	owner := os.Geteuid()
	if owner == 0 {
		owner = 1000
	}
	path := s.volume("evidence", owner)
	if err := os.WriteFile(path+"/mark", []byte("VOLUMEMARK"), 0o644); err != nil {
		t.Fatal(err)
	}
	begin := func(name string, volumes ...string) string {
		in := keyed(name, bash("cat /mnt/v/mark; echo x > /mnt/v/w && echo WRITTEN"), text("done"))
		in.Podman.Volumes = volumes
		return s.submit(t, in)
	}
	ids := []string{begin("no volume"), begin("volume ro", path+":/mnt/v:ro"), begin("volume rw", path+":/mnt/v:rw")}
	none, ro, rw := s.look(t, ids[0], "no volume"), s.look(t, ids[1], "volume ro"), s.look(t, ids[2], "volume rw")
	evidence{where: "tool", see: observed.tool, has: "VOLUMEMARK"}.compare(t, none, ro)
	evidence{where: "tool", see: observed.tool, has: "WRITTEN"}.compare(t, ro, rw)
}

// scene is what both runs of a pair have in common.
type scene struct {
	steps []modelstub.Step
	also  func(in *stromboli.RunSpec)
}
