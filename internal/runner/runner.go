// Package runner owns every change of a run's and a session's state: submit,
// claim, execute, cancel, recover.
//
// It promises that a run's agent is started at most once, that every line of
// its output is stored before the sandbox may forget it, and that each step can
// be repeated: an execution that a server's death cut off is carried on by the
// next server with the same calls, and what was done already is done once.
//
// It knows nothing of HTTP, and containers only through package sandbox.
package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/claude"
	"github.com/tomblancdev/stromboli/internal/policy"
	"github.com/tomblancdev/stromboli/internal/sandbox"
)

// Config is what a Runner needs.
type Config struct {
	Store     Store
	Log       Log
	Sandboxes Sandboxes
	Blobs     Blobs
	Archives  Archives // nil: there are none
	Model     Model
	// Connections are what sandboxes do on the network.
	Connections Connections
	Secrets     Secrets
	Images      Images
	Policy      policy.Config
	// Tracer joins runs to traces; nil: they are in none.
	Tracer Tracer

	Owner          string        // names this server in the rows that it executes
	MaxRunning     int           // runs executed at once
	MaxQueued      int           // runs that may wait
	BackgroundWait time.Duration // how long an answered run waits for background tasks
	Timezone       string        // of agents; empty: the image's
	RootHooks      bool          // create hooks run as the sandbox's root, where that is harmless to the host
	Keep           time.Duration // how long a session with create hooks keeps its sandbox after a run; 0: it doesn't
	KeepMax        int           // kept sandboxes above this: the longest kept go
	// Held says why no run could start at present; nil, or no answer: one could.
	// While it does, pending runs wait. It is asked under a lock and must be quick;
	// call Retry when its answer changes.
	Held func() error
	// Now is the clock on the wall, for what is recorded; nil: the machine's.
	// It may be set at any time: no limit is measured by it.
	Now    func() time.Time
	Logger *slog.Logger

	// What follows is told for metrics; nil: nobody is told. It must be quick.

	// Connected is told of records of connections, each once, when they are
	// stored.
	Connected func([]stromboli.EgressRecord)
	// Used is told, when a run has ended whose agent said what it used, of that
	// and of what egress counted of the same run's answers.
	Used func(agent, egress stromboli.Usage)
}

// Runner executes runs.
type Runner struct {
	cfg   Config
	log   *slog.Logger
	rules atomic.Pointer[policy.Config] // what runs are judged by

	wake chan struct{} // one slot: a run became pending or a slot became free

	// claiming is held while a pending run is being claimed, so that a cancel
	// finds it either pending or with its execution. It is taken before mu.
	claiming sync.Mutex

	mu         sync.Mutex
	active     map[string]*execution // by run id
	executions sync.WaitGroup
	recovered  []*execution // what Run has yet to launch
	held       bool         // pending runs wait for more than a slot; claim's own
	sweep      func(context.Context)
	base       context.Context // of the executions
	endBase    context.CancelFunc
	pending    int // rows that wait for a slot, or are about to
	slots      int // slots in use
	draining   bool

	importing map[string]bool // keys of blobs that have no row yet; under mu

	removals singleflight.Group // of deleted sessions, by id
	making   singleflight.Group // room
	untidy   chan struct{}      // one slot: a sandbox was kept, or the disk is full
}

// New returns a Runner that does nothing before Run.
func New(cfg Config) *Runner {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	base, end := context.WithCancel(context.Background())
	r := &Runner{
		base: base, endBase: end,
		cfg:    cfg,
		log:    cfg.Logger,
		wake:   make(chan struct{}, 1),
		active: make(map[string]*execution),
		untidy: make(chan struct{}, 1),

		importing: make(map[string]bool),
	}
	r.rules.Store(&cfg.Policy)
	return r
}

func (r *Runner) now() time.Time { return r.cfg.Now() }

