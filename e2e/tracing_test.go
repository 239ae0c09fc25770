package e2e_test

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/modelstub"
	"github.com/tomblancdev/stromboli/internal/tracing/tracingtest"
)

const (
	callersTrace = "0af7651916cd43dd8448eb211c80319c"
	callersSpan  = "b7ad6b7169203331"
	saidCanary   = "canary-of-what-was-said"
)

// submitTraced asks for a job as a caller that is in a trace does.
func (s *server) submitTraced(steps ...modelstub.Step) string {
	s.t.Helper()
	body, err := json.Marshal(spec(steps...))
	if err != nil {
		s.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(s.ctx(), http.MethodPost, s.url+"/run/async", strings.NewReader(string(body)))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Traceparent", "00-"+callersTrace+"-"+callersSpan+"-01")
	resp, err := (&http.Client{Transport: canaryTransport{s.t, &http.Transport{DisableKeepAlives: true}}}).Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var job struct {
		ID string `json:"job_id"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&job); err != nil || job.ID == "" {
		s.t.Fatalf("status %d, job %q, %v", resp.StatusCode, job.ID, err)
	}
	return job.ID
}

// descent is a span's name after those of its ancestors.
func descent(spans map[string]tracingtest.Span, s tracingtest.Span) string {
	name := s.GetName()
	if p, ok := spans[s.Parent]; ok {
		return descent(spans, p) + " > " + name
	}
	if s.Parent == callersSpan {
		return name
	}
	return "? > " + name
}

// TestTrace: a caller's trace holds the request, its run, the sandbox's start,
// turns and tools, and the CLI's own spans, each below its own: by both
// protocols, and also where the server is killed in the middle.
func TestTrace(t *testing.T) {
	t.Parallel()
	for name, kill := range map[string]bool{"http": false, "grpc, killed in the middle": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := tracingtest.Start(t)
			endpoint := c.HTTP
			if kill {
				endpoint = c.GRPC
			}
			s := start(t, "STROMBOLI_TRACING_ENABLED=true", "STROMBOLI_TRACING_ENDPOINT="+endpoint, "STROMBOLI_TRACING_SERVICE_NAME=traced")
			id := s.submitTraced(
				bash("echo "+saidCanary+"; until test -e go; do sleep 0.05; done"), modelstub.Step{Text: saidCanary})
			c.Wait(callersTrace, "the request's span", func(spans []tracingtest.Span) bool { return len(spans) > 0 })
			s.awaitTool(id)
			if kill {
				s.kill()
				s.up()
			}
			s.letGo(id, "go")
			s.events(id)
			s.checkTrace(c)
		})
	}
}

// awaitTool waits until the run's agent has called a tool.
func (s *server) awaitTool(id string) {
	s.t.Helper()
	for e, err := range s.c.Events(s.ctx(), id, 0) {
		if err != nil {
			s.t.Fatal(err)
		}
		if e.Type == stromboli.EventOutput && strings.Contains(string(e.Data), "tool_use") && strings.Contains(string(e.Data), "until test") {
			return
		}
	}
	s.t.Fatal("the agent has called no tool")
}

// checkTrace waits for the trace and looks at each of its spans.
func (s *server) checkTrace(c *tracingtest.Collector) {
	s.t.Helper()
	const run = "POST /run/async > invoke_agent claude-code"
	const cli = run + " > claude_code.interaction"
	want := []string{
		"POST /run/async", run,
		run + " > sandbox start", run + " > sandbox start > creating", run + " > sandbox start > starting",
		run + " > turn", run + " > turn > execute_tool Bash", run + " > turn",
		cli, cli + " > claude_code.llm_request", cli + " > claude_code.tool", cli + " > claude_code.tool > claude_code.tool.blocked_on_user",
		cli + " > claude_code.tool > claude_code.tool.execution", cli + " > claude_code.llm_request",
	}
	slices.Sort(want)
	var got []string
	all := c.Wait(callersTrace, "the whole trace", func(spans []tracingtest.Span) bool { return len(spans) >= len(want) })
	byID := map[string]tracingtest.Span{}
	for _, sp := range all {
		byID[sp.ID] = sp
	}
	for _, sp := range slices.Collect(maps.Values(byID)) {
		got = append(got, descent(byID, sp))
		p, inside := byID[sp.Parent]
		// The CLI's clock counts in milliseconds, and a request ends before its job.
		const ms = 1_000_000
		if inside && p.GetName() != "POST /run/async" && (sp.GetStartTimeUnixNano()+ms < p.GetStartTimeUnixNano() || sp.GetEndTimeUnixNano() > p.GetEndTimeUnixNano()+ms) {
			s.t.Errorf("%s is not within its parent", descent(byID, sp))
		}
		if sp.Resource["service.name"] != "traced" {
			s.t.Errorf("%s is of %v", sp.GetName(), sp.Resource)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		s.t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, sp := range all {
		if sp.GetName() == "invoke_agent claude-code" && (sp.Attrs["stromboli.run.status"] != "completed" || sp.Attrs["gen_ai.usage.output_tokens"] == int64(0)) {
			s.t.Errorf("the run's attributes: %v", sp.Attrs)
		}
	}
	for _, secret := range []string{saidCanary, "Please work", "until test", modelKey} {
		if c.Holds(secret) {
			s.t.Errorf("%q was sent to the collector", secret)
		}
	}
}
