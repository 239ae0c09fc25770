package e2e_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/store"
)

const (
	killsInAll      = 30
	killsMidAnswer  = 10
	killsInCreation = 5
	maxRounds       = 40 // of which about a dozen are needed
)

// TestKillsAtRandomMoments kills the server by SIGKILL again and again, each
// time inside an active run: while its sandbox is made, in mid-answer, while a
// tool works, at its end, while it is queued. Every run ends as if nothing had
// happened. STROMBOLI_TEST_SEED repeats a sequence of moments.
func TestKillsAtRandomMoments(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("STROMBOLI_TEST_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("STROMBOLI_TEST_SEED: %v", err)
		}
	}
	t.Logf("STROMBOLI_TEST_SEED=%d", seed)
	k := &killer{server: start(t, "STROMBOLI_RUNS_MAX=1"), rng: rand.New(rand.NewPCG(seed, 1))}
	began := time.Now()
	rounds := []func(){k.creation, k.answer, k.tool, k.end, k.queue}
	// What a round meant to hit and what it hit are two things; the events
	// tell, and rounds are added until there is enough of each.
	for round := 0; !k.enough(); round++ {
		if round == maxRounds {
			t.Fatalf("after %d rounds: %+v", round, k.hits)
		}
		switch {
		case round < len(rounds):
			rounds[round]()
		case k.hits.creation < killsInCreation:
			k.creation()
		case k.hits.answer < killsMidAnswer:
			k.answer()
		case k.hits.all >= killsInAll && k.hits.end == 0: // a short time to hit
			k.end()
		default:
			rounds[k.rng.IntN(len(rounds))]()
		}
		if t.Failed() {
			t.Fatalf("seed %d, round %d: %+v", seed, round, k.hits)
		}
	}
	t.Logf("%d runs, kills: %+v, in %s", len(k.sessions), k.hits, time.Since(began).Round(time.Millisecond))
	k.stop()
	k.nothingLeft()
}

// killer is a server that gets killed.
type killer struct {
	*server
	rng      *rand.Rand
	n        int // names runs
	sessions []string
	kills    []time.Time // during the present round
	hits     struct{ all, queue, creation, start, answer, tool, end int }
}

func (k *killer) enough() bool {
	return k.hits.all >= killsInAll && k.hits.answer >= killsMidAnswer && k.hits.creation >= killsInCreation &&
		k.hits.queue > 0 && k.hits.tool > 0 && k.hits.end > 0
}

func (k *killer) key(what string) string {
	k.n++
	return what + "-" + strconv.Itoa(k.n)
}

// strike kills the server at a random moment within d and starts the next.
func (k *killer) strike(d time.Duration) {
	k.t.Helper()
	<-time.After(time.Duration(k.rng.Int64N(int64(d))))
	k.kill()
	k.kills = append(k.kills, time.Now())
	k.survLaunch()
}

// hit kills, and then waits until the next server answers.
func (k *killer) hit(d time.Duration) {
	k.t.Helper()
	k.strike(d)
	k.survAwaitUp()
}

// creation: the first kill soon after the submission, the next ones while a
// new server takes over, and while it makes a sandbox anew.
func (k *killer) creation() {
	r := k.survive(k.key("creation"), survPaced(200*time.Millisecond))
	k.strike(100 * time.Millisecond)
	k.hit(150 * time.Millisecond) // it may be recovering
	k.hit(100 * time.Millisecond)
	k.judge(r)
}

func (k *killer) answer() {
	r := k.survive(k.key("answer"), survPaced(3*time.Second))
	for range 4 {
		if !r.until(survIsText) {
			break
		}
		k.hit(200 * time.Millisecond)
	}
	k.judge(r)
}

func (k *killer) tool() {
	step := bash("echo ran >> ran.txt; sleep 1.5")
	step.Text = "I run it. "
	r := k.survive(k.key("tool"), step, survPaced(100*time.Millisecond))
	r.untilLine(`"type":"tool_use"`)
	k.hit(400 * time.Millisecond)
	k.hit(300 * time.Millisecond)
	k.judge(r)
	b, err := os.ReadFile(filepath.Join(k.data, "sessions", r.session, "workspace", "ran.txt"))
	if err != nil || string(b) != "ran\n" {
		k.t.Errorf("the tool ran other than once: %q, %v", b, err)
	}
}

func (k *killer) end() {
	r := k.survive(k.key("end"), survPaced(100*time.Millisecond))
	r.untilLine(`"type":"result"`)
	k.hit(150 * time.Millisecond)
	k.judge(r)
}

