package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/client"
)

// outcome is one row of docs/outcomes.md: what happened to a run, what a caller
// sees of it, and how the test makes it happen.
type outcome struct {
	what   string
	status stromboli.Status
	reason stromboli.Reason
	http   int    // of POST /run
	crash  string // crash_info: the signal if there is one, and the exit code

	spec    func(s *server) stromboli.RunSpec
	during  func(t *testing.T, s *server, id string) // what is done to the run while it goes on
	check   func(t *testing.T, s *server, r endedRun)
	late    bool // it is submitted when all rows before have ended
	hangsUp bool // its caller goes away, so http is 0
	root    bool // what it takes is not to be had without root
}

// outcomeGroup are rows that share a server.
type outcomeGroup struct {
	title string
	agent string // what plays the agent
	rows  []outcome
	start func(t *testing.T) *server
}

// outcomes is the table, in the document's order.
func outcomes() []outcomeGroup {
	const cli = "the agent CLI"
	withCLI := func(env ...string) func(*testing.T) *server {
		return func(t *testing.T) *server { return start(t, append([]string{"STROMBOLI_RUNS_MAX=4"}, env...)...) }
	}
	return []outcomeGroup{
		{"The agent answers", cli, append(answeredOutcomes(), failedOutcomes()...), withCLI("STROMBOLI_RUNS_BACKGROUND_WAIT=6s")},
		{"Time is up, or somebody cancels", cli, append(deadlineOutcomes(), cancelOutcomes()...), withCLI("STROMBOLI_RUNS_BACKGROUND_WAIT=2m")},
		{"Something dies", cli, append(killedOutcomes(), lostOutcomes()...), withCLI("STROMBOLI_RUNS_MAX=7")},
		{"The server is away", cli, awayOutcomes(), withCLI("STROMBOLI_ORPHAN_TIMEOUT=" + awayFor.String())},
		{"It waits for a slot", cli, queuedOutcomes(), queuedServer},
		{
			"The agent CLI misbehaves", "a script in its place, which prints what the CLI was recorded to print, or never would", oddOutcomes(),
			func(t *testing.T) *server { return rogue(t, "STROMBOLI_RUNS_MAX=4") },
		},
		{
			"The agent fills the disk", "a script in its place", diskOutcomes(),
			func(t *testing.T) *server { return rogue(t, "STROMBOLI_RUNS_MAX=4", "STROMBOLI_RESOURCES_DISK=100m") },
		},
	}
}

// exitOf is the exit code of `stromboli run`; TestExitCodes proves it for each class.
func exitOf(status stromboli.Status, reason stromboli.Reason) int {
	switch {
	case status == stromboli.Completed:
		return 0
	case status == stromboli.Crashed:
		return 3
	case status == stromboli.Cancelled:
		return 130
	case reason == stromboli.ReasonTimeout:
		return 124
	}
	return 1
}

// TestOutcomes: whatever happens to a run, it ends, and the caller of POST /run
// is told what the table in the documentation says.
func TestOutcomes(t *testing.T) { //nolint:tparallel // rows of a server are checked one after the other
	t.Parallel()
	for _, g := range outcomes() {
		t.Run(g.title, func(t *testing.T) {
			s := g.start(t)
			s.outcomes(t, g.rows)
			waitFor(t, "the sandboxes to be discarded", func() bool { return len(s.sandboxes()) == 0 && len(s.survContainers()) == 0 })
		})
	}
}

// outcomes makes all rows happen at once, so that they share the machine's
// waiting times, and checks each in a subtest.
func (s *server) outcomes(t *testing.T, rows []outcome) {
	t.Helper()
	calls := make([]*posting, len(rows))
	submit := func(i int) {
		in := rows[i].spec(s)
		in.Metadata = map[string]string{"row": strconv.Itoa(i)}
		calls[i] = s.post(t, in)
	}
	for i, row := range rows {
		if !row.late && (!row.root || !suite.rootless) {
			submit(i)
			s.idOf(t, i) // in the table's order
		}
	}
	for i, row := range rows {
		t.Run(row.what, func(t *testing.T) {
			if row.root && suite.rootless {
				t.Skip("needs root")
			}
			if row.late {
				submit(i)
			}
			id := s.idOf(t, i)
			if row.hangsUp {
				s.inTool(t, id)
				calls[i].hangUp()
			}
			if row.during != nil {
				row.during(t, s, id)
			}
			r := s.await(t, id)
			r.want(t, row.status, row.reason)
			if !row.hangsUp {
				row.told(t, calls[i].answer(t, s))
			}
			if got := crashOf(r.CrashInfo); got != row.crash {
				t.Errorf("crash_info is %q, want %q: %+v", got, row.crash, r.CrashInfo)
			}
			if row.status != stromboli.Completed && (r.Error == "" || r.CrashInfo != nil && r.CrashInfo.Reason == "") {
				t.Errorf("it ended badly without a sentence: %q, %+v", r.Error, r.CrashInfo)
			}
			if row.check != nil {
				row.check(t, s, r)
			}
		})
	}
}

