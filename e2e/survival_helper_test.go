package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/client"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/modelstub"
)

// A survivor is a run that something happens to.
type survivor struct {
	s       *server
	id      string
	session string
	key     string
	steps   []modelstub.Step
	seen    int64 // the newest event that a wait has seen
}

// survive submits a run of one answer, with deltas as events.
func (s *server) survive(key string, steps ...modelstub.Step) *survivor {
	s.t.Helper()
	in := keyed(key, steps...)
	in.Claude.IncludePartialMessages = true
	r := s.survSubmit(key, in)
	r.steps = steps
	return r
}

func (s *server) survSubmit(key string, in stromboli.RunSpec) *survivor {
	s.t.Helper()
	sub, err := s.c.RunAsync(s.ctx(), in)
	if err != nil {
		s.t.Fatal(err)
	}
	return &survivor{s: s, id: sub.JobID, session: sub.SessionID, key: key}
}

// survPaceOf is the pause between the deltas of an answer that takes d.
func survPaceOf(d time.Duration) time.Duration { return max(40*time.Millisecond, d/300) }

// survPaced is an answer that takes about d.
func survPaced(d time.Duration) modelstub.Step {
	var b strings.Builder
	for i := range int64(d / survPaceOf(d)) {
		fmt.Fprintf(&b, "delta %06d of 16\n", i)
	}
	b.WriteString("that was all")
	return modelstub.Step{Text: b.String(), Chunk: 19, PaceMS: survPaceOf(d).Milliseconds()}
}

// text is the run's final answer.
func (r *survivor) text() string { return r.steps[len(r.steps)-1].Text }

func (r *survivor) job() client.Job {
	r.s.t.Helper()
	j, err := r.s.c.Job(r.s.ctx(), r.id)
	if err != nil {
		r.s.t.Fatal(err)
	}
	return j
}

// until waits for an event that the last wait has not seen; it reports false
// when the run ended first.
func (r *survivor) until(want func(stromboli.Event) bool) bool {
	r.s.t.Helper()
	ctx, cancel := context.WithTimeout(r.s.t.Context(), time.Minute)
	defer cancel()
	for e, err := range r.s.c.Events(ctx, r.id, r.seen) {
		if err != nil {
			r.s.t.Fatalf("events of %s after %d: %v", r.id, r.seen, err)
		}
		r.seen = e.Seq
		if want(e) {
			return true
		}
	}
	return false
}

func (r *survivor) untilText() {
	r.s.t.Helper()
	if !r.until(func(e stromboli.Event) bool { return e.Type == stromboli.EventText }) {
		r.s.t.Fatalf("the run ended without a delta: %+v", r.job())
	}
}

func (r *survivor) untilLine(part string) {
	r.s.t.Helper()
	if !r.until(func(e stromboli.Event) bool {
		return e.Type == stromboli.EventOutput && strings.Contains(survLineOf(r.s.t, e), part)
	}) {
		r.s.t.Fatalf("the run ended without a line that has %s: %+v", part, r.job())
	}
}

// requests counts the agent's requests to the model for a step.
func (r *survivor) requests(step int) int {
	n := 0
	for _, q := range r.s.stub.Requests(r.key) {
		if q.Step == step && !strings.Contains(q.Body, `"tools":[]`) {
			n++
		}
	}
	return n
}

// verify waits for the end of a run that nothing should have changed, and
// until nothing of it is left.
func (r *survivor) verify() []stromboli.Event {
	r.s.t.Helper()
	events := r.verifyEvents()
	r.gone()
	return events
}

func (r *survivor) verifyEvents() []stromboli.Event {
	t := r.s.t
	t.Helper()
	events := r.s.events(r.id)
	job := r.job()
	if job.Status != stromboli.Completed || job.Output != r.text() {
		t.Errorf("run %s: %s %s %q, output %q, want %q", r.key, job.Status, job.Reason, job.Error, job.Output, r.text())
	}
	var deltas, want strings.Builder
	for _, s := range r.steps {
		want.WriteString(s.Text)
	}
	lines, results := map[string]bool{}, 0
	for _, e := range events {
		switch e.Type {
		case stromboli.EventText:
			deltas.WriteString(survTextOf(t, e))
		case stromboli.EventSuperseded:
			t.Errorf("run %s: text was superseded", r.key)
		case stromboli.EventOutput:
			line := survLineOf(t, e)
			var known struct{ Type, UUID string }
			_ = json.Unmarshal([]byte(line), &known) // a line may be anything
			if known.UUID != "" && lines[known.UUID] {
				t.Errorf("run %s: this line came twice: %s", r.key, line)
			}
			lines[known.UUID] = true
			if known.Type == "result" {
				results++
			}
		default: // the rest is checkSequence's
		}
	}
	if deltas.String() != want.String() {
		t.Errorf("run %s: the deltas make %q, want %q", r.key, deltas.String(), want.String())
	}
	if results != 1 || len(lines) < 5 {
		t.Errorf("run %s: %d results, %d lines", r.key, results, len(lines))
	}
	for i := range r.steps {
		if n := r.requests(i); n != 1 {
			t.Errorf("run %s: the model was asked %d times for step %d", r.key, n, i)
		}
	}
	return events
}

