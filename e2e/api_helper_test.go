package e2e_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/client"
	"github.com/tomblancdev/stromboli/internal/modelstub"
)

// apiAnswer is what a server said to a plain HTTP request.
type apiAnswer struct {
	status int
	header http.Header
	body   []byte
	took   time.Duration
}

// send makes a request as any HTTP client would, without this project's own
// client: the names and types on the wire are the contract. Headers are
// "Name: value"; a body gets the type application/json unless they name one.
func (s *server) send(t *testing.T, method, path, body string, headers ...string) apiAnswer {
	t.Helper()
	return s.sendBody(t, method, path, strings.NewReader(body), headers...)
}

func (s *server) sendBody(t *testing.T, method, path string, body io.Reader, headers ...string) apiAnswer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	if req.ContentLength != 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Host" {
			req.Host = value
			continue
		}
		req.Header.Set(name, value)
	}
	begin := time.Now()
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Timeout: 2 * time.Minute, Transport: canaryTransport{t, transport}}).Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: reading the answer: %v", method, path, err)
	}
	return apiAnswer{resp.StatusCode, resp.Header, b, time.Since(begin)}
}

// object reads the answer's body, which must be a JSON object that says so.
func (a apiAnswer) object(t *testing.T) map[string]any {
	t.Helper()
	if ct := a.header.Get("Content-Type"); ct != "application/json" {
		t.Errorf("Content-Type %q with %.300s", ct, a.body)
	}
	var o map[string]any
	if err := json.Unmarshal(a.body, &o); err != nil {
		t.Fatalf("status %d, body is no JSON object: %v: %.300s", a.status, err, a.body)
	}
	return o
}

// want fails the test unless the answer has this status.
func (a apiAnswer) want(t *testing.T, status int) apiAnswer {
	t.Helper()
	if a.status != status {
		t.Fatalf("status %d, want %d: %.500s", a.status, status, a.body)
	}
	return a
}

// refused checks an error's body: the code, a sentence, the request's id, and
// the field, unless empty, that the details name.
func (a apiAnswer) refused(t *testing.T, status int, code, field string) {
	t.Helper()
	o := a.want(t, status).object(t)
	if o["code"] != code {
		t.Errorf("code %v, want %s: %.300s", o["code"], code, a.body)
	}
	if text, _ := o["error"].(string); text == "" {
		t.Errorf("an error without a sentence: %.300s", a.body)
	}
	if id, _ := o["request_id"].(string); id == "" || id != a.header.Get("X-Request-ID") {
		t.Errorf("request_id %q, header %q", id, a.header.Get("X-Request-ID"))
	}
	if field == "" {
		return
	}
	details, _ := o["details"].([]any)
	for _, d := range details {
		if d, _ := d.(map[string]any); d["field"] == field {
			return
		}
	}
	t.Errorf("the details don't name %s: %.300s", field, a.body)
}

// sseBlock is one event of a stream, as its bytes say.
type sseBlock struct{ id, event, data string }

// sseBlocks takes a stream apart as strictly as the strictest of the published
// clients' parsers: one space after each colon, LF only, no event without data.
func sseBlocks(t *testing.T, stream []byte) []sseBlock {
	t.Helper()
	if bytes.ContainsRune(stream, '\r') {
		t.Error("the stream holds a carriage return")
	}
	if !bytes.HasSuffix(stream, []byte("\n\n")) {
		t.Errorf("the stream doesn't end with a blank line: %q", stream[max(0, len(stream)-200):])
	}
	var all []sseBlock
	for _, part := range strings.Split(strings.TrimSuffix(string(stream), "\n\n"), "\n\n") {
		var b sseBlock
		hasData := false
		for _, line := range strings.Split(part, "\n") {
			name, value, ok := strings.Cut(line, ": ")
			switch {
			case ok && name == "id":
				b.id = value
			case ok && name == "event":
				b.event = value
			case ok && name == "data":
				b.data, hasData = value, true
			case strings.HasPrefix(line, ":"), strings.HasPrefix(line, "retry: "):
			default:
				t.Errorf("a line that parsers don't know: %.200q", line)
			}
		}
		if b.event != "" && !hasData {
			t.Errorf("event %q without data", b.event)
		}
		all = append(all, b)
	}
	return all
}

