package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/modelstub"
)

// TestServerAway: in mid-answer the server dies and comes back after 0, 20 and
// 60 s. The agent works on meanwhile, its one request to the model goes on, and
// the result is what it would have been.
func TestServerAway(t *testing.T) {
	t.Parallel()
	away := []time.Duration{0, 20 * time.Second, 60 * time.Second}
	servers := make([]*server, len(away))
	runs := make([]*survivor, len(away))
	killed := make([]time.Time, len(away))
	for i, d := range slices.Backward(away) { // so that the first is back at once
		servers[i] = start(t)
		runs[i] = servers[i].survive("away", survPaced(d+3*time.Second))
		runs[i].untilText()
		servers[i].kill()
		killed[i] = time.Now()
	}
	for i, s := range servers {
		if left := away[i] - time.Since(killed[i]); left > 0 {
			<-time.After(left)
		}
		back := time.Now()
		s.up()
		events := runs[i].verify()
		var meanwhile int
		for _, e := range events {
			if e.Type == stromboli.EventText && e.At.After(killed[i]) && e.At.Before(back) {
				meanwhile++
			}
		}
		t.Logf("back after %s: %d of %d events are deltas of the time without a server",
			back.Sub(killed[i]).Round(time.Millisecond), meanwhile, len(events))
		if away[i] > 0 && meanwhile < int(away[i]/survPaceOf(away[i]+3*time.Second)/2) {
			t.Errorf("away for %s: the agent produced only %d deltas meanwhile", away[i], meanwhile)
		}
	}
}

// TestEgressKilled: the CLI's connection to the model is cut in mid-answer by
// the death of egress. The CLI asks again over a connection that the shim
// holds until egress is back; what was shown before is marked as void.
func TestEgressKilled(t *testing.T) { //nolint:tparallel // they share a server, one after the other
	t.Parallel()
	s := start(t)
	whole := survPaced(2 * time.Second)
	const begun, rest = "This much was complete. ", "And this came after the cut."
	half := survPaced(2 * time.Second)
	half.Blocks, half.Text = []modelstub.Block{{Text: begun}, {Text: half.Text}}, ""
	for _, c := range []struct {
		name       string
		steps      []modelstub.Step
		serverDown bool
		want       string // of the deltas that hold, and of the output without line ends
		requests   []int  // per step
		warning    string
	}{
		{"server up", []modelstub.Step{whole}, false, whole.Text, []int{2}, ""},
		{"server down", []modelstub.Step{whole}, true, whole.Text, []int{2}, ""},
		{"after a finished block", []modelstub.Step{half, {Text: rest}}, false, begun + rest, []int{1, 1}, "answer_resumed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			run := s.survive("egress "+c.name, c.steps...)
			for range 5 {
				run.untilText()
			}
			pid := s.egressPID()
			if c.serverDown {
				s.kill()
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if c.serverDown {
				<-time.After(1500 * time.Millisecond) // the CLI notices, asks again, and is held
				s.up()
			}
			events := s.events(run.id)
			job := run.job()
			if job.Status != stromboli.Completed || survFlat(job.Output) != survFlat(c.want) {
				t.Errorf("%s %s %q, output %q", job.Status, job.Reason, job.Error, job.Output)
			}
			if (c.warning != "") != slices.ContainsFunc(job.Warnings, func(w stromboli.Warning) bool { return w.Code == c.warning }) {
				t.Errorf("warnings %v, want %q", job.Warnings, c.warning)
			}
			text, superseded, retries := survHeld(t, events)
			if superseded != 1 || survFlat(text) != survFlat(c.want) {
				t.Errorf("%d superseded events, and the deltas make %q", superseded, text)
			}
			// Held, not refused: no series of retries.
			for step, want := range c.requests {
				if n := run.requests(step); n != want || retries > 1 {
					t.Errorf("step %d: the model saw %d requests, want %d; the CLI retried %d times, want 1 at most", step, n, want, retries)
				}
			}
			if now := s.egressPID(); now == pid {
				t.Error("egress has the pid of the process that was killed")
			}
			run.gone()
		})
	}
}

// survHeld puts together the text that holds once superseded deltas are left
// out, and counts what was superseded and the CLI's retries.
func survHeld(t *testing.T, events []stromboli.Event) (text string, superseded, retries int) {
	t.Helper()
	for _, e := range events {
		switch e.Type {
		case stromboli.EventText:
			text += survTextOf(t, e)
		case stromboli.EventSuperseded:
			superseded++
			var d struct{ Bytes int }
			if err := json.Unmarshal(e.Data, &d); err != nil || d.Bytes < 1 || d.Bytes > len(text) {
				t.Fatalf("superseded %s after %d bytes of text", e.Data, len(text))
			}
			text = text[:len(text)-d.Bytes]
		case stromboli.EventOutput:
			if strings.Contains(survLineOf(t, e), `"subtype":"api_retry"`) {
				retries++
			}
		default:
		}
	}
	return text, superseded, retries
}

// survFlat is a text without its white space.
func survFlat(s string) string { return strings.Join(strings.Fields(s), "") }