// Recover takes over what the server before left: active runs go on, and
// sandboxes that belong to none will be discarded. Run does both, runs first;
// call Recover once, before Run and before submissions.
func (r *Runner) Recover(ctx context.Context) error {
	runs, err := r.cfg.Store.ActiveRuns(ctx)
	if err != nil {
		return fmt.Errorf("reading active runs: %w", err)
	}
	claims := sandbox.Claims{Running: make(map[string]bool), Kept: make(map[string]bool)}
	kept, err := r.cfg.Store.KeptSandboxes(ctx)
	if err != nil {
		return fmt.Errorf("reading kept sandboxes: %w", err)
	}
	for _, s := range kept {
		claims.Kept[s.Kept.ID] = true
	}
	var resume []stromboli.Run
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, run := range runs {
		if run.Status == stromboli.Pending {
			r.pending++
			continue
		}
		// A sandbox in which neither agent nor hook was ever asked for has nothing
		// to lose: it is swept, or stopped where it is kept, and the run gets a new
		// one, or the same.
		if run.AgentStarted || run.Phase == stromboli.PhaseHooks {
			claims.Running[run.SandboxID] = true
		}
		resume = append(resume, run)
	}
	if r.sweep, err = r.cfg.Sandboxes.Sweep(ctx, claims); err != nil {
		return fmt.Errorf("sweeping sandboxes of the server before: %w", err)
	}
	for _, run := range resume {
		r.slots++
		e := newExecution(r, run)
		e.inherited = true
		r.active[run.ID] = e
		r.recovered = append(r.recovered, e)
	}
	return nil
}

// Run executes runs until ctx ends, then lets go of them: their sandboxes stay
// and the next server goes on with them. It returns when no execution touches
// anything any more.
func (r *Runner) Run(ctx context.Context) error {
	defer r.endBase()
	r.mu.Lock()
	for _, e := range r.recovered {
		r.launch(e)
	}
	r.recovered = nil
	if r.sweep != nil {
		r.executions.Go(func() { r.sweep(r.base) })
	}
	r.executions.Go(func() { r.removeDeleted(r.base) })
	r.executions.Go(func() { r.tidy(r.base) })
	r.executions.Go(func() { r.removeLeftovers(r.base) })
	r.mu.Unlock()

	for {
		r.claim(ctx)
		select {
		case <-ctx.Done():
			r.mu.Lock()
			r.draining = true
			r.mu.Unlock()
			r.endBase()
			r.executions.Wait()
			return nil
		case <-r.wake:
		case <-time.After(5 * time.Second): // a claim that failed is tried again
		}
	}
}

