package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tomblancdev/stromboli"
	"github.com/tomblancdev/stromboli/internal/claude"
	"github.com/tomblancdev/stromboli/internal/policy"
	"github.com/tomblancdev/stromboli/internal/sandbox"
	"github.com/tomblancdev/stromboli/internal/shim"
)

const (
	// messageFrame is the number of the stdin frame that carries the prompt,
	// interruptFrame of the one that carries an interrupt. The shim writes a
	// frame once, however often it is sent.
	messageFrame   = 1
	interruptFrame = 2

	termAfter = 2 * time.Second // from the interrupt to SIGTERM
	killAfter = 4 * time.Second // from the interrupt to SIGKILL

	orderWait = 60 * time.Millisecond // for the shim's word that it has a cancel's order

	// backstop is how long after its deadline, or after its cancellation, a run
	// may stay silent before its sandbox is removed without asking: the shim
	// ends the agent itself, but a frozen one can't.
	backstop = 15 * time.Second

	batchLines = 512
	storeRetry = 500 * time.Millisecond

	// helpTime bounds the wait for what a run's start needs beside the engine:
	// the model's endpoint.
	helpTime = 30 * time.Second

	// An execution that failed by no fault of its run is tried again, at first
	// soon, and for giveUp after the run's time is over.
	retryFirst = 250 * time.Millisecond
	retryLast  = 10 * time.Second
	giveUp     = 5 * time.Minute
)

// execution carries one run from "running" to its end. It belongs to one
// goroutine, run; only cancel may be called by others.
type execution struct {
	r   *Runner
	id  string
	log *slog.Logger

	row  stromboli.Run // as this server last wrote it
	plan policy.Plan

	inherited bool // from a server before, and not yet taken over
	keeping   bool // the sandbox is kept once the run has ended

	accepted time.Time     // when the request came in; zero unless it is executed at once
	checked  *sandbox.Plan // by Submit, if it is executed at once

	// What one attempt knows; the next one finds it out again.
	turn       *claude.Turn
	hooked     hookProgress
	box        *sandbox.Sandbox
	exit       *shim.ExitStatus
	remade     string      // why the session's kept sandbox could not be used
	closed     bool        // the agent's input
	background *time.Timer // ends tasks in the background
	waitedFor  []stromboli.BackgroundTask

	// began is when the run started, on the monotonic clock: limits are
	// durations since, so that they hold when the machine's clock is set.
	began time.Time
	moved atomic.Int64  // how long after began something last went on
	until atomic.Int64  // how long after began the agent must have ended
	hurry chan struct{} // one slot: the run was cancelled

	// ending is held while a cancel is recorded and while the end is: a cancel
	// that was answered beats the result.
	ending sync.Mutex

	networks sync.Mutex // held while the network or what is bound is changed
	network  stromboli.Network
	bindings []sandbox.Binding // what egress is told; wanted is what the run asks for

	tenant string
	wanted []stromboli.Binding

	mu       sync.Mutex
	wish     stromboli.Reason        // why the run is to be cancelled, empty while it isn't
	abort    context.CancelCauseFunc // ends the making of a sandbox
	running  *sandbox.Sandbox        // set while the agent may be told to stop
	calls    context.Context         // of what is told to it
	endCalls context.CancelFunc
	stopping sync.WaitGroup // the calls, and the guard
}

func newExecution(r *Runner, run stromboli.Run) *execution {
	before := time.Duration(0) // under another server, by the clock on the wall
	if !run.StartedAt.IsZero() {
		before = max(r.now().Sub(run.StartedAt), 0)
	}
	return &execution{
		r: r, id: run.ID, row: run, tenant: run.Tenant, wanted: run.Spec.Bindings, network: run.Network, wish: run.CancelReason, hurry: make(chan struct{}, 1), began: time.Now().Add(-before),
		log: r.log.With("run_id", run.ID, "tenant", run.Tenant),
	}
}

// run executes until the run has ended, or ctx has: then the sandbox stays for
// the next server. What fails by no fault of the run is tried again, so that
// none stays behind, its session busy and its agent unheard. It reports whether
// a sandbox is left that has yet to be discarded.
func (e *execution) run(ctx context.Context) (left bool) {
	ctx = stromboli.WithOrigin(ctx, e.row.Origin())
	defer e.letGo()
	var decided *stromboli.Outcome
	for delay := retryFirst; ; delay = min(2*delay, retryLast) {
		var err error
		if decided, err = e.attempt(ctx, decided); err == nil {
			return !e.discard(ctx)
		}
		if ctx.Err() != nil {
			return false
		}
		e.log.ErrorContext(ctx, "executing a run; it is tried again", "error", err)
		if !e.renew(ctx, delay) {
			return false
		}
		if e.row.Status.Terminal() { // the end was durable all the same
			return !e.discard(ctx)
		}
	}
}