// TestContainersGone: containers vanish behind the server's back, while it is
// up and while it is down (as after a reboot). The run says so at once, and its
// session goes on from the saved transcript. What belongs to no run is removed.
func TestContainersGone(t *testing.T) { //nolint:tparallel // they share a server, one after the other
	t.Parallel()
	s := start(t)
	for _, down := range []bool{false, true} {
		t.Run(map[bool]string{false: "server up", true: "server down"}[down], func(t *testing.T) {
			run := s.survSubmit(fmt.Sprint("gone-", down), keyed(fmt.Sprint("gone-", down), bash("echo made > kept.txt; sleep 300"), text("never said")))
			run.untilLine(`"tool_use"`)
			box := s.sandboxes()[0]
			waitFor(t, "the tool to work", func() bool { return s.survAgentRuns(box, "sleep") })
			if down {
				s.kill()
			}
			s.survPodman("rm", "-f", "-t", "0", "stromboli-"+box)
			since := time.Now()
			if down {
				s.survOrphans()
				since = time.Now()
				s.up()
			}
			events := s.events(run.id)
			took := time.Since(since)
			t.Logf("the run ended %s after that", took.Round(time.Millisecond))
			if took > 20*time.Second {
				t.Errorf("the run's end took %s", took)
			}
			j := run.job()
			if j.Status != stromboli.Crashed || j.Reason != stromboli.ReasonLost || j.CrashInfo == nil {
				t.Errorf("%s %s %q, crash info %+v; want crashed lost", j.Status, j.Reason, j.Error, j.CrashInfo)
			}
			if !slices.ContainsFunc(events, func(e stromboli.Event) bool {
				return e.Type == stromboli.EventOutput && strings.Contains(survLineOf(t, e), `"tool_use"`)
			}) {
				t.Error("the output from before is not among the events")
			}
			run.gone()
			s.survResumable(run)
		})
	}
}

// survOrphans leaves a container and a half-made directory that belong to no run.
func (s *server) survOrphans() {
	s.t.Helper()
	id := stromboli.NewSandboxID()
	if err := os.MkdirAll(filepath.Join(s.data, "sb", id, "run"), 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(s.data, "sb", stromboli.NewSandboxID(), "tmp"), 0o700); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	c, err := suite.engine.Create(ctx, engine.ContainerSpec{
		Name: "stromboli-" + id, Image: suite.image, Command: []string{"sleep", "300"}, User: "0:0",
		Labels: map[string]string{"stromboli.instance": s.survInstance(), "stromboli.sandbox": id, "stromboli.run": stromboli.NewRunID(time.Now())},
	})
	if err == nil {
		err = suite.engine.Start(ctx, c.ID)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// TestGracefulStop: SIGTERM leaves sandboxes to the next server; with --drain
// the server waits for them.
func TestGracefulStop(t *testing.T) {
	t.Parallel()
	s := start(t)
	run := s.survive("graceful", survPaced(3*time.Second))
	run.untilText()
	began := time.Now()
	s.stop()
	t.Logf("stopped within %s", time.Since(began).Round(time.Millisecond))
	if len(s.sandboxes()) != 1 || !s.survAgentRuns(s.sandboxes()[0], "claude") {
		t.Fatal("the stop ended the agent")
	}
	s.up()
	run.verify()
	s.stop()

	s.survLaunch("--drain")
	s.survAwaitUp()
	run = s.survive("drain", survPaced(2*time.Second))
	run.untilText()
	s.stop()
	if left := s.sandboxes(); len(left) != 0 {
		t.Errorf("a drained server left sandboxes: %v", left)
	}
	s.up()
	events := run.verify()
	if last := events[len(events)-1]; last.At.After(time.Now().Add(-time.Millisecond)) || !strings.Contains(string(last.Data), `"completed"`) {
		t.Errorf("last event %s at %s", last.Data, last.At)
	}
}

// TestEngineServiceKilled: the engine's own service dies under a running
// sandbox. The run doesn't notice, and the next one works.
func TestEngineServiceKilled(t *testing.T) {
	t.Parallel()
	if argv, _ := suite.engine.CLIArgs(); slices.ContainsFunc(argv, func(a string) bool { return strings.HasPrefix(a, "--root") }) {
		t.Skip("this user's store is of no use here: the server's own service would have another one, without the image")
	}
	s := prepare(t)
	s.env = slices.DeleteFunc(s.env, func(kv string) bool { return strings.HasPrefix(kv, "CONTAINER_HOST=") })
	s.up()
	service := s.survServiceProcess()
	if service == 0 {
		t.Skip("another engine serves this user here: the server has no service of its own to lose")
	}
	run := s.survive("engine", survPaced(2*time.Second))
	run.untilText()
	if err := syscall.Kill(service, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	run.verify()
	run = s.survive("after", survPaced(0))
	run.verify()
	if now := s.survServiceProcess(); now == 0 || now == service {
		t.Errorf("the service's pid was %d and is %d", service, now)
	}
}

// TestFailedStart: a server that can't start says why and leaves no process
// behind.
func TestFailedStart(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	s := prepare(t, "STROMBOLI_SERVER_ADDRESS="+taken.Addr().String())
	s.env = slices.DeleteFunc(s.env, func(kv string) bool { return strings.HasPrefix(kv, "CONTAINER_HOST=") })
	if err := s.tryUp(); err == nil || !strings.Contains(err.Error(), "STROMBOLI_SERVER_ADDRESS") {
		t.Errorf("with a port that is taken: %v", err)
	}
	if pid := s.survServiceProcess(); pid != 0 {
		t.Errorf("the engine's service is left: pid %d", pid)
	}
}

// survServiceProcess is the pid of the server's own Podman service, or 0.
func (s *server) survServiceProcess() int {
	return survProcess(func(pid int) bool {
		b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		args := strings.Split(string(b), "\x00")
		return err == nil && slices.Contains(args, "service") && slices.Contains(args, "unix://"+filepath.Join(s.data, "engine", "podman.sock"))
	})
}
