package runner_test

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/blob"
	"github.com/tomblancdev/stromboli/internal/claude"
	"github.com/tomblancdev/stromboli/internal/engine"
	"github.com/tomblancdev/stromboli/internal/engine/enginetest"
	"github.com/tomblancdev/stromboli/internal/eventlog"
	images "github.com/tomblancdev/stromboli/internal/image"
	"github.com/tomblancdev/stromboli/internal/policy"
	"github.com/tomblancdev/stromboli/internal/runner"
	"github.com/tomblancdev/stromboli/internal/sandbox"
	"github.com/tomblancdev/stromboli/internal/secret"
	"github.com/tomblancdev/stromboli/internal/store"
)

const patience = 60 * time.Second

// fakeCLI behaves as the agent CLI does, save that it runs the script that its
// first message holds in place of asking a model. It notes each of its starts.
const fakeCLI = `#!/bin/bash
how=new
for a in "$@"; do case $a in
  --session-id=*) id=${a#*=};; --resume=*) from=${a#*=} how=resume;; --fork-session) how=fork;; --no-session-persistence) keeps=no;;
esac; done
id=${id:-$from}
say() { printf '%s\n' "$1"; }
mkdir -p "$HOME/.claude/projects/p"
log=$(find "$HOME/.claude/projects" -name "${from:-$id}.jsonl" | head -1)
if [ $how != new ] && [ ! -e "$log" ]; then echo "No conversation found with session ID: $from" >&2; exit 1; fi
if [ "$keeps" = no ]; then cat "$log" > "/tmp/log"; log=/tmp/log
elif [ $how = fork ]; then cp "$log" "$HOME/.claude/projects/p/$id.jsonl"; log=$HOME/.claude/projects/p/$id.jsonl; fi
log=${log:-$HOME/.claude/projects/p/$id.jsonl}
echo "start $STROMBOLI_NOTHING" >> "$HOME/starts"
read -r message || exit 3
say '{"type":"system","subtype":"init","session_id":"'$id'","model":"fake"}'
echo "$message" >> "$log"
script=$(sed 's/.*RUN:\([A-Za-z0-9+\/=]*\).*/\1/' <<<"$message" | base64 -d)
result() {
  say '{"type":"assistant","message":{"id":"m","model":"fake","content":[{"type":"text","text":"'"$1"'"}]}}'
  say '{"type":"result","subtype":"success","is_error":false,"num_turns":1,"result":"'"$1"'","session_id":"'$id'","total_cost_usd":0.1,"usage":{"input_tokens":1,"output_tokens":1}}'
}
eval "$script"
cat >/dev/null
`

// world is everything that outlives a server.
type world struct {
	t      *testing.T
	engine *enginetest.Fake
	shims  *shims
	data   string
	cli    string

	keep time.Duration // of sandboxes
	most int           // kept ones; 0: 100

	network // what egress knows
	keys    *secret.Keyring

	full    atomic.Bool            // there is no room for new runs
	held    atomic.Bool            // no run could start
	asked   atomic.Int64           // how often that was looked at
	waits   atomic.Int64           // how often a run began to wait for the disk
	down    atomic.Pointer[string] // the engine's method that fails; "": all
	unready atomic.Bool            // the model has no credential
}

// breakEngine makes a method of the engine fail, or all of them ("").
func (w *world) breakEngine(method string) { w.down.Store(&method) }

func (w *world) mendEngine() { w.down.Store(nil) }

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, data: shortDir(t), cli: shortDir(t)}
	w.engine, w.shims = newEngine(t, func(method string) error {
		if broken := w.down.Load(); broken != nil && (*broken == "" || *broken == method) {
			return &engine.Error{Op: "call", Message: "no engine", Kind: engine.ErrUnavailable}
		}
		return nil
	})
	keys, err := secret.OpenKeyring(filepath.Join(w.data, "secrets.key"))
	must(t, err)
	w.keys = keys
	must(t, os.WriteFile(filepath.Join(w.cli, "claude"), []byte(fakeCLI), 0o755))
	return w
}

// life is one life of a server.
type life struct {
	w      *world
	store  *store.Store
	faults *faults
	log    *eventlog.Log
	boxes  *sandbox.Manager
	*runner.Runner

	stop   func() // lets go of everything and waits
	policy policy.Config
}

// options change a life's configuration.
type options struct {
	max, queue int
	background time.Duration
	orphan     time.Duration
	now        func() time.Time // the clock on the wall
	oom        bool             // containers that end have run out of memory
	faults     *faults
	tracer     runner.Tracer
	disk       int64 // a sandbox's limit of the disk
	patterns   []string
	// engineSecrets are patterns of the engine's secrets that runs may name.
	engineSecrets []string
}

// start opens a server's parts and recovers what the one before left.
func (w *world) start(o options) *life {
	w.t.Helper()
	l, err := w.tryStart(o)
	must(w.t, err)
	return l
}