func (k *killer) queue() {
	first := k.survive(k.key("first"), survPaced(time.Second))
	second := k.survive(k.key("second"), survPaced(100*time.Millisecond))
	if j := second.job(); j.Status != stromboli.Pending {
		k.t.Fatalf("the second run is %s", j.Status)
	}
	k.hit(500 * time.Millisecond)
	k.hit(500 * time.Millisecond)
	first.verifyEvents()
	k.judge(second)
	k.sessions = append(k.sessions, first.session)
}

// judge verifies the run and counts what the kills hit.
func (k *killer) judge(r *survivor) {
	k.t.Helper()
	events := r.verify()
	k.sessions = append(k.sessions, r.session)
	var created, generating, result, finished time.Time
	var said, used []time.Time
	for _, e := range events {
		switch {
		case survIsPhase(e, stromboli.PhaseCreating) && created.IsZero():
			created = e.At
		case survIsPhase(e, stromboli.PhaseGenerating) && generating.IsZero():
			generating = e.At
		case survIsText(e):
			said = append(said, e.At)
		case e.Type == stromboli.EventRunFinished:
			finished = e.At
		case e.Type != stromboli.EventOutput:
		case strings.Contains(survLineOf(k.t, e), `"type":"tool_`): // use and result
			used = append(used, e.At)
		case strings.Contains(survLineOf(k.t, e), `"type":"result"`):
			result = e.At
		}
	}
	within := func(at time.Time, times []time.Time) bool {
		return len(times) > 1 && at.After(times[0]) && at.Before(times[len(times)-1])
	}
	for _, at := range k.kills {
		switch {
		case at.After(finished):
			continue // the run was over
		case at.Before(created):
			k.hits.queue++
		case at.Before(generating):
			k.hits.creation++
		case len(said) > 0 && at.Before(said[0]):
			k.hits.start++
		case within(at, used):
			k.hits.tool++
		case within(at, said):
			k.hits.answer++
		case at.After(result):
			k.hits.end++
		}
		k.hits.all++
	}
	k.kills = nil
}

// nothingLeft looks into the database of the server, which has stopped.
func (k *killer) nothingLeft() {
	k.t.Helper()
	usernsNothingMounted(k.server)
	st, err := store.Open(k.ctx(), store.Config{Path: filepath.Join(k.data, "stromboli.db")})
	if err != nil {
		k.t.Fatal(err)
	}
	defer func() { _ = st.Close() }()
	if active, err := st.ActiveRuns(k.ctx()); err != nil || len(active) != 0 {
		k.t.Errorf("%d active runs are left, %v", len(active), err)
	}
	for _, id := range k.sessions {
		session, err := st.GetSession(k.ctx(), stromboli.DefaultTenant, id)
		if err != nil || session.ActiveRun != "" || session.TranscriptKey == "" {
			k.t.Errorf("session %s: held by %q, transcript %q, %v", id, session.ActiveRun, session.TranscriptKey, err)
		}
	}
}

func survIsText(e stromboli.Event) bool { return e.Type == stromboli.EventText }

func survIsPhase(e stromboli.Event, phase stromboli.Phase) bool {
	return e.Type == stromboli.EventPhase && strings.Contains(string(e.Data), `"`+string(phase)+`"`)
}

// TestCancelSurvivesKill: once a cancel is answered it is carried out, though
// the server is killed right after the answer and the agent's tool ignores
// every signal that can be ignored.
func TestCancelSurvivesKill(t *testing.T) { //nolint:tparallel // they share a server, one after the other
	t.Parallel()
	s := start(t)
	for _, when := range []string{"working", "answering", "creating"} {
		t.Run(when, func(t *testing.T) {
			step := survPaced(30 * time.Second)
			if when == "working" {
				step = bash("trap '' TERM INT HUP; echo begun; while :; do sleep 100; done")
			}
			r := s.survive("cancel-"+when, step)
			box := ""
			switch when {
			case "working":
				r.untilLine(`"type":"tool_use"`)
				box = s.sandboxes()[0]
				waitFor(t, "the tool", func() bool { return s.survAgentRuns(box, "sleep") })
			case "answering":
				r.untilText()
				box = s.sandboxes()[0]
			}
			began := time.Now()
			if err := s.c.Cancel(s.ctx(), r.id); err != nil {
				t.Fatal(err)
			}
			took := time.Since(began)
			s.kill()
			t.Logf("DELETE was answered after %s", took.Round(10*time.Microsecond))
			if box != "" {
				waitFor(t, "the agent's end without a server", func() bool { return !s.survAgentRuns(box, "claude") && !s.survAgentRuns(box, "sleep") })
			}
			t.Logf("the agent had ended %s after the request", time.Since(began).Round(time.Millisecond))
			s.up()
			s.events(r.id)
			if j := r.job(); j.Status != stromboli.Cancelled || j.Reason != stromboli.ReasonRequest {
				t.Errorf("%s %s %q", j.Status, j.Reason, j.Error)
			}
			r.gone()
		})
	}
}