// posting is a POST /run that waits for its answer.
type posting struct {
	key, body string
	posted    chan posted
	hangUp    func()
}

type posted struct {
	status int
	body   []byte
	err    error
}

// post sends POST /run and doesn't wait for the answer.
func (s *server) post(t *testing.T, in stromboli.RunSpec) *posting {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.t.Context()), 4*time.Minute)
	s.t.Cleanup(cancel)
	p := &posting{key: "row-" + in.Metadata["row"], body: specJSON(t, in), posted: make(chan posted, 1), hangUp: cancel}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/run", strings.NewReader(p.body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", p.key)
	go func() {
		resp, err := new(http.Client).Do(req)
		if err != nil {
			p.posted <- posted{err: err}
			return
		}
		defer func() { _ = resp.Body.Close() }()
		var b bytes.Buffer
		_, err = b.ReadFrom(resp.Body)
		p.posted <- posted{resp.StatusCode, b.Bytes(), err}
	}()
	return p
}

// answer is what the caller is told; one that was cut off asks again.
func (p *posting) answer(t *testing.T, s *server) posted {
	t.Helper()
	a := <-p.posted
	if a.err != nil {
		again := s.send(t, http.MethodPost, "/run", p.body, "Idempotency-Key: "+p.key)
		a = posted{status: again.status, body: again.body}
	}
	return a
}

// idOf waits until a row's run is there and returns its id.
func (s *server) idOf(t *testing.T, row int) (id string) {
	t.Helper()
	waitFor(t, "the run to be there", func() bool {
		page, err := s.c.Jobs(s.ctx(), client.Filter{Kind: "all", Metadata: map[string]string{"row": strconv.Itoa(row)}})
		if err != nil {
			t.Fatal(err)
		}
		if len(page.Jobs) > 0 {
			id = page.Jobs[0].ID
		}
		return id != ""
	})
	return id
}

// told checks what POST /run said.
func (o outcome) told(t *testing.T, a posted) {
	t.Helper()
	if a.err != nil || a.status != o.http {
		t.Fatalf("POST /run: status %d, %v, want %d: %.500s", a.status, a.err, o.http, a.body)
	}
	var said struct {
		ID, Status, Code, Error string
		Reason                  stromboli.Reason
		CrashInfo               *stromboli.CrashInfo `json:"crash_info"`
	}
	if err := json.Unmarshal(a.body, &said); err != nil {
		t.Fatal(err)
	}
	want := string(o.status)
	if o.http != http.StatusOK {
		want = "error"
	}
	if said.Status != want || said.Reason != o.reason || (o.http != http.StatusOK) != (said.Code != "") || crashOf(said.CrashInfo) != o.crash {
		t.Errorf("POST /run says %.500s", a.body)
	}
}

// crashOf is a crash as the table shows it.
func crashOf(c *stromboli.CrashInfo) string {
	switch {
	case c == nil:
		return ""
	case c.Signal != "":
		return fmt.Sprintf("%s, %d", c.Signal, c.ExitCode)
	}
	return strconv.Itoa(c.ExitCode)
}

// TestExitCodes: `stromboli run` exits by the run's outcome, one code for each
// class of the table.
func TestExitCodes(t *testing.T) { //nolint:tparallel // they share a server, one after the other
	t.Parallel()
	s := start(t)
	type class struct {
		prompt stromboli.RunSpec
		flags  []string
		during func(*exec.Cmd, string)
		want   int
	}
	hang := spec(bash(stayCommand("exit-codes")))
	for name, c := range map[string]class{
		"completed": {prompt: spec(text("fine")), want: exitOf(stromboli.Completed, "")},
		"failed":    {prompt: spec(failing(400)), want: exitOf(stromboli.Failed, stromboli.ReasonModel)},
		"timeout":   {prompt: hang, flags: []string{"--timeout=3s"}, want: exitOf(stromboli.Failed, stromboli.ReasonTimeout)},
		"crashed":   {prompt: spec(bash("kill -9 $CLAUDE_PID; sleep 5")), want: exitOf(stromboli.Crashed, stromboli.ReasonSignal)},
		"cancelled by others": {prompt: hang, during: func(_ *exec.Cmd, id string) {
			if err := s.c.Cancel(s.ctx(), id); err != nil {
				t.Error(err)
			}
		}, want: exitOf(stromboli.Cancelled, stromboli.ReasonRequest)},
		"interrupted": {prompt: hang, during: func(cmd *exec.Cmd, _ string) {
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Error(err)
			}
		}, want: exitOf(stromboli.Cancelled, stromboli.ReasonRequest)},
		"refused": {prompt: spec(text("x")), flags: []string{"--image=no/such:image"}, want: 1},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(s.ctx(), suite.bin, append([]string{"run", "--server=" + s.url}, append(c.flags, c.prompt.Prompt)...)...)
			var out bytes.Buffer
			log := &syncBuffer{}
			cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = s.env, s.dir, &out, log
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if c.during != nil {
				var id string
				waitFor(t, "the run's id", func() bool {
					_, rest, _ := strings.Cut(log.tail(1<<16), "run job-")
					var ok bool
					id, _, ok = strings.Cut("job-"+rest, ",")
					return ok
				})
				s.inTool(t, id)
				c.during(cmd, id)
			}
			err := cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != c.want {
				t.Errorf("exit code %d, want %d: %v, %s%s", got, c.want, err, out.String(), log.tail(2000))
			}
			if c.want == 0 && out.String() != "fine\n" {
				t.Errorf("it printed %q", out.String())
			}
		})
	}
}