func (w *world) tryStart(o options) (*life, error) {
	w.t.Helper()
	if o.max == 0 {
		o.max = 4
	}
	if o.queue == 0 {
		o.queue = 100
	}
	if o.orphan == 0 {
		o.orphan = time.Minute
	}
	if o.background == 0 {
		o.background = time.Minute
	}
	ctx, cancel := context.WithCancel(context.Background())
	st, err := store.Open(ctx, store.Config{Path: filepath.Join(w.data, "stromboli.db"), Now: o.now})
	must(w.t, err)
	blobs, err := blob.Open(filepath.Join(w.data, "blobs"))
	must(w.t, err)
	log := slog.New(slog.NewTextHandler(testWriter{w.t, &w.waits}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	info, err := w.engine.Info(ctx)
	if err != nil {
		info = engine.Info{EnforcesLimits: true}
	}
	l := &life{w: w, store: st, faults: o.faults, log: eventlog.New(st)}
	l.boxes = sandbox.New(sandbox.Config{
		Engine: oomEngine{w.engine, o.oom}, Info: info, DataDir: w.data, Instance: "test", Shim: "/proc/self/exe", CLI: w, Egress: &w.network,
		OrphanTimeout: o.orphan, DiskLimit: o.disk, Unjudged: true, Logger: log,
	})
	if l.faults == nil {
		l.faults = &faults{}
	}
	l.faults.Store, l.faults.cancel = st, cancel
	patterns, err := policy.ParseImagePatterns(o.patterns)
	must(w.t, err)
	secrets, err := policy.ParseSecretPatterns(o.engineSecrets)
	must(w.t, err)
	library := images.New(images.Config{Engine: w.engine, Facts: l.boxes, Patterns: patterns, PullTimeout: time.Minute, Log: log})
	l.policy = policy.Config{EngineSecrets: secrets, Image: image, ImagePatterns: patterns, Memory: 64 << 20, NanoCPUs: 1e9, Timeout: time.Minute, Home: sandbox.HomePath}
	l.Runner = runner.New(runner.Config{
		Images: library,
		Store:  l.faults, Log: faultyLog{l.log, l.faults}, Sandboxes: roomy{l.boxes, w}, Blobs: blobs, Model: w, Connections: &w.network, Secrets: secret.NewVault(st, w.keys),
		Policy: l.policy,
		Keep:   w.keep, KeepMax: cmp.Or(w.most, 100),
		Owner: "test", MaxRunning: o.max, MaxQueued: o.queue, BackgroundWait: o.background, Now: o.now, Logger: log, Tracer: o.tracer, Held: w.holds,
	})
	if err := l.Recover(ctx); err != nil {
		cancel()
		return nil, errors.Join(err, st.Close(), blobs.Close())
	}
	var done sync.WaitGroup
	done.Go(func() { _ = l.Run(ctx) })
	done.Go(func() { _ = l.boxes.Meter(ctx) })
	var once sync.Once
	l.stop = func() {
		once.Do(func() {
			cancel()
			done.Wait()
			library.Close()
			_ = st.Close()
			_ = blobs.Close()
		})
	}
	w.t.Cleanup(l.stop)
	return l, nil
}

func (w *world) holds() error {
	if w.held.Load() {
		return errors.New("held")
	}
	return nil
}

// roomy are sandboxes on a disk that may be full.
type roomy struct {
	*sandbox.Manager
	w *world
}

func (r roomy) Room() error {
	defer r.w.asked.Add(1)
	if r.w.full.Load() {
		return stromboli.Errorf(stromboli.StorageFull, "no room")
	}
	return r.Manager.Room()
}

// oomEngine says of containers that have ended that the kernel ended them.
type oomEngine struct {
	*enginetest.Fake
	oom bool
}

func (e oomEngine) Inspect(ctx context.Context, id string) (engine.Container, error) {
	c, err := e.Fake.Inspect(ctx, id)
	if err == nil && e.oom && c.State == engine.StateExited {
		c.OOMKilled, c.ExitCode = true, 137
	}
	return c, err
}

type testWriter struct {
	t     *testing.T
	waits *atomic.Int64
}

func (w testWriter) Write(b []byte) (int, error) {
	if strings.Contains(string(b), "can't store now") {
		w.waits.Add(1)
	}
	w.t.Logf("%s", b)
	return len(b), nil
}

// world is also what a server needs of others.

func (w *world) Build(context.Context, string) (dir, loader string, err error) { return w.cli, "", nil }

func (w *world) Ready(context.Context, string) (string, error) {
	if w.unready.Load() {
		return "", stromboli.Errorf(stromboli.NotConfigured, "no credential")
	}
	return claude.APIKey, nil
}

func me() stromboli.Principal { return stromboli.Principal{Tenant: "default", Name: "me"} }

// Submit hides whether the run existed.
func (l *life) Submit(ctx context.Context, p stromboli.Principal, s stromboli.Submission) (stromboli.Run, error) {
	run, _, err := l.Runner.Submit(ctx, p, s)
	return run, err
}

// submission is a run whose agent executes a script.
func submission(script string, change ...func(*stromboli.RunSpec)) stromboli.Submission {
	spec := stromboli.RunSpec{Prompt: "RUN:" + base64.StdEncoding.EncodeToString([]byte(script))}
	for _, c := range change {
		c(&spec)
	}
	return stromboli.Submission{Spec: spec, Kind: stromboli.KindAsync}
}

func (l *life) submit(script string, change ...func(*stromboli.RunSpec)) stromboli.Run {
	l.w.t.Helper()
	run, err := l.Submit(context.Background(), me(), submission(script, change...))
	must(l.w.t, err)
	return run
}

func (l *life) cancel(id string) {
	l.w.t.Helper()
	_, err := l.Cancel(context.Background(), me(), id, stromboli.ReasonRequest)
	must(l.w.t, err)
}

func (l *life) get(id string) stromboli.Run {
	l.w.t.Helper()
	run, err := l.store.GetRun(context.Background(), "default", id)
	must(l.w.t, err)
	return run
}

// wait follows a run to its end and checks what must hold of every run.
func (l *life) wait(id string) stromboli.Run {
	l.w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var last int64
	finished := 0
	for ev, err := range l.log.Follow(ctx, id, 0) {
		if err != nil {
			l.w.t.Fatalf("following %s (%s): %v", id, l.get(id).Phase, err)
		}
		if last++; ev.Seq != last {
			l.w.t.Errorf("event %d of %s comes after %d", ev.Seq, id, last-1)
		}
		if ev.Type == stromboli.EventRunFinished {
			finished++
		}
	}
	run := l.get(id)
	if finished != 1 || !run.Status.Terminal() || run.LastSeq != last {
		l.w.t.Errorf("%s: %d ends, status %s, last event %d of %d", id, finished, run.Status, last, run.LastSeq)
	}
	session, err := l.store.GetSession(ctx, "default", run.SessionID)
	must(l.w.t, err)
	if session.ActiveRun == id {
		l.w.t.Errorf("the session of %s is still busy", id)
	}
	return run
}

// starts counts how often an agent of the session was started.
func (w *world) starts(run stromboli.Run) int {
	b, _ := os.ReadFile(filepath.Join(w.data, "sessions", run.SessionID, "home", "starts"))
	return strings.Count(string(b), "start")
}

// empty waits until no container and no sandbox's directory is left.
func (l *life) empty() {
	l.w.t.Helper()
	l.eventually("all sandboxes are gone", func() bool {
		n, err := l.boxes.Left(context.Background())
		entries, _ := os.ReadDir(filepath.Join(l.w.data, "sb"))
		return err == nil && n == 0 && len(entries) == 0
	})
}

func (l *life) eventually(what string, ok func() bool) {
	l.w.t.Helper()
	end := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			active, err := l.store.ActiveRuns(context.Background())
			l.w.t.Fatalf("never: %s; active: %+v, %v", what, active, err)
		}
	}
}