// attempt goes from where the run is to its end. An outcome, once decided,
// stays.
func (e *execution) attempt(ctx context.Context, decided *stromboli.Outcome) (*stromboli.Outcome, error) {
	if e.inherited {
		if err := e.takeOver(ctx); err != nil {
			return nil, err
		}
	}
	if decided == nil {
		out, err := e.execute(ctx)
		if e.background != nil {
			e.background.Stop()
		}
		e.detach()
		if err != nil {
			e.letGo()
			return nil, err
		}
		decided = &out
	}
	return decided, e.finish(ctx, *decided)
}

// takeOver makes the run this server's. On a full disk it waits, as every write
// does: the sandbox goes on meanwhile.
func (e *execution) takeOver(ctx context.Context) error {
	err := e.persist(ctx, func() error {
		epoch, err := e.r.cfg.Store.Takeover(ctx, e.id, e.r.cfg.Owner)
		if err == nil {
			e.row.Epoch, e.inherited = epoch, false
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("taking the run over: %w", err)
	}
	return nil
}

// renew waits and reads the run again: what was being written when an error
// came may be durable or not. It reports whether the run is still ours.
func (e *execution) renew(ctx context.Context, delay time.Duration) bool {
	for {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(delay):
		}
		row, err := e.r.cfg.Store.GetRun(ctx, e.row.Tenant, e.id)
		if err != nil {
			e.log.ErrorContext(ctx, "reading a run again", "error", err)
			continue
		}
		if row.Epoch != e.row.Epoch && !e.inherited {
			e.log.WarnContext(ctx, "the run is executed by another server", "owner", row.Owner)
			return false
		}
		e.row = row
		if row.CancelReason != "" {
			e.cancel(row.CancelReason) //nolint:contextcheck // the order outlives its caller
		}
		return true
	}
}

// execute returns how the run ended, or an error when this server can't go on
// with it; nothing has been decided then.
func (e *execution) execute(ctx context.Context) (stromboli.Outcome, error) {
	plan, err := policy.Check(e.row.Spec, e.r.policy())
	if err != nil { // the configuration changed while the run was queued
		return e.failed(stromboli.ReasonNotEnforced, err), nil
	}
	e.plan = plan
	if err := e.allowed(); err != nil {
		return e.failed(stromboli.ReasonNotEnforced, err), nil
	}
	e.turn, e.exit, e.closed, e.background, e.hooked = claude.NewTurn(e.row.Spec.Claude), nil, false, nil, hookProgress{}
	if e.row.AgentStarted || e.hooking() {
		err = e.reattach(ctx)
	} else {
		err = e.start(ctx)
	}
	if err != nil {
		return e.startFailure(ctx, err)
	}
	return e.follow(ctx)
}

// startFailure turns an error on the way to the agent's first line into an
// outcome.
func (e *execution) startFailure(ctx context.Context, err error) (stromboli.Outcome, error) {
	if ctx.Err() != nil {
		return stromboli.Outcome{}, errLetGo
	}
	if reason := e.wished(); reason != "" {
		return e.cancelled(reason), nil
	}
	if he, ok := errors.AsType[*hookError](err); ok {
		return e.failed(he.reason, he), nil
	}
	code := stromboli.CodeOf(err)
	if e.row.AgentStarted || e.hooking() && !atStart(code) { // something may be at work: only broken knows what ends that
		return e.broken(ctx, err)
	}
	switch code {
	case stromboli.NotEnforced:
		return e.failed(stromboli.ReasonNotEnforced, err), nil
	case stromboli.ImageMissing, stromboli.ImageForbidden:
		return e.failed(stromboli.ReasonImage, err), nil
	case stromboli.StorageFull:
		return e.failed(stromboli.ReasonDisk, err), nil
	case stromboli.SessionUnusable:
		return e.failed(stromboli.ReasonSession, err), nil
	case stromboli.NotConfigured:
		return e.failed(stromboli.ReasonNotConfigured, err), nil
	default:
		return e.failed(stromboli.ReasonEngine, err), nil
	}
}

// atStart reports whether an error says of the run itself that it can't be
// carried out.
func atStart(code stromboli.Code) bool {
	return code == stromboli.NotEnforced || code == stromboli.SessionUnusable || code == stromboli.NotConfigured
}

// update writes the row. It is tried again while the disk is full: the agent
// waits meanwhile, and nothing is lost.
func (e *execution) update(ctx context.Context, u stromboli.RunUpdate) error {
	err := e.persist(ctx, func() error {
		_, err := e.r.cfg.Store.UpdateRun(ctx, e.id, e.row.Epoch, u)
		return err
	})
	if err != nil {
		return fmt.Errorf("recording the run's progress: %w", err)
	}
	if len(u.Events) > 0 {
		e.r.cfg.Log.Wake(e.id)
	}
	return nil
}

// persist repeats a write that failed for want of space until it succeeds or
// ctx ends.
func (e *execution) persist(ctx context.Context, write func() error) error {
	for logged := false; ; logged = true {
		err := write()
		if err == nil || !errors.Is(err, stromboli.StorageFull) && !errors.Is(err, stromboli.StorageBusy) {
			return err
		}
		if !logged {
			e.log.ErrorContext(ctx, "can't store now; the run waits", "error", err)
		}
		e.moves()
		select {
		case <-ctx.Done():
			return err
		case <-time.After(storeRetry):
		}
	}
}