// TestUsagePerTurn: what a run says that it used is its own, not its session's:
// the CLI counts on where the run before has stopped.
func TestUsagePerTurn(t *testing.T) {
	t.Parallel()
	s := start(t)
	total := func(r endedRun) float64 {
		var last float64
		for _, e := range r.events {
			var line struct {
				Type string
				Cost float64 `json:"total_cost_usd"`
			}
			if e.Type == stromboli.EventOutput && json.Unmarshal([]byte(survLineOf(t, e)), &line) == nil && line.Type == "result" {
				last = line.Cost
			}
		}
		return last
	}
	near := func(a, b float64) bool { return a-b < 1e-9 && b-a < 1e-9 }
	first := s.do(t, keyed("one", bash("true"), text("first")))
	second := s.do(t, inSession(first.SessionID, keyed("two", text("second"))))
	for key, r := range map[string]endedRun{"one": first, "two": second} {
		r.want(t, stromboli.Completed, "")
		var sent int64
		for _, q := range s.stub.Requests(key) {
			sent += int64(q.Size/4 + 1)
		}
		if u := r.Usage; u == nil || u.InputTokens != sent || u.TotalTokens != u.InputTokens+u.OutputTokens || u.EstimatedCostUSD <= 0 {
			t.Fatalf("run %s: usage %+v, the model counted %d tokens of input", key, r.Usage, sent)
		}
	}
	before, after := total(first), total(second)
	if !near(first.Usage.EstimatedCostUSD, before) || !near(second.Usage.EstimatedCostUSD, after-before) || after <= before {
		t.Errorf("the runs cost $%g and $%g, the CLI counted $%g and then $%g in all", first.Usage.EstimatedCostUSD, second.Usage.EstimatedCostUSD, before, after)
	}
}

const (
	outcomesDoc   = "../docs/outcomes.md"
	outcomesBegin = "<!-- begin: written by TestOutcomesDocumented -->\n"
	outcomesEnd   = "<!-- end -->\n"
)

// TestOutcomesDocumented: the document's table is the one that is tested.
// UPDATE_DOCS=1 writes it.
func TestOutcomesDocumented(t *testing.T) {
	doc, err := os.ReadFile(outcomesDoc)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(doc), outcomesBegin)
	_, tail, ok2 := strings.Cut(rest, outcomesEnd)
	if !ok || !ok2 {
		t.Fatal("the document has lost its marks")
	}
	want := head + outcomesBegin + outcomesTable() + outcomesEnd + tail
	if want == string(doc) {
		return
	}
	if os.Getenv("UPDATE_DOCS") == "" {
		t.Fatalf("%s is not what is tested; UPDATE_DOCS=1 go test ./e2e -run %s writes it", outcomesDoc, t.Name())
	}
	if err := os.WriteFile(outcomesDoc, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

func outcomesTable() string {
	var b strings.Builder
	for _, g := range outcomes() {
		fmt.Fprintf(&b, "\n### %s\n\nProven with %s.\n\n", g.title, g.agent)
		b.WriteString("| what happened | status | reason | `POST /run` | `crash_info` | `stromboli run` | webhook |\n|---|---|---|---|---|---|---|\n")
		for _, o := range g.rows {
			reason, crash, answer := "–", "–", "–"
			if !o.hangsUp {
				answer = strconv.Itoa(o.http)
			}
			if o.reason != "" {
				reason = "`" + string(o.reason) + "`"
			}
			if o.crash != "" {
				crash = o.crash
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %d | %s |\n", o.what, o.status, reason, answer, crash, exitOf(o.status, o.reason), o.status)
		}
	}
	b.WriteString("\n")
	return b.String()
}