// until waits for a phase of a run.
func (l *life) until(id string, phase stromboli.Phase) {
	l.w.t.Helper()
	l.eventually(fmt.Sprintf("%s is %s", id, phase), func() bool { return l.get(id).Phase == phase })
}

// said waits until the agent has printed a text.
func (l *life) said(id, text string) {
	l.w.t.Helper()
	l.eventually(fmt.Sprintf("%s says %s", id, text), func() bool {
		events, err := l.store.Events(context.Background(), id, 0, 1000)
		must(l.w.t, err)
		for _, ev := range events {
			var d stromboli.OutputData
			if ev.Type == stromboli.EventOutput && json.Unmarshal(ev.Data, &d) == nil && strings.Contains(d.Line, text) {
				return true
			}
		}
		return false
	})
}

func want(t *testing.T, run stromboli.Run, status stromboli.Status, reason stromboli.Reason) {
	t.Helper()
	if run.Status != status || run.Outcome.Reason != reason {
		t.Errorf("run ended as %s (%s): %s; want %s (%s)", run.Status, run.Outcome.Reason, run.Outcome.Error, status, reason)
	}
}

// reopen opens the database of a server that has ended.
func (w *world) reopen() *store.Store {
	w.t.Helper()
	st, err := store.Open(context.Background(), store.Config{Path: filepath.Join(w.data, "stromboli.db")})
	must(w.t, err)
	return st
}

// needsNoQueue waits until a run is born running: a slot is counted as free a
// moment after its run has ended. One run at a time, or they would queue behind
// each other.
func (l *life) needsNoQueue() {
	l.w.t.Helper()
	l.eventually("a run needs no queue", func() bool {
		run := l.submit(`result x`)
		l.wait(run.ID)
		return run.Status == stromboli.Running
	})
}