// Drain refuses new runs and waits until the active ones have ended, or ctx.
func (r *Runner) Drain(ctx context.Context) error {
	r.mu.Lock()
	r.draining = true
	r.mu.Unlock()
	for {
		r.mu.Lock()
		left := len(r.active)
		r.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// launch starts an execution; r.mu is held. A sandbox that can't be discarded
// when its run has ended is tried again later, without holding the slot.
func (r *Runner) launch(e *execution) {
	r.executions.Add(1)
	go func() {
		defer r.executions.Done()
		left := e.run(r.base)
		r.mu.Lock()
		delete(r.active, e.id)
		r.slots--
		r.mu.Unlock()
		r.poke()
		for delay := retryLast; left; delay = min(2*delay, giveUp) {
			select {
			case <-r.base.Done(): // swept at the next start
				return
			case <-time.After(delay):
				left = !e.discard(r.base)
			}
		}
	}()
}

func (r *Runner) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Retry has it looked at once whether pending runs can start.
func (r *Runner) Retry() { r.poke() }

// SetMaxRunning changes how many runs may be executed at once, for those that
// start from now on.
func (r *Runner) SetMaxRunning(n int) {
	r.mu.Lock()
	r.cfg.MaxRunning = n
	r.mu.Unlock()
	r.poke()
}

// claim starts pending runs, oldest first, while slots are free, there is room
// on the disk, and runs can start.
func (r *Runner) claim(ctx context.Context) {
	for ctx.Err() == nil {
		r.mu.Lock()
		free := r.slots < r.cfg.MaxRunning && r.pending > 0 && !r.draining && !r.wait(ctx)
		if free {
			r.slots++
		}
		r.mu.Unlock()
		if !free || !r.claimOne(ctx) {
			return
		}
	}
}

// wait reports whether pending runs have to wait though a slot is free, and says
// so when that begins.
func (r *Runner) wait(ctx context.Context) bool {
	doing, err := "pending runs wait for free space", r.cfg.Sandboxes.Room()
	if err == nil && r.cfg.Held != nil {
		doing, err = "pending runs wait, since none could start", r.cfg.Held()
	}
	if err != nil {
		r.changed()
	}
	if err != nil && !r.held {
		r.log.WarnContext(ctx, doing, "error", err)
	}
	r.held = err != nil
	return r.held
}

// claimOne starts the oldest pending run in a slot that was taken for it, and
// gives the slot back if there is none.
func (r *Runner) claimOne(ctx context.Context) bool {
	r.claiming.Lock()
	defer r.claiming.Unlock()
	run, ok, err := r.cfg.Store.ClaimPending(ctx, r.cfg.Owner)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil || !ok {
		// Counted and not there: it is being written, and its writer will poke.
		r.slots--
		if err != nil && ctx.Err() == nil {
			r.log.ErrorContext(ctx, "claiming a pending run", "error", err)
		}
		return false
	}
	r.pending--
	e := newExecution(r, run)
	r.active[run.ID] = e
	r.launch(e)
	return true
}

// Get returns a run of the principal's tenant.
func (r *Runner) Get(ctx context.Context, p stromboli.Principal, id string) (stromboli.Run, error) {
	return r.cfg.Store.GetRun(ctx, p.Tenant, id)
}

// Attestation is what was in force for a run's sandbox; stromboli.NotFound
// before its agent was started.
func (r *Runner) Attestation(ctx context.Context, p stromboli.Principal, id string) (stromboli.Attestation, error) {
	return r.cfg.Store.Attestation(ctx, p.Tenant, id)
}

// List returns runs, newest first, and the cursor of the next page. The
// filter's session is named by id or alias.
func (r *Runner) List(ctx context.Context, p stromboli.Principal, f stromboli.RunFilter) ([]stromboli.Run, string, error) {
	f.Tenant = p.Tenant
	if f.SessionID != "" {
		id, alias := claude.SessionName(f.SessionID)
		if alias != "" {
			session, err := r.cfg.Store.GetSession(ctx, p.Tenant, alias)
			if err != nil && !errors.Is(err, stromboli.NotFound) {
				return nil, "", err
			}
			id = session.ID
		}
		if id == "" { // there is no such session, so it has no runs
			return nil, "", nil
		}
		f.SessionID = id
	}
	return r.cfg.Store.ListRuns(ctx, f)
}

// Cancel records the wish to end a run, durable on return, and has the agent
// stopped: an interrupt at once, SIGTERM after two seconds, SIGKILL of every
// process of the agent's two seconds later. It doesn't wait for that.
func (r *Runner) Cancel(ctx context.Context, p stromboli.Principal, id string, reason stromboli.Reason) (stromboli.Run, error) {
	req := stromboli.CancelRequest{Tenant: p.Tenant, RunID: id, Reason: reason}
	if e := r.execution(id); e != nil {
		return e.requestCancel(ctx, req)
	}
	return r.cancelPending(ctx, req)
}

func (r *Runner) execution(id string) *execution {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.active[id]
}

// cancelPending cancels a run that nobody executes.
func (r *Runner) cancelPending(ctx context.Context, req stromboli.CancelRequest) (stromboli.Run, error) {
	r.claiming.Lock()
	defer r.claiming.Unlock()
	if e := r.execution(req.RunID); e != nil { // claimed while we waited
		return e.requestCancel(ctx, req)
	}
	run, err := r.cfg.Store.RequestCancel(ctx, req)
	if err != nil {
		return stromboli.Run{}, err
	}
	r.cfg.Log.Wake(req.RunID)
	if run.Status == stromboli.Cancelled {
		r.mu.Lock()
		r.pending--
		r.mu.Unlock()
	}
	return run, nil
}

// errLetGo ends an execution without a change of the run: the server stops.
var errLetGo = errors.New("server stops")