// specJSON is a spec as JSON.
func specJSON(t *testing.T, in stromboli.RunSpec) string {
	t.Helper()
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// promptOf is a run of the given steps as the parameters of GET /run/stream.
func promptOf(steps ...modelstub.Step) string { return spec(steps...).Prompt }

// endedRun is a run that is over, with everything that is known of it.
type endedRun struct {
	client.Job
	events []stromboli.Event
}

// has returns the data of the first event of a type.
func (r endedRun) first(t *testing.T, typ stromboli.EventType, into any) bool {
	t.Helper()
	i := slices.IndexFunc(r.events, func(e stromboli.Event) bool { return e.Type == typ })
	if i < 0 {
		return false
	}
	if err := json.Unmarshal(r.events[i].Data, into); err != nil {
		t.Fatal(err)
	}
	return true
}

func (r endedRun) count(typ stromboli.EventType) int {
	n := 0
	for _, e := range r.events {
		if e.Type == typ {
			n++
		}
	}
	return n
}

// want fails the test unless the run ended this way.
func (r endedRun) want(t *testing.T, status stromboli.Status, reason stromboli.Reason) {
	t.Helper()
	if r.Status != status || r.Reason != reason {
		t.Fatalf("%s %s, want %s %s; error %q, output %.300q", r.Status, r.Reason, status, reason, r.Error, r.Output)
	}
}

func (r endedRun) warned(code string) bool {
	return slices.ContainsFunc(r.Warnings, func(w stromboli.Warning) bool { return w.Code == code })
}

// submit starts a run.
func (s *server) submit(t *testing.T, in stromboli.RunSpec) string {
	t.Helper()
	sub, err := s.c.RunAsync(s.ctx(), in)
	if err != nil {
		t.Fatal(err)
	}
	return sub.JobID
}

// await waits for a run's end and checks its events.
func (s *server) await(t *testing.T, id string) endedRun {
	t.Helper()
	var r endedRun
	for e, err := range s.c.Events(s.ctx(), id, 0) {
		if err != nil {
			t.Fatalf("events of %s: %v", id, err)
		}
		r.events = append(r.events, e)
	}
	checkSequence(t, r.events)
	var err error
	if r.Job, err = s.c.Job(s.ctx(), id); err != nil {
		t.Fatal(err)
	}
	return r
}

// do starts a run and waits for its end.
func (s *server) do(t *testing.T, in stromboli.RunSpec) endedRun {
	t.Helper()
	return s.await(t, s.submit(t, in))
}

// fleetRun is one run of a fleet.
type fleetRun struct {
	name  string
	spec  stromboli.RunSpec
	check func(t *testing.T, r endedRun)
}

// fleet submits all runs at once, so that they share the machine's waiting
// times, and checks each in a subtest.
func (s *server) fleet(t *testing.T, members []fleetRun) {
	t.Helper()
	ids := make([]string, len(members))
	for i, m := range members {
		ids[i] = s.submit(t, m.spec)
	}
	for i, m := range members {
		t.Run(m.name, func(t *testing.T) { m.check(t, s.await(t, ids[i])) })
	}
}

// waitEvent waits until a run has an event that ok accepts.
func (s *server) waitEvent(t *testing.T, id, what string, ok func(stromboli.Event) bool) {
	t.Helper()
	for e, err := range s.c.Events(s.ctx(), id, 0) {
		if err != nil {
			t.Fatalf("events of %s: %v", id, err)
		}
		if ok(e) {
			return
		}
	}
	t.Fatalf("%s ended without %s", id, what)
}

// sandboxOf waits until a run's agent is asked for and returns its sandbox.
func (s *server) sandboxOf(t *testing.T, id string) string {
	t.Helper()
	var d stromboli.StartedData
	s.waitEvent(t, id, "run.started", func(e stromboli.Event) bool {
		return e.Type == stromboli.EventRunStarted && json.Unmarshal(e.Data, &d) == nil
	})
	return d.Sandbox
}

// inTool waits until the agent says in its output that a tool was called.
func (s *server) inTool(t *testing.T, id string) {
	t.Helper()
	s.waitEvent(t, id, "a call of a tool", func(e stromboli.Event) bool {
		return e.Type == stromboli.EventOutput && bytes.Contains(e.Data, []byte(`\"tool_use\"`))
	})
}

// idle checks that the server has never had a run, a sandbox or a model request.
func (s *server) idle(t *testing.T) {
	t.Helper()
	page, err := s.c.Jobs(s.ctx(), client.Filter{Kind: "all"})
	if err != nil {
		t.Fatal(err)
	}
	if len(page.Jobs) != 0 {
		t.Errorf("%d runs were made, the newest is %+v", len(page.Jobs), page.Jobs[0])
	}
	if boxes := s.sandboxes(); len(boxes) != 0 {
		t.Errorf("sandboxes were made: %v", boxes)
	}
	if n := len(s.stub.Requests("")); n != 0 {
		t.Errorf("the model was asked %d times", n)
	}
}

// processesLike counts the host's processes whose command line holds the mark.
func processesLike(mark string) int {
	entries, _ := os.ReadDir("/proc")
	n := 0
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		if b, err := os.ReadFile("/proc/" + e.Name() + "/cmdline"); err == nil && bytes.Contains(b, []byte(mark)) {
			n++
		}
	}
	return n
}

// stayCommand is a command that runs until it is killed, and can be found by its mark.
func stayCommand(mark string) string {
	return "python3 -c 'import time; time.sleep(600)' " + mark
}