// gone waits until nothing of any sandbox is left.
func (r *survivor) gone() {
	r.s.t.Helper()
	waitFor(r.s.t, "the sandbox's directory to be removed", func() bool { return len(r.s.sandboxes()) == 0 })
	waitFor(r.s.t, "the sandbox's container to be removed", func() bool { return len(r.s.survContainers()) == 0 })
}

// survResumable proves that a run's session is free and that its transcript was
// saved: the next run goes on with it although the copy in the session's home
// is gone.
func (s *server) survResumable(before *survivor) {
	s.t.Helper()
	if err := os.RemoveAll(filepath.Join(s.data, "sessions", before.session, "home", ".claude", "projects")); err != nil {
		s.t.Fatal(err)
	}
	in := keyed(before.key+"-resumed", text("resumed"))
	in.Claude.SessionID, in.Claude.Resume = before.session, true
	next := s.survSubmit(before.key+"-resumed", in)
	s.events(next.id)
	if j := next.job(); j.Status != stromboli.Completed || j.Output != "resumed" {
		s.t.Errorf("the resumed run: %s %s %q, output %q", j.Status, j.Reason, j.Error, j.Output)
	}
	requests := s.stub.Requests(next.key)
	if len(requests) == 0 || !strings.Contains(requests[len(requests)-1].Body, `\"key\":\"`+before.key+`\"`) {
		s.t.Errorf("the model was not told of the conversation before (%d requests)", len(requests))
	}
	next.gone()
}

// survInstance is the label of the server's containers.
func (s *server) survInstance() string {
	path, err := filepath.EvalSymlinks(s.data)
	if err != nil {
		s.t.Fatal(err)
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(path))
	return strconv.FormatUint(h.Sum64(), 36)
}

// survContainers lists the engine's containers of this server.
func (s *server) survContainers() []engine.Container {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	all, err := suite.engine.List(ctx, map[string]string{"stromboli.instance": s.survInstance()})
	if err != nil {
		s.t.Fatal(err)
	}
	return all
}

// survContainer returns the first process of a sandbox.
func (s *server) survContainer(box string) (pid int, running bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := suite.engine.Inspect(ctx, "stromboli-"+box)
	return c.PID, err == nil && c.State == engine.StateRunning
}

func (s *server) survPodman(args ...string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var out []byte
	var err error
	// Podman 4.3 may find its own cleanup process at work on a container that it
	// removes; whoever removes it by hand does it again.
	for range 5 {
		if out, err = suite.engine.CLI(ctx, args...).CombinedOutput(); err == nil || !bytes.Contains(out, []byte("device or resource busy")) {
			break
		}
	}
	if err != nil {
		s.t.Fatalf("podman %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// survAgentRuns reports whether a process of that name lives in the sandbox, by the
// host's own process table.
func (s *server) survAgentRuns(box, name string) bool {
	s.t.Helper()
	first, running := s.survContainer(box)
	return running && survProcess(func(pid int) bool {
		comm, parent := survStat(pid)
		if comm != name {
			return false
		}
		for ; parent > 1 && parent != first; _, parent = survStat(parent) {
		}
		return parent == first
	}) != 0
}

// survProcess returns the pid of a process that is like that, or 0.
func survProcess(like func(pid int) bool) int {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && like(pid) {
			return pid
		}
	}
	return 0
}

// survStat returns a living process's name and its parent.
func survStat(pid int) (comm string, parent int) {
	b, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	_, rest, _ := strings.Cut(string(b), "(")
	comm, rest, _ = strings.Cut(rest, ")")
	fields := strings.Fields(rest)
	if len(fields) < 2 || fields[0] == "Z" {
		return "", 0
	}
	parent, _ = strconv.Atoi(fields[1])
	return comm, parent
}

// survLaunch starts the server without waiting until it answers.
func (s *server) survLaunch(args ...string) {
	s.t.Helper()
	_ = os.Remove(filepath.Join(s.data, "address"))
	cmd := exec.Command(suite.bin, append([]string{"serve"}, args...)...)
	cmd.Env, cmd.Dir, cmd.Stderr, cmd.Stdout = s.env, s.dir, s.log, s.log
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait()
	}()
	s.cmd, s.done = cmd, done
}

// survAwaitUp waits until a launched server answers.
func (s *server) survAwaitUp() {
	s.t.Helper()
	waitFor(s.t, "the server to answer", func() bool {
		select {
		case <-s.done:
			s.t.Fatalf("the server ended: %s", s.log.tail(3000))
		default:
		}
		b, err := os.ReadFile(filepath.Join(s.data, "address"))
		if err != nil || !strings.HasSuffix(string(b), "\n") {
			return false
		}
		s.url = strings.TrimSpace(string(b))
		s.c = newClient(s.t, s.url)
		ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
		defer cancel()
		_, err = s.c.Version(ctx)
		return err == nil
	})
}

func survTextOf(t *testing.T, e stromboli.Event) string {
	t.Helper()
	var d stromboli.TextData
	if err := json.Unmarshal(e.Data, &d); err != nil {
		t.Fatalf("event %d: %v", e.Seq, err)
	}
	return d.Text
}

func survLineOf(t *testing.T, e stromboli.Event) string {
	t.Helper()
	var d stromboli.OutputData
	if err := json.Unmarshal(e.Data, &d); err != nil {
		t.Fatalf("event %d: %v", e.Seq, err)
	}
	return d.Line
}
